"""The loop: when things are due, and whose weights are evaluated."""

import json

import pytest

from data.index import load_index
from data.stream import Stream
from trainer.build import build_task
from trainer.checkpoint import load_checkpoint
from trainer.evaluation import evaluate
from trainer.loop import _is_due, train
from trainer.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("every", "before", "images", "due"),
    [
        (10, 8, 12, True),
        (10, 10, 12, False),
        (10, 18, 20, True),
        (10, 5, 38, True),
        (0, 8, 12, False),
        (0, 90, 96, True),
    ],
)
def test_intervals_are_passed_not_hit(every, before, images, due):
    assert _is_due(every, before=before, images=images, total_images=96) == due


def test_the_averaged_weights_are_evaluated(tiny, world, digits_shards):
    config = tiny("optimizer.ema_rampup=1")
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False)
    reported = json.loads(run.evaluations.read_text().splitlines()[-1])["biglearn_elbo"]
    checkpoint = load_checkpoint(run.newest_checkpoint())
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    task, elbos = build_task(config), {}
    for kind in ("ema", "weights"):
        task.load_state_dict(checkpoint.tensors[kind])
        elbos[kind] = evaluate(task, stream, config.evaluate, world)["biglearn_elbo"]
    assert elbos["ema"] == pytest.approx(reported, rel=1e-6)
    assert elbos["weights"] != pytest.approx(reported, rel=1e-3)
