"""Several ranks: every launcher and engine, resume on other numbers of ranks, faults of one rank alone."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from launch.commands.cli import LOST
from tests.launch.conftest import assert_same_run, losses
from tests.programs import ROOT, free_ports
from trainer.run_directory import RunDirectory

pytestmark = pytest.mark.cluster

ENGINES = {
    "accelerate": ["engine.name=accelerate"],
    **{f"deepspeed {stage}": ["engine.name=deepspeed", f"engine.zero_stage={stage}"] for stage in range(4)},
}
TORCHRUN = ["torchrun", "--nproc-per-node"]
TRAIN = "launch/train.py"


def command(tiny_file, run, *overrides) -> list:
    return ["--config", tiny_file, f"run_dir={run}", "--resume", "auto", *overrides]


def assert_equal_to_rounding(run: Path, reference: Path) -> None:
    assert losses(run) == pytest.approx(losses(reference), rel=2e-5)
    evaluated = [json.loads((r / "evaluations.jsonl").read_text().splitlines()[-1]) for r in (run, reference)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)


LAUNCHERS = {
    "deepspeed": (["deepspeed", "--num_gpus", "2", TRAIN], ["engine.name=deepspeed"]),
    "deepspeed and accelerate's engine": (["deepspeed", "--num_gpus", "2", TRAIN], []),
    "torchrun": ([*TORCHRUN, "2", TRAIN], []),
    "torchrun and deepspeed's engine": ([*TORCHRUN, "2", TRAIN], ["engine.name=deepspeed"]),
    "accelerate launch": (  # as a module: the command imports timm where it is, see tests/model/timm_block.py
        ["python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", TRAIN], [],
    ),
}  # fmt: skip
WAYS = {
    "accumulation": ["train.accumulation_steps=2"],
    "compiled": ["engine.compile=true"],
    "a checkpoint in two parts": ["checkpoint.part_bytes=1000"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_by_every_launcher_give_the_losses_of_one(start, tiny_file, tmp_path, reference, launcher):
    program, overrides = LAUNCHERS[launcher]
    run = tmp_path / "run"
    done = start(*program, *command(tiny_file, run, *overrides))
    assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(run, reference)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_in_every_way_give_the_losses_of_one(start, tiny_file, tmp_path, reference, way):
    run = tmp_path / "run"
    done = start.ranks(2, TRAIN, *command(tiny_file, run, *WAYS[way]))
    assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(run, reference)


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed 0", "deepspeed 1"])
def test_two_ranks_whose_backward_is_replayed(start, tiny_file, tmp_path, reference, engine):
    run = tmp_path / "run"
    done = start.ranks(2, "tests/recorded.py", *command(tiny_file, run, *ENGINES[engine]))
    assert done.returncode == 0, done.stderr
    assert RunDirectory(run).record().ways["cuda_graphs"] is True
    assert_equal_to_rounding(run, reference)


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
def test_two_ranks_in_the_environment_of_srun(start, tiny_file, tmp_path, reference, engine):
    run = tmp_path / "run"
    step = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_ports()),
    }  # fmt: skip
    ranks = [
        start.background(
            "python", TRAIN, *command(tiny_file, run, f"engine.name={engine}"),
            **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank),
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        done = start.finish(rank)
        assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(run, reference)


@pytest.mark.parametrize("engine", ["deepspeed 1", "deepspeed 2", "deepspeed 3", "accelerate"])
def test_two_ranks_in_bf16_stay_near_fp32(start, tiny_file, tmp_path, reference, engine):
    run = tmp_path / "run"
    done = start.ranks(2, TRAIN, *command(tiny_file, run, *ENGINES[engine], "engine.precision=bf16"))
    assert done.returncode == 0, done.stderr
    assert losses(run) == pytest.approx(losses(reference), rel=0.02)


@pytest.mark.parametrize("engine", ENGINES)
def test_from_one_rank_to_two_and_back(start, tiny_file, tmp_path, reference, engine):
    run = tmp_path / "run"
    for ranks, steps in ((1, 2), (2, 4), (1, 6)):
        arguments = command(tiny_file, run, *ENGINES[engine], f"train.max_steps={steps}")
        done = start.ranks(ranks, TRAIN, *arguments)
        assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(run, reference)


def test_four_ranks_then_another_engine_on_one_then_two(start, tiny_file, tmp_path, reference):
    run = tmp_path / "run"
    for ranks, steps, engine in ((4, 2, "deepspeed 3"), (1, 4, "accelerate"), (2, 6, "deepspeed 2")):
        arguments = command(tiny_file, run, *ENGINES[engine], f"train.max_steps={steps}", "checkpoint.part_bytes=1000")
        done = start.ranks(ranks, TRAIN, *arguments)
        assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(run, reference)


@pytest.fixture(scope="module")
def two_ranks(start, tiny_file, tmp_path_factory) -> Path:
    """A run on two ranks that nobody disturbed."""
    run = tmp_path_factory.mktemp("two_ranks") / "run"
    done = start.ranks(2, TRAIN, *command(tiny_file, run, "engine.name=deepspeed", "checkpoint.part_bytes=1000"))
    assert done.returncode == 0, done.stderr
    return run


KILLS = {
    "a step": "trainer.engines.deepspeed_engine:DeepSpeedEngine.step 4 1",
    "an evaluation": "trainer.loop:evaluate 2 0",
    "its part of a checkpoint": "biglearn_vae.checkpoint:_sync 5 1",
}


@pytest.mark.parametrize("moment", KILLS)
def test_one_of_two_ranks_killed_and_resumed_bit_for_bit(start, tiny_file, tmp_path, two_ranks, moment):
    run, overrides = tmp_path / "run", ["engine.name=deepspeed", "checkpoint.part_bytes=1000"]
    arguments = command(tiny_file, run, *overrides)
    ranks = start.ranks_in_background(2, "tests/faults.py", *arguments, FAULT=f"kill {KILLS[moment]}")
    killed = [start.finish(rank) for rank in ranks]
    assert sorted(each.returncode for each in killed) == [-signal.SIGKILL, LOST], killed
    done = start.ranks(2, TRAIN, *arguments)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, two_ranks)


def test_a_launcher_ends_when_one_of_its_ranks_is_killed(start, tiny_file, tmp_path):
    fault = f"kill {KILLS['a step']}"
    arguments = command(tiny_file, tmp_path / "run", "engine.name=deepspeed")
    killed = start(*TORCHRUN, 2, "tests/faults.py", *arguments, FAULT=fault)
    assert killed.returncode not in (0, 2, 3, 75), killed.stderr


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
def test_a_signal_to_one_rank_stops_all(start, tiny_file, tmp_path, reference, engine):
    """The deepspeed launcher hands on the exit code; torchrun makes a 1 of every code."""
    run, arguments = tmp_path / "run", command(tiny_file, tmp_path / "run", f"engine.name={engine}")
    if engine == "deepspeed":
        fault = "SIGUSR1 trainer.engines.deepspeed_engine:DeepSpeedEngine.step 3 1"
        stopped = start("deepspeed", "--num_gpus", "2", "tests/faults.py", *arguments, FAULT=fault)
    else:
        fault = "SIGUSR1 trainer.engines.accelerate_engine:AccelerateEngine.step 3 1"
        stopped = start.ranks(2, "tests/faults.py", *arguments, FAULT=fault)
    assert stopped.returncode == 75, stopped.stderr
    assert stopped.stderr.count("stopped by SIGUSR1 after 48 images") == 1
    assert (run / "checkpoints/img-000000000048/manifest.json").exists()
    done = start.ranks(2, TRAIN, *arguments)
    assert done.returncode == 0, done.stderr
    assert_equal_to_rounding(run, reference)


# A launcher's own exit code: of the signal that ended it, or 1 of torchrun.
STOPS = {
    "deepspeed": ("SIGTERM", "SIGHUP", "SIGKILL"),
    "torchrun": ("SIGTERM", "SIGHUP", "SIGUSR1"),
    "accelerate launch": ("SIGTERM", "SIGQUIT"),
}


@pytest.mark.parametrize(("launcher", "name"), [(launcher, name) for launcher in STOPS for name in STOPS[launcher]])
def test_a_signal_to_the_launcher_stops_all_with_a_checkpoint(start, tiny_file, tmp_path, launcher, name):
    run = tmp_path / "run"
    program, overrides = LAUNCHERS[launcher]
    arguments = command(tiny_file, run, *overrides, "train.total_images=9600000")
    # As in a terminal: under nohup these tests, and what they start, ignore SIGHUP.
    process = start.background("env", "--default-signal=HUP,QUIT", *program, *arguments)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=600)  # which the ranks hold open
    # Its own code; now and then its threads abort it as it takes itself down, when the ranks have long ended.
    assert process.returncode in (1, -getattr(signal, name), -signal.SIGABRT)
    assert err.count("stopped by SIG") == 1
    while processes_of(run):
        time.sleep(0.05)
    made = len(losses(run))
    assert (run / f"checkpoints/img-{16 * made:012d}/manifest.json").exists()


def processes_of(run: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            found += [process.name] * (str(run).encode() in (process / "cmdline").read_bytes())
    return found


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed 0", "deepspeed 2", "deepspeed 3"])
def test_one_ranks_nan_makes_all_skip_the_step(start, tiny_file, tmp_path, reference, engine):
    run = tmp_path / "run"
    fault = "nan trainer.tasks.biglearn:BigLearnTask.sample_terms 3 1"
    done = start.ranks(2, "tests/faults.py", *command(tiny_file, run, *ENGINES[engine]), FAULT=fault)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    one = tmp_path / "one"
    fault = "nan trainer.tasks.biglearn:BigLearnTask.sample_terms 3"
    assert start("python", "tests/faults.py", *command(tiny_file, one), FAULT=fault).returncode == 0
    kept = [[loss for loss in losses(r) if loss is not None] for r in (run, one)]
    assert kept[0] == pytest.approx(kept[1], rel=2e-5)


def test_damage_that_one_rank_meets_counts_for_all(start, tiny_file, tmp_path, digits_shards):
    """Read at random, so that only the rank whose turn it is sees the altered image."""
    folder = tmp_path / "digits"
    shutil.copytree(digits_shards, folder)
    shard = next(folder.glob("train-000000.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    overrides = [f"data.shards={folder}", "data.memory_bytes=0", "train.total_images=1440"]
    done = start.ranks(2, TRAIN, *command(tiny_file, tmp_path / "run", *overrides))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["damaged_images"] == 1
    one = start("python", TRAIN, *command(tiny_file, tmp_path / "one", *overrides))
    assert one.returncode == 0, one.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)
    refused = start.ranks(2, TRAIN, *command(tiny_file, tmp_path / "r", *overrides, "data.max_damaged=0"))
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("error: ") == 1
    assert "more than data.max_damaged=0" in refused.stderr


def test_a_mistake_is_said_once(start, tiny_file, tmp_path):
    for arguments, cause in (
        (["train.batchsize=3"], "did you mean"),
        (["train.batch_size=12"], "is not divisible by 2 ranks"),
        ([f"data.shards={tmp_path}"], "index.json does not exist"),
    ):
        done = start.ranks(2, TRAIN, *command(tiny_file, tmp_path / "run", *arguments))
        assert done.returncode == 2
        assert done.stderr.count("error: ") == 1, done.stderr
        assert cause in done.stderr
        assert "Traceback" not in done.stderr


def test_what_one_rank_alone_cannot_read_ends_all_with_its_name(start, tiny_file, tmp_path, digits_shards):
    """Rank 1 is started where the path leads to other shards."""
    for name in ("sound", "damaged"):
        (tmp_path / name).mkdir()
        shutil.copytree(digits_shards, tmp_path / name / "shards")
    path = next((tmp_path / "damaged/shards").glob("train-*.tar"))
    os.truncate(path, path.stat().st_size // 2)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_ports())}
    arguments = command(tiny_file, tmp_path / "run", "data.shards=shards")
    ranks = [
        start.background(
            "python", ROOT / TRAIN, *arguments, folder=tmp_path / place,
            **world, RANK=str(rank), LOCAL_RANK=str(rank),
        )
        for rank, place in enumerate(("sound", "damaged"))
    ]  # fmt: skip
    done = [start.finish(rank) for rank in ranks]
    assert [each.returncode for each in done] == [2, 2]
    assert done[0].stderr.startswith("error: rank 1: shards/train-")
    assert done[1].stderr == ""
