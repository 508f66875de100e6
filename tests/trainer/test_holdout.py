"""A run with held-out images: what it trains on, what it looks at, and what it goes on from."""

import json
from pathlib import Path

import pytest
import torch

from biglearn_vae.checkpoint import load_checkpoint
from biglearn_vae.images import open_index, open_stream
from data.errors import UserError
from data.order.holdout import draw_any, split_training
from data.read.index import load_index
from data.read.stream import Stream
from launch.commands.stages import why_trained
from tests.biglearn_vae.test_checkpoint import forge
from trainer.build import build_parts, build_task
from trainer.evaluation import evaluate
from trainer.loop import train
from trainer.ranks.stop import StopRequest
from trainer.run_directory import RunDirectory


def run_of(config, world, resume=False) -> dict:
    """Its summary; nothing holds the lock of the run any more."""
    return train(config, world, RunDirectory(config.run_dir), resume, StopRequest())


def newest(config) -> Path:
    return RunDirectory(config.run_dir).newest_checkpoint()


def test_without_held_out_images_nothing_changes(tiny, world, digits_shards):
    parts = build_parts(tiny(), world)
    index = load_index(digits_shards)
    for stream, split, seed in ((parts.train_stream, "train", 0), (parts.test_stream, "test", None)):
        plain, position_B = Stream(index, digits_shards, split, patch_size=8, seed=seed), torch.arange(1430, 1446)
        assert torch.equal(stream.order(position_B), plain.order(position_B))
        assert torch.equal(stream.read(position_B).x_BLD, plain.read(position_B).x_BLD)


def test_evaluations_and_the_best_checkpoint_come_from_the_held_out_images(tiny, world, digits_shards):
    config = tiny("data.holdout=30", "evaluate.images=null")
    summary = run_of(config, world)
    _, held_out = split_training(1437, 30, draw_any)
    stream = Stream(load_index(digits_shards), digits_shards, "train", patch_size=8, seed=None, part=held_out)
    checkpoint, task = load_checkpoint(newest(config)), build_task(config)
    task.load_state_dict(checkpoint.tensors["ema"])
    expected = evaluate(task, stream, config.evaluate, world)
    assert summary["evaluated_split"] == "holdout"
    assert summary["after"] == pytest.approx(summary["after"] | expected, rel=1e-6)
    assert checkpoint.state.score == task.score(summary["after"])


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_no_seed_trains_on_a_held_out_image(tiny, world, memory_bytes):
    held_out = set(draw_any(1437, 100).tolist())
    for seed in (0, 1):
        config = tiny("data.holdout=100", f"data.memory_bytes={memory_bytes}", f"seed={seed}")
        parts = build_parts(config, world)
        assert parts.train_stream.images == 1337
        assert held_out.isdisjoint(parts.train_stream.order(torch.arange(2 * 1337)).tolist())
        assert set(parts.test_stream.order(torch.arange(100)).tolist()) == held_out


def test_a_run_goes_on_with_its_own_held_out_images_alone(tiny, world):
    run_of(tiny("data.holdout=30", "train.max_steps=2"), world)
    for other in ("data.holdout=31", "data.holdout=0"):
        with pytest.raises(UserError, match="data.holdout 30 there, .* here"):
            run_of(tiny(other), world, resume=True)
    summary = run_of(tiny("data.holdout=30"), world, resume=True)
    assert summary["steps"] == 6


def test_a_checkpoint_of_before_held_nothing_out(tiny, world):
    run_of(tiny(), world)
    path = newest(tiny())
    state = json.loads((path / "state.json").read_text())
    assert state["identity"].pop("data.holdout") == 0
    forge(path, "state.json", json.dumps(state).encode())
    assert why_trained(tiny())
    assert not why_trained(tiny("data.holdout=30"))
    with pytest.raises(UserError, match="data.holdout 0 there, 30 here"):
        run_of(tiny("data.holdout=30"), world, resume=True)
    summary = run_of(tiny("train.total_images=112"), world, resume=True)
    assert summary["steps"] == 7


def test_impossible_parts_are_one_line(tiny, world):
    with pytest.raises(UserError, match="data.holdout=1437 leaves none of the 1,437 training images"):
        build_parts(tiny("data.holdout=1437"), world)
    with pytest.raises(UserError, match="data.holdout: Input should be greater than or equal to 0"):
        tiny("data.holdout=-1")
    config = tiny()
    with pytest.raises(UserError, match="no images are held out, data.holdout is 0"):
        open_stream(config.data, open_index(config.data), "holdout", None)
