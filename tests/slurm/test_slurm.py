"""Runs on a real cluster, submitted as a person does, and what may happen to them there."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from launch.slurm.jobs import read_history
from tests.data.sources.test_celeba import write
from tests.launch.test_pipeline import SMALL
from tests.slurm.conftest import log, losses, starts

pytestmark = pytest.mark.cluster


def ranks_of(run: Path) -> dict[int, int]:
    """The process of each rank of a training, whatever node it is on."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            values = dict(line.split("=", 1) for line in (process / "environ").read_text().split("\0") if "=" in line)
        except (OSError, UnicodeDecodeError):
            continue
        if "python" in command[0] and str(run / "slurm/train.yaml") in command:
            found[int(values["SLURM_PROCID"])] = int(process.name)
    return found


def assert_equal_to_rounding(one: list[float], other: list[float]) -> None:
    """Rounding grows from step to step."""
    assert one[:100] == pytest.approx(other[:100], rel=2e-5)
    assert one == pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
def test_two_nodes_train_as_one_process_does(person, long_file, undisturbed, tmp_path, engine):
    run = tmp_path / "run"
    person.submit(long_file, run, "--nodes", 2, f"engine.name={engine}")
    refused = person.call("submit", "--config", long_file, f"run_dir={run}", code=2)
    assert "has job" in refused.stderr
    assert f"launch/slurm/cancel.py {run}" in refused.stderr
    person.wait_for_end(run, 0)
    assert_equal_to_rounding(losses(run), undisturbed)
    if engine == "accelerate":
        assert losses(run) == undisturbed
    (start,) = starts(run)
    assert start.details[1] == "n[1-2]"
    assert f"{run}  train  " in person.call("status", tmp_path).stdout
    assert "done" in person.call("status", tmp_path).stdout


def warn(person, run, job) -> None:
    """As SLURM does before the end of a job's time."""
    person.cluster.tell("scancel", "--signal=USR1", job)


def warn_twice(person, run, job) -> None:
    warn(person, run, job)
    warn(person, run, job)


def kill_a_rank(person, run, job) -> None:
    os.kill(ranks_of(run)[1], signal.SIGKILL)


def stop_a_rank(person, run, job) -> None:
    os.kill(ranks_of(run)[1], signal.SIGSTOP)


def set_a_node_down(person, run, job) -> None:
    person.cluster.tell("scontrol", "update", "nodename=n2", "state=DOWN", "reason=test")


def switch_off_the_first_node(person, run, job) -> None:
    person.cluster.switch_off("n1")


def preempt(person, run, job) -> None:
    urgent = ("--partition=urgent", "--exclusive", "--nodes=4", "--output=/dev/null", "--wrap=sleep 3")
    person.cluster.tell("sbatch", *urgent)


