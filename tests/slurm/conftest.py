"""One real SLURM of four nodes for all tests here, and a person who submits to it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launch.slurm.jobs import Event, read_history
from tests.programs import Starter
from tests.slurm.cluster import Cluster
from tests.tiny import TINY

# Long enough to be disturbed: 240 steps, a checkpoint after every tenth.
LONG = TINY | {
    "train": {"batch_size": 16, "total_images": 3840},
    "checkpoint": {"every_images": 160},
    "evaluate": {"images": 24, "batch_size": 12, "every_images": 0},
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Cluster:
    with Cluster(
        tmp_path_factory.mktemp("slurm"), nodes=4, cpus=64, gpus=8, features="a100", others=("gpu", "batch")
    ) as started:
        yield started


@pytest.fixture
def nodes(cluster):
    """All nodes are there again afterwards, and no job."""
    yield cluster
    cluster.tell("scancel", "--me")
    for node in cluster.nodes:
        if cluster.node_state(node) not in ("IDLE", "ALLOCATED", "MIXED", "COMPLETING"):
            cluster.tell("scontrol", "update", f"nodename={node}", "state=RESUME")
    cluster.wait(lambda: not cluster.tell("squeue", "-h"), "an empty queue")
    cluster.wait(lambda: all(cluster.node_state(node) == "IDLE" for node in cluster.nodes), "idle nodes")


@pytest.fixture(scope="session")
def long_file(tmp_path_factory, digits_shards) -> Path:
    path = tmp_path_factory.mktemp("config") / "long.yaml"
    path.write_text(yaml.safe_dump(LONG | {"data": LONG["data"] | {"shards": str(digits_shards)}}))
    return path


@pytest.fixture(scope="session")
def undisturbed(start, long_file, tmp_path_factory) -> list[float]:
    """The losses of two ranks, without SLURM, to the end."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = start.ranks(2, "launch/train.py", "--config", long_file, f"run_dir={run}")
    assert done.returncode == 0, done.stderr
    return losses(run)


class Person:
    """Submits runs, and watches them."""

    def __init__(self, start: Starter, cluster: Cluster):
        self._start, self.cluster = start, cluster

    def call(self, program: str, *arguments, code: int = 0) -> subprocess.CompletedProcess:
        """One of launch/slurm, which must end with this exit code."""
        done = self._start("python", f"launch/slurm/{program}.py", *arguments, **self.cluster.environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def submit(self, config: Path, run: Path, *arguments) -> str:
        """The number of the job."""
        done = self.call("submit", "--config", config, f"run_dir={run}", *arguments)
        return done.stdout.split(":")[0].removeprefix("job ")

    def wait(self, condition: Callable[[], bool], run: Path) -> None:
        try:
            self.cluster.wait(condition, "this")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{log(run)}") from None

    def wait_for_steps(self, run: Path, steps: int) -> None:
        self.wait(lambda: len(losses(run)) >= steps, run)

    def wait_for_end(self, run: Path, code: int, name: str = "train") -> None:
        """The job has ended, and will not be started again."""

        def has_ended() -> bool:
            ends = [event for event in read_history(run) if (event.name, event.what) == (name, "end")]
            return bool(ends) and ends[-1].details == (str(code),) and not self.cluster.tell("squeue", "-h")

        self.wait(has_ended, run)


@pytest.fixture
def person(start, nodes) -> Person:
    return Person(start, nodes)


def losses(run: Path) -> list[float]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if line.endswith("\n")]


def log(run: Path, name: str = "train") -> str:
    path = run / "slurm" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def starts(run: Path, name: str = "train") -> list[Event]:
    return [event for event in read_history(run) if (event.name, event.what) == (name, "start")]
