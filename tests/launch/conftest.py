"""Runs started as a person starts them."""

import json
from pathlib import Path

import pytest
import yaml

from tests.tiny import TINY


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory, digits_shards) -> Path:
    """A configuration of six steps, a checkpoint after every second."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    every = {"checkpoint": {"every_images": 32, "keep_last": 3}}
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"shards": str(digits_shards)}} | every))
    return path


@pytest.fixture(scope="session")
def reference(start, tiny_file, tmp_path_factory) -> Path:
    """A run by plain python and Accelerate, one process, that nobody disturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = start("python", "launch/train.py", "--config", tiny_file, f"run_dir={run}")
    assert done.returncode == 0, done.stderr
    assert "test BigLearnELBO" in done.stdout
    return run


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run: Path, reference: Path) -> None:
    """Every number that was measured, and every tensor at the end, bit for bit."""

    def lines(name: str, of: Path) -> list[dict]:
        read = [json.loads(line) for line in (of / name).read_text().splitlines()]
        clocks = ("seconds_", "images_per_second")
        return [{key: value for key, value in line.items() if not key.startswith(clocks)} for line in read]

    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert lines(name, run) == lines(name, reference)
    last = sorted(path.name for path in (reference / "checkpoints").iterdir())[-1]
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == last
    mine, theirs = (of / "checkpoints" / last for of in (run, reference))
    manifests = [json.loads((of / "manifest.json").read_text()) for of in (mine, theirs)]
    assert [manifest.pop("state.json") for manifest in manifests]
    assert manifests[0] == manifests[1]
    states = [json.loads((of / "state.json").read_text()) for of in (mine, theirs)]
    assert [state.pop("score") for state in states]  # of an evaluation, which a run that is asked to stop leaves out
    assert states[0] == states[1]