# What is done to a job of two nodes, and whether the ranks can write a checkpoint before they end. Ranks wait long for
# one another, but for the one that hangs.
FAULTS = {
    "warned": (warn, True),
    "warned twice": (warn_twice, True),
    "preempted": (preempt, True),
    "a rank is killed": (kill_a_rank, False),
    "a rank hangs": (stop_a_rank, False),
    "a node is set down": (set_a_node_down, False),
    "the first node is switched off": (switch_off_the_first_node, False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disturbed_run_ends_like_one_that_nobody_disturbed(person, long_file, undisturbed, tmp_path, fault):
    run, (disturb, can_save) = tmp_path / "run", FAULTS[fault]
    timeout = 20 if fault == "a rank hangs" else 600
    job = person.submit(long_file, run, "--nodes", 2, f"engine.timeout_seconds={timeout}")
    person.wait_for_steps(run, 30)
    began, saved, made = time.monotonic(), newest_checkpoint(run), len(losses(run))
    disturb(person, run, job)
    person.wait(lambda: len(starts(run)) == 2, run)
    kept, since = newest_checkpoint(run), time.time()
    person.wait(lambda: (run / "metrics.jsonl").stat().st_mtime > since and len(losses(run)) > kept, run)
    print(f"{fault}: {max(0, made - kept)} steps lost, the next step after {time.monotonic() - began:.1f} seconds")
    if fault == "the first node is switched off":
        person.cluster.switch_on("n1")
    person.wait_for_end(run, 0)
    assert losses(run) == undisturbed  # to the last bit
    assert len(starts(run)) == 2
    assert kept >= (made if can_save else saved)
    if fault == "a rank is killed":
        assert "task 1: Killed" in log(run)
        assert re.search(r"rank 0 on n1 lost another rank \(.* by peer", log(run))
        assert 'the last step on record: {"step": ' in log(run)
    if fault == "a rank hangs":
        assert "rank 0 on n1 lost another rank (Timed out waiting" in log(run)


def newest_checkpoint(run: Path) -> int:
    """Its steps."""
    return int(sorted(path.name for path in (run / "checkpoints").glob("img-*"))[-1].removeprefix("img-")) // 16


def test_a_time_limit_shorter_than_the_training_is_several_jobs(person, long_file, tmp_path):
    run = tmp_path / "run"
    long = ["train.total_images=9600000", "checkpoint.every_images=0", "slurm.time=1", "slurm.warning_seconds=15"]
    person.submit(long_file, run, "--nodes", 2, *long)
    person.wait(lambda: len(starts(run)) == 2, run)
    assert "stopped by SIGUSR1 after" in log(run)
    assert newest_checkpoint(run) == len(losses(run))  # by the warning alone
    person.wait_for_steps(run, newest_checkpoint(run) + 1)
    person.call("cancel", run)


def test_a_run_moves_to_another_number_of_nodes(person, long_file, undisturbed, tmp_path):
    run = tmp_path / "run"
    person.submit(long_file, run, "--nodes", 2)
    person.wait_for_steps(run, 30)
    assert "was RUNNING" in person.call("cancel", run).stdout
    assert newest_checkpoint(run) == len(losses(run)) < 240  # nothing was lost
    assert "will be started again" not in log(run)
    assert "cancelled" in person.call("status", run).stdout
    person.submit(long_file, run, "--ranks-per-node", 4)
    person.wait_for_end(run, 0)
    assert_equal_to_rounding(losses(run), undisturbed)
    assert [start.details[1] for start in starts(run)] == ["n[1-2]", "n1"]
    refused = person.call("cancel", run, code=2)
    assert f"no job of {run} waits or runs" in refused.stderr


@pytest.mark.parametrize("how", ["scancel", "cancel --now"])
def test_what_is_cancelled_is_not_started_again(person, long_file, tmp_path, how):
    run = tmp_path / "run"
    job = person.submit(long_file, run, "--nodes", 2)
    person.wait_for_steps(run, 30)
    person.cluster.tell("scancel", job) if how == "scancel" else person.call("cancel", "--now", run)
    person.wait_for_end(run, 75)  # and no job waits
    assert re.search("JobState=(CANCELLED|COMPLETED|FAILED) ", person.cluster.tell("scontrol", "show", "job", job))
    assert len(starts(run)) == 1
    assert newest_checkpoint(run) == len(losses(run))


def test_a_job_that_is_cancelled_before_its_ranks_are_there_ends(person, long_file, tmp_path):
    run = tmp_path / "run"
    job = person.submit(long_file, run, "slurm.setup=[sleep 8]")
    person.wait(lambda: "RUNNING" in person.cluster.tell("squeue", "-h", "-j", job, "--format=%T"), run)
    person.call("cancel", run)  # nobody is there yet to get the signal
    assert not person.cluster.tell("squeue", "-h")
    assert not starts(run)
    assert "cancelled" in person.call("status", run).stdout


@pytest.mark.parametrize("code", [1, 75])
def test_a_job_that_never_gets_anywhere_is_given_up(person, long_file, tmp_path, code):
    run, program = tmp_path / "run", tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    person.submit(long_file, run, "--nodes", 2, f"slurm.python={program}", "slurm.restarts=1")
    person.wait_for_end(run, 1)
    assert len(starts(run)) == 2
    assert "2 starts have added nothing" in log(run)
    assert "failed (1)" in person.call("status", run).stdout


def test_any_name_of_a_directory_will_do(person, long_file, tmp_path):
    run = tmp_path / "it's 50%d of $HOME, a#1"
    person.submit(long_file, run, "slurm.python=/bin/true")
    person.wait_for_end(run, 0)
    assert "done" in log(run)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_a_mistake_is_not_repeated(person, long_file, tmp_path):
    run = tmp_path / "run"
    person.submit(long_file, run, "engine.device=cuda")
    person.wait_for_end(run, 2)
    assert len(starts(run)) == 1
    assert "torch sees no CUDA device" in log(run)
    assert "another start would not help" in log(run)
    assert "mistake (2)" in person.call("status", run).stdout


def test_a_sweep_is_an_array_of_jobs(person, long_file, tmp_path):
    file = tmp_path / "sweep.yaml"
    values = {"method": ["vae", "biglearn_u"], "seed": [0, 1]}
    file.write_text(yaml.safe_dump({"run_dir": "nowhere", "configs": [str(long_file)], "values": values}))
    base, short = tmp_path / "all", ("train.total_images=96", "evaluate.every_images=0")
    arguments = ("--sweep", file, "--at-once", 2, f"run_dir={base}", *short)
    assert "4 of 4 runs" in person.call("submit", *arguments).stdout
    assert person.call("status", base).stdout.count("PENDING") >= 2
    runs = [base / f"long-method={method}-seed={seed}" for method in values["method"] for seed in values["seed"]]
    for run in runs:
        person.wait(lambda run=run: [e.details for e in read_history(run) if e.what == "end"] == [("0",)], run)
        assert len(losses(run)) == 6
        assert "test JointELBO" in log(run)
    methods = [yaml.safe_load((run / "config.yaml").read_text())["method"] for run in runs]
    assert methods == ["vae", "vae", "biglearn_u", "biglearn_u"]
    assert len({tuple(losses(run)) for run in runs}) == 4
    assert person.call("status", base).stdout.count("done") == 4
    assert "all 4 runs are trained already" in person.call("submit", *arguments, code=2).stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("celeba"))


PIPELINE = ("--pipeline", "--config", "configs/celeba_tiny.yaml", "--nodes", 2)


def test_the_two_stages_are_a_chain_of_jobs(person, source, tmp_path):
    run = tmp_path / "run"
    submitted = person.call("submit", *PIPELINE, "--source", source, f"run_dir={run}", *SMALL).stdout
    assert [line.split(" ")[2] for line in submitted.splitlines()[:4]] == ["prepare", "stage_1", "encode", "stage_2"]
    assert person.call("status", run).stdout.count("Dependency") == 3
    person.wait_for_end(run, 0, "stage_2")
    events = [(event.name, event.what) for event in read_history(run) if event.what != "submit"]
    steps = ("prepare", "stage_1", "encode", "stage_2")
    assert events == [(name, what) for name in steps for what in ("start", "end")]
    assert (len(losses(run / "patch_ae")), len(losses(run))) == (16, 16)
    assert "is trained already" in person.call("submit", *PIPELINE, f"run_dir={run}", *SMALL, code=2).stderr


def test_a_chain_ends_with_the_step_that_fails(person, tmp_path):
    other, run = write(tmp_path / "other"), tmp_path / "run"
    (other / "img_align_celeba/000007.jpg").unlink()
    person.call("submit", *PIPELINE, "--source", other, f"run_dir={run}", *SMALL)
    person.wait_for_end(run, 2, "prepare")
    assert "lacks 1 of the 12 images" in log(run, "prepare")
    assert {event.name for event in read_history(run) if event.what == "start"} == {"prepare"}
    assert person.call("status", run).stdout.count("never started") == 3


def test_a_chain_is_submitted_as_a_whole_or_not_at_all(person, source, tmp_path):
    arguments = (*PIPELINE, "--source", source, f"run_dir={tmp_path / 'run'}", "--gpus-per-node", 16, *SMALL)
    batches = ("train.batch_size=256", "stage_1.train.batch_size=256")
    done = person.call("submit", *arguments, *batches, code=2)  # the first step asks for no GPU
    assert "node configuration is not available" in done.stderr
    person.cluster.wait(lambda: not person.cluster.tell("squeue", "-h"), "an empty queue")
    assert not read_history(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("slurm.partition=nosuch",), "invalid partition"),
        (("--gpus-per-node", 16, "train.batch_size=64"), "node configuration is not available"),
        (("--source", "nowhere"), "--source with --pipeline"),
        (("--nodes", 3), "is not divisible by 3 ranks"),
        (("slurm.partitoin=main",), "unknown key partitoin; did you mean partition?"),
        (("--profile", "nowhere.yaml"), "nowhere.yaml cannot be read (No such file or directory): a profile"),
        (("data.shards=nowhere",), "nowhere/index.json does not exist"),
        (("train.batchsize=3",), "did you mean train.batch_size?"),
    ],
)
def test_what_cannot_be_submitted_is_one_plain_line(person, long_file, tmp_path, arguments, cause):
    source = [] if "data.shards=nowhere" not in arguments else ["data.source=mnist"]
    done = person.call("submit", "--config", long_file, f"run_dir={tmp_path / 'run'}", *arguments, *source, code=2)
    assert cause.lower() in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_machine_without_slurm_is_named(start, long_file, tmp_path):
    arguments = ("launch/slurm/submit.py", "--config", long_file, f"run_dir={tmp_path / 'run'}")
    done = start("python", *arguments, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "squeue is not on this machine: go to a login node" in done.stderr
    assert not (tmp_path / "run").exists()


GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("profile", ["modules", "container"])
def test_the_script_for_a_cluster_with_gpus_is_the_reviewed_one(person, root, tmp_path, profile):
    arguments = ["--config", "configs/celeba_base.yaml", "--nodes", 4, "--gpus-per-node", 8]
    arguments += ["--profile", f"configs/clusters/{profile}.yaml", "--dry-run", "train.batch_size=1024", "--pipeline"]
    text = person.call("submit", *arguments, "--source", "celeba").stdout.replace(str(root), "ROOT")
    path = GOLDEN / f"{profile}.txt"
    assert text == path.read_text()
    scripts = text.replace("ROOT", str(root)).split("# runs/celeba_base-biglearn_u/slurm/")[1:]
    assert [script.split("\n")[0] for script in scripts] == [
        f"{name}.sh" for name in ("prepare", "stage_1", "encode", "stage_2")
    ]
    for number, script in enumerate(scripts):
        file = tmp_path / f"{number}.sh"
        file.write_text(script.split("\n", 1)[1])
        assert subprocess.run(["bash", "-n", file]).returncode == 0
        person.cluster.tell("sbatch", "--test-only", str(file))
