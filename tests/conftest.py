"""Shared by all tests: programs, the embedded data set, a trained run, one world of one process."""

# ruff: noqa: E402
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as launch/ does, before torch is imported

import pytest
import torch
import yaml

if not torch.cuda.is_available():  # Triton reads it when it is imported, which other packages may do first
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests import programs
from tests.tiny import TINY
from trainer.config import Config, load_config

_SHOWN_LINES = 30


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return programs.ROOT


@pytest.fixture(scope="session")
def start():
    """start("python", "launch/train.py", ...): see tests/programs.py."""
    starter = programs.Starter()
    yield starter
    starter.stop()


@pytest.fixture(scope="session")
def world():
    """This process as a world of one, on the CPU."""
    from trainer.ranks.world import join_world

    joined = join_world("cpu")
    yield joined
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def once(tmp_path_factory, request) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make): the folder of this name, which make(folder) has filled once for all workers."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if hasattr(request.config, "workerinput") else base

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path = common / f"once-{name}"
        with (common / f"once-{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != "made":
                shutil.rmtree(path, ignore_errors=True)
                make(path)
                lock.write("made")
        return path

    return folder


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user of the machine can read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def as_nobody() -> Callable:
    """with as_nobody(): what root may read and write, this process may not."""
    if os.geteuid():
        pytest.skip("only root can become another user")

    @contextmanager
    def become() -> Iterator[None]:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return become


@pytest.fixture(scope="session")
def digits_shards(once) -> Path:
    """The embedded data set, written once."""
    from data.prepare import prepare

    return once("digits-shards", lambda out: prepare("digits", out, progress=False))


@pytest.fixture(scope="session")
def digits_run(once, tmp_path_factory, start, digits_shards) -> Path:
    """The directory of a run that learned the digits: a small biglearn_u, trained for some seconds."""

    def train(run: Path) -> None:
        small = ["encoder_depth=1", "decoder_depth=1", "embed_dim=64", "num_heads=2"]
        settings = ["engine.name=accelerate", "engine.device=cpu", "train.max_grad_norm=1"]
        settings += ["train.total_images=40000", "evaluate.every_images=0", "evaluate.images=100", "metrics.port=null"]
        settings += ["data.image_size=32", "data.patch_size=8", "objective.beta_start=null", "objective.beta=0.01"]
        settings += [f"model.{value}" for value in small] + [f"data.shards={digits_shards}", f"run_dir={run}"]
        done = start("python", "launch/train.py", "--config", "configs/digits.yaml", *settings)
        assert done.returncode == 0, done.stderr

    # What a worker writes into it, the others do not see.
    return shutil.copytree(once("digits-run", train), tmp_path_factory.mktemp("runs") / "digits")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_runtest_setup():
    programs.ended.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """A test that fails shows the programs that it started, and the last that they said."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for done in programs.ended[-3:]:
            lines = [*done.stdout.splitlines()[-_SHOWN_LINES:], *done.stderr.splitlines()[-_SHOWN_LINES:]]
            report.sections.append((f"exit code {done.returncode}: {' '.join(done.args)}", "\n".join(lines)))


@pytest.fixture
def tiny(tmp_path, digits_shards):
    """tiny(*overrides): a checked configuration of a run in tmp_path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))

    def load(*overrides: str) -> Config:
        return load_config(path, [f"data.shards={digits_shards}", f"run_dir={tmp_path / 'run'}", *overrides])

    load.path = path
    return load
