"""Shared by all tests: the root of the repository, small models, one world of one process."""

# ruff: noqa: E402
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as launch/ does, before torch is imported

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads it when it is imported, which other packages may do first
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def world():
    """This process as a world of one, on the CPU."""
    from trainer.world import join_world

    joined = join_world("cpu")
    yield joined
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory) -> Path:
    """The embedded data set, written once."""
    from data.shards import prepare

    out = tmp_path_factory.mktemp("shards") / "digits"
    prepare("digits", out, progress=False)
    return out


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory, root, digits_shards) -> Path:
    """The directory of a run that learned the digits: a small biglearn_u, trained for half a minute."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    small = ["encoder_depth=1", "decoder_depth=1", "embed_dim=64", "num_heads=2"]
    settings = ["engine.name=accelerate", "engine.device=cpu", "optimizer.learning_rate=3e-3"]
    settings += ["train.total_images=40000", "evaluate.every_images=0", "evaluate.images=100"]
    settings += [f"model.{value}" for value in small] + [f"data.shards={digits_shards}", f"run_dir={run}"]
    command = [sys.executable, "launch/train.py", "--config", "configs/digits.yaml", *settings]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return run


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
