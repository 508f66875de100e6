"""The loop: when things are due, and whose weights are evaluated."""

import json

import pytest
import torch

from biglearn_vae.checkpoint import load_checkpoint
from data.read.index import load_index
from data.read.stream import Stream
from trainer.build import build_task
from trainer.engines.accelerate_engine import AccelerateEngine
from trainer.engines.schedule import learning_share
from trainer.evaluation import evaluate
from trainer.loop import _is_due, train
from trainer.metrics.exposition import Exposition
from trainer.ranks.stop import StopRequest
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


def test_only_the_checkpoints_of_the_policy_stay(tiny, world):
    config = tiny("checkpoint.every_images=32", "checkpoint.keep_last=1", "checkpoint.keep_best=0")
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False, stop=StopRequest())
    assert [path.name for path in run.checkpoints.iterdir()] == [f"img-{96:012d}"]


def test_the_averaged_weights_are_evaluated(tiny, world, digits_shards):
    config = tiny("optimizer.ema_rampup=1")
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False, stop=StopRequest())
    reported = json.loads(run.evaluations.read_text().splitlines()[-1])["biglearn_elbo"]
    checkpoint = load_checkpoint(run.newest_checkpoint())
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    task, elbos = build_task(config), {}
    for kind in ("ema", "weights"):
        task.load_state_dict(checkpoint.tensors[kind])
        elbos[kind] = evaluate(task, stream, config.evaluate, world)["biglearn_elbo"]
    assert elbos["ema"] == pytest.approx(reported, rel=1e-6)
    assert elbos["weights"] != pytest.approx(reported, rel=1e-3)


def test_what_is_exported_never_goes_back(tiny, world, monkeypatch):
    """Prometheus would take it for a reset, and count everything once more."""
    seen, call = [], Exposition.__call__

    def spy(shown: Exposition, values: dict) -> None:
        call(shown, values)
        seen.append((shown._numbers["images", ()], shown._numbers.get(("steps", ()), 0), "biglearn_elbo" in values))

    monkeypatch.setattr(Exposition, "__call__", spy)
    config = tiny("evaluate.every_images=32", "metrics.steps_late=4")
    run = RunDirectory(config.run_dir)
    train(config, world, run, resume=False, stop=StopRequest())
    counters = [(images, step) for images, step, _ in seen]
    assert counters == sorted(counters)
    assert (64, 4, True) in seen


def test_step_k_gets_plan_k_its_rates_and_its_share_of_the_sequence(tiny, world, monkeypatch):
    schedules = ("schedule.name=cosine", "schedule.warmup_images=32", "objective.beta_start=0.001")
    config = tiny(*schedules, "objective.beta_range=[0.16666666666666666, 0.5]", "train.max_steps=5")
    steps = []

    def remember(self, batches, plan, rates):
        steps.append((plan, rates, batches[0].index_B.tolist()))
        return original(self, batches, plan, rates)

    original = AccelerateEngine.step
    monkeypatch.setattr(AccelerateEngine, "step", remember)
    train(config, world, RunDirectory(config.run_dir), resume=False, stop=StopRequest())
    plans = build_task(config).plans
    for k, (plan, rates, positions) in enumerate(steps):
        assert plan == plans[k % len(plans)]
        assert rates.learning == learning_share(config.schedule, 16 * k, 16, 96)  # not shortened by max_steps
        assert positions == list(range(16 * k, 16 * k + 16))
    assert [rates.beta for _, rates, _ in steps] == pytest.approx([0.001, 0.001, 10**-2.5, 0.01, 0.01])
    recorded = [json.loads(line) for line in RunDirectory(config.run_dir).metrics.read_text().splitlines()]
    assert [line["beta"] for line in recorded] == [rates.beta for _, rates, _ in steps]


def test_weights_follow_the_seed(tiny):
    first, again, other = (build_task(tiny(f"seed={seed}")).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("engine", ["engine.name=accelerate", "engine.name=deepspeed"])
def test_patch_autoencoder_trains_through_the_same_loop(tiny, world, engine):
    config = tiny("method=patch_ae", "data.patch_size=16", engine, "train.max_steps=2", "evaluate.images=4")
    summary = train(config, world, RunDirectory(config.run_dir), resume=False, stop=StopRequest())
    assert summary["after"]["mse"] < summary["before"]["mse"]
