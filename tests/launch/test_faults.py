"""Nothing is lost: runs that are killed, asked to stop, out of disk or out of numbers, on one process."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from biglearn_vae.checkpoint import list_checkpoints, newest_whole
from tests.launch.conftest import assert_same_run, losses


def command(tiny_file, run, *overrides) -> list:
    return ["--config", tiny_file, f"run_dir={run}", "--resume", "auto", *overrides]


def wait_until(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def line_of(text: str, start: str) -> str:
    """The one line that starts so, wherever it stands: bars and warnings come when they come."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def steps_made(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


# Where the run is killed, and the steps of the newest checkpoint then: of two where it is written beside training.
KILLS = {
    "in the first step": ("trainer.engines.accelerate_engine:AccelerateEngine.step 1", {0}),
    "in a step": ("trainer.engines.accelerate_engine:AccelerateEngine.step 4", {0, 2}),
    "in the optimizer": ("trainer.engines.optimizers.optimizer:Optimizer.step 6", {2, 4}),
    "in an evaluation": ("trainer.tasks.biglearn:BigLearnTask.evaluate 3", {2, 4}),
    "before a checkpoint is begun": ("trainer.checkpoints.writer:start_writing 2", {2}),
    "in the first file of a checkpoint": ("biglearn_vae.checkpoint:_sync 4", {2}),
    "in the last file of a checkpoint": ("biglearn_vae.checkpoint:_sync 6", {2}),
    "before a checkpoint is named": ("trainer.checkpoints.writer:complete 2", {2}),
    "in the manifest of a checkpoint": ("biglearn_vae.checkpoint:write_aside 4", {2}),
    "while an old checkpoint is removed": ("shutil:rmtree 4", {4}),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(start, tiny_file, tmp_path, reference, moment):
    target, kept_steps = KILLS[moment]
    run, overrides = tmp_path / "run", ["checkpoint.keep_last=1", "checkpoint.keep_best=0"]
    killed = start("python", "tests/faults.py", *command(tiny_file, run, *overrides), FAULT=f"kill {target}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("img-*"))
    assert checkpoints[-1:] in [[f"img-{16 * step:012d}"] if step else [] for step in kept_steps]
    done = start("python", "launch/train.py", *command(tiny_file, run))
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert_same_run(run, reference)
    assert not list((run / "checkpoints").glob(".*"))


def test_a_run_killed_again_and_again_at_random_goes_on_bit_for_bit(start, tiny_file, tmp_path):
    overrides = ["train.total_images=4800", "evaluate.every_images=800", "checkpoint.every_images=160"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start("python", "launch/train.py", *command(tiny_file, whole, *overrides)).returncode == 0
    for seed in range(3):
        seconds = random.Random(seed).random() / 4
        fault = f"kill+{seconds} trainer.engines.accelerate_engine:AccelerateEngine.step 20"
        died = start("python", "tests/faults.py", *command(tiny_file, killed, *overrides), FAULT=fault)
        assert died.returncode == -signal.SIGKILL, died.stderr
    assert start("python", "launch/train.py", *command(tiny_file, killed, *overrides)).returncode == 0
    assert_same_run(killed, whole)


def test_after_a_damaged_checkpoint_there_is_always_a_whole_one(start, tiny_file, tmp_path):
    run, longer = tmp_path / "run", ["train.total_images=320", "checkpoint.keep_best=0", "checkpoint.keep_last=1"]
    first = start("python", "launch/train.py", *command(tiny_file, run, *longer[:1], "checkpoint.every_images=64"))
    assert first.returncode == 0, first.stderr
    os.truncate(run / "checkpoints/img-000000000320/weights.safetensors", 100)
    fault = "kill trainer.engines.accelerate_engine:AccelerateEngine.step 4"
    often = [*longer, "checkpoint.every_images=16"]
    killed = start("python", "tests/faults.py", *command(tiny_file, run, *often), FAULT=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "weights.safetensors is damaged" in killed.stderr
    assert newest_whole(run / "checkpoints")[1].state.images >= 256
    last = start("python", "launch/train.py", *command(tiny_file, run, *often))
    assert last.returncode == 0, last.stderr
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["img-000000000320"]
    assert newest_whole(run / "checkpoints")[2] == []


def test_a_run_is_not_begun_where_another_one_lies(start, tiny_file, tmp_path):
    run = tmp_path / "run"
    once = ["--config", tiny_file, f"run_dir={run}"]
    assert start("python", "launch/train.py", *once).returncode == 0
    (run / "run.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    refused = start("python", "launch/train.py", *once, "seed=5")
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_the_step_with_a_checkpoint_and_exit_code_75(start, tiny_file, tmp_path, reference, name, engine):
    run, overrides = tmp_path / "run", [f"engine.name={engine}", "checkpoint.every_images=0"]
    step = {
        "accelerate": "trainer.engines.accelerate_engine:AccelerateEngine",
        "deepspeed": "trainer.engines.deepspeed_engine:DeepSpeedEngine",
    }
    fault = f"{name} {step[engine]}.step 3"
    stopped = start("python", "tests/faults.py", *command(tiny_file, run, *overrides), FAULT=fault)
    assert stopped.returncode == 75, stopped.stderr
    assert "after 48 images" in line_of(stopped.stderr, f"stopped by {name}")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["img-000000000048"]
    assert not (run / "reports/summary.json").exists()
    done = start("python", "launch/train.py", *command(tiny_file, run, f"engine.name={engine}"))
    assert done.returncode == 0, done.stderr
    if engine == "accelerate":
        assert_same_run(run, reference)
    assert losses(run) == pytest.approx(losses(reference), rel=2e-5)


def test_more_signals_while_the_checkpoint_is_written_do_no_harm(start, tiny_file, tmp_path, reference):
    run = tmp_path / "run"
    faulty = ("python", "tests/faults.py", *command(tiny_file, run))
    first = start(*faulty, FAULT="SIGTERM biglearn_vae.checkpoint:_sync 2")
    assert first.returncode == 75, first.stderr
    second = start(*faulty, FAULT="SIGUSR1 biglearn_vae.checkpoint:complete 1")
    assert second.returncode in (0, 75), second.stderr
    assert start("python", "launch/train.py", *command(tiny_file, run)).returncode == 0
    assert_same_run(run, reference)


def test_handlers_are_there_before_torch(start, tiny_file, tmp_path):
    process = start.background("python", "launch/train.py", *command(tiny_file, tmp_path / "run"), cold=True)

    def catches_both() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        return all(caught >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGUSR1))

    wait_until(catches_both, process)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "after 0 images: no step was made" in err


def test_a_full_disk_costs_a_warning_and_nothing_else(start, tiny_file, tmp_path, reference):
    """The kernel refuses every file above a size, as a full disk would, from the first checkpoint on."""
    run, overrides = tmp_path / "run", ["train.total_images=96000", "checkpoint.every_images=320"]
    process = start.background("python", "launch/train.py", *command(tiny_file, run, *overrides))
    wait_until(lambda: list((run / "checkpoints").glob("img-*")), process)
    kept = {path.name for path in (run / "checkpoints").glob("img-*")}
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    warned = ""
    while "a checkpoint could not be written" not in warned:
        warned = process.stderr.readline()
        assert warned, "the run ended"
    now = sorted(path.name for path in (run / "checkpoints").glob("img-*"))
    assert kept & set(now), "the earlier checkpoint is whole"
    made = steps_made(run)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_until(lambda: sorted(path.name for path in (run / "checkpoints").glob("img-*"))[-1] > now[-1], process)
    wait_until(lambda: steps_made(run) > made + 20, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "no line was lost"


def test_a_disk_that_refuses_the_last_checkpoint_is_a_mistake_with_a_remedy(start, tiny_file, tmp_path, reference):
    run = tmp_path / "run"
    limited = ["prlimit", "--fsize=40000", "python"]  # the logs fit, the weights do not
    done = start(*limited, "launch/train.py", *command(tiny_file, run))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("a checkpoint could not be written") == 3, done.stderr
    assert "free space and go on with --resume auto" in line_of(done.stderr, "error: ")
    assert not list((run / "checkpoints").iterdir()), "what was begun is removed: it takes the room that is missing"
    assert start("python", "launch/train.py", *command(tiny_file, run)).returncode == 0
    assert_same_run(run, reference)


def test_a_damaged_checkpoint_is_named_and_the_last_whole_one_is_used(start, tiny_file, tmp_path, reference):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for name, harm in (("img-000000000096", "ema"), ("img-000000000064", "optimizer")):
        path = run / "checkpoints" / name / f"{harm}.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content if harm == "ema" else content[:-100])
    done = start("python", "launch/train.py", *command(tiny_file, run))
    assert done.returncode == 0, done.stderr
    for name in ("img-000000000096/ema", "img-000000000064/optimizer"):
        assert f"{run}/checkpoints/{name}.safetensors is damaged" in done.stderr
    assert_same_run(run, reference)


def test_two_runs_on_one_directory_are_refused_and_a_dead_ones_lock_is_not(start, tiny_file, tmp_path):
    run = tmp_path / "run"
    first = start.background("python", "launch/train.py", *command(tiny_file, run, "train.total_images=9600000"))
    wait_until(lambda: steps_made(run) > 2, first)
    second = start("python", "launch/train.py", *command(tiny_file, run))
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in second.stderr
    first.kill()
    first.communicate()
    third = start("python", "launch/train.py", *command(tiny_file, run, "train.total_images=96"))
    assert third.returncode == 0, third.stderr


def test_a_step_that_is_not_finite_is_skipped_and_counted(start, tiny_file, tmp_path, reference):
    run = tmp_path / "run"
    fault = "nan trainer.tasks.biglearn:BigLearnTask.sample_terms 3"
    done = start("python", "tests/faults.py", *command(tiny_file, run), FAULT=fault)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False, False]
    assert losses(run)[:2] == losses(reference)[:2]
    assert json.loads((run / "reports/summary.json").read_text())["skipped_steps"] == 1
    again = start("python", "launch/train.py", *command(tiny_file, run, "train.total_images=128"))
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["skipped_steps"] == 1


@pytest.mark.parametrize("steps_late", [0, 4])
def test_too_many_in_a_row_end_the_run_with_all_that_is_known(start, tiny_file, tmp_path, steps_late):
    run = tmp_path / "run"
    overrides = ["train.total_images=960", "train.max_skipped_steps=3", f"metrics.steps_late={steps_late}"]
    fault = "nans trainer.tasks.biglearn:BigLearnTask.sample_terms 5"
    done = start("python", "tests/faults.py", *command(tiny_file, run, *overrides), FAULT=fault)
    assert done.returncode == 3, done.stderr
    last = line_of(done.stderr, "error: ")
    assert "steps in a row are not finite, the first is step 5 (loss nan" in last
    assert "the images 64 to 79 of the sequence" in last
    assert f"python launch/replay.py --run {run} --step 5" in last
    assert f"the last good checkpoint is {run}/checkpoints/img-" in last
    report = json.loads((run / "reports/non-finite-step-000000005.json").read_text())
    assert len(report["data_set_indices"]) == 16
    assert report["skipped"][0]["loss"] == "nan"
    assert Path(report["last_good_checkpoint"]).exists()
    assert os.path.basename(report["last_good_checkpoint"]) >= "img-000000000064"
    done = start("python", "launch/train.py", *command(tiny_file, run, "train.total_images=128"))
    assert done.returncode == 0, done.stderr  # from the weights that never took part in those steps


@pytest.fixture
def damaged_shards(digits_shards, tmp_path) -> Path:
    """The digits with one byte altered in the middle of the training images."""
    folder = tmp_path / "digits"
    shutil.copytree(digits_shards, folder)
    index = json.loads((folder / "index.json").read_text())
    shard = index["splits"]["train"][0]
    member = shard["records"][0]["images"]
    with (folder / shard["name"]).open("r+b") as file:
        file.seek(member["offset"] + member["bytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return folder


def test_a_damaged_image_is_replaced_named_and_counted(start, tiny_file, tmp_path, damaged_shards):
    """The same losses whether the images stay in memory or not, and after a resume."""
    overrides = [f"data.shards={damaged_shards}", "train.total_images=1440"]
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    runs = [(memory, ()), (disk, ["data.memory_bytes=0", "train.max_steps=40"]), (disk, ["data.memory_bytes=0"])]
    for run, more in runs:
        done = start("python", "launch/train.py", *command(tiny_file, run, *overrides, *more))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("its CRC-32 is not the one that was written; image") <= 1
    assert "warning: train image 5" in done.stderr
    for run in (memory, disk):
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["damaged_images"] == 1
    assert losses(memory) == losses(disk)


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_more_damage_than_is_accepted_ends_the_run(start, tiny_file, tmp_path, damaged_shards, memory_bytes):
    overrides = [f"data.shards={damaged_shards}", f"data.memory_bytes={memory_bytes}", "train.total_images=1440"]
    done = start("python", "launch/train.py", *command(tiny_file, tmp_path / "run", *overrides, "data.max_damaged=0"))
    assert done.returncode == 2, done.stderr
    refusal = line_of(done.stderr, "error: ")
    assert refusal.startswith("error: damaged images in split train")
    assert "more than data.max_damaged=0" in refusal


@pytest.mark.parametrize("shards", ["pipe:touch executed", "ftp://localhost/digits"])
def test_shards_that_are_no_folder_are_refused_on_sight(start, tiny_file, tmp_path, root, shards):
    done = start("python", "launch/train.py", *command(tiny_file, tmp_path / "run", f"data.shards={shards}"))
    assert done.returncode == 2
    assert "shards are read from a folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (root / "executed").exists()


def test_a_shard_that_was_cut_is_named_at_the_start(start, tiny_file, tmp_path, damaged_shards):
    shard = next(damaged_shards.glob("train-*.tar"))
    os.truncate(shard, shard.stat().st_size - 512)
    done = start("python", "launch/train.py", *command(tiny_file, tmp_path / "run", f"data.shards={damaged_shards}"))
    assert done.returncode == 2
    assert f"{shard}: has" in done.stderr
    assert not (tmp_path / "run").exists()
