"""What a dry run says of memory, against the tensors of a real step."""

import pytest
import torch
from torch.nn import functional as F

from data.batch import Batch
from tests.tiny import TINY
from trainer.build import build_engine, build_task, meta_task
from trainer.choices import choose
from trainer.config import Config
from trainer.engines.schedule import Rates
from trainer.memory import expected_memory
from trainer.tasks.live_bytes import LiveBytes


def small(batch_size: int, **changes) -> Config:
    """Two layers, images of 16 patches; changes: keys of the configuration, or of a section."""
    model = TINY["model"] | {"embed_dim": 64}
    config = TINY | {"model": model, "train": {"batch_size": batch_size, "total_images": 96}}
    config["evaluate"] = {"batch_size": 1}
    for name, values in changes.items():
        config[name] = config.get(name, {}) | values if isinstance(values, dict) else values
    return choose(Config.model_validate(config), torch.device("cpu"), 0)


def measured(config: Config, world) -> int:
    """The most bytes of tensors in steps of the engine, with the copy of the model that a run has."""
    live, size = LiveBytes("cpu"), config.train.batch_size
    with live:
        task, copy = build_task(config), build_task(config)
        engine, plans = build_engine(config, task, world), task.plans
        batch = Batch(torch.rand(size, config.data.patches, config.data.token_dim), torch.arange(size))
        live.peak = 0  # what building takes for a moment
        for plan in plans:
            engine.step([batch], plan, Rates(learning=0.1, ema_decay=0.999, beta=0.01))
        del copy
    return live.peak


DEEPSPEED_0 = {"name": "deepspeed", "zero_stage": 0}
CONFIGS = {
    "fp32": small(128),
    # A matrix of scores, which no fused attention keeps, would be as large as all else.
    "dense": small(32, data={"patch_size": 4}, model={"mask_tokens": "dense", "num_heads": 8}),
    "vae": small(128, method="vae"),
    "bf16": small(128, engine={**DEEPSPEED_0, "precision": "bf16"}),
    "checkpointing": small(128, engine={"activation_checkpointing": True}),
    "bf16 checkpointing": small(128, engine={**DEEPSPEED_0, "precision": "bf16", "activation_checkpointing": True}),
    "muon": small(4),  # whose update needs most
    "adamw": small(4, optimizer={"name": "adamw"}),
    **{f"stage {stage}": small(4, engine={"name": "deepspeed", "zero_stage": stage}) for stage in range(4)},
}


@pytest.fixture(autouse=True)
def linear_as_in_a_new_process(monkeypatch):
    """DeepSpeed's stage 3 replaces it, and leaves it so."""
    monkeypatch.setattr(F, "linear", torch._C._nn.linear)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_expected_total_is_that_of_a_real_step(name, world):
    config = CONFIGS[name]
    assert expected_memory(config, meta_task(config), 1).total == pytest.approx(measured(config, world), rel=0.05)


def test_an_evaluation_of_many_images_counts():
    """Its largest tensor, of the MLP, is larger than all that a step needs."""
    few, many = (small(4, evaluate={"batch_size": size}) for size in (1, 2048))
    known, expected = (expected_memory(config, meta_task(config), 1) for config in (few, many))
    assert expected.total > known.total + 4 * 2048 * 17 * 128
    assert expected.weights == known.weights == 2 * 4 * sum(p.numel() for p in meta_task(few).parameters())


def test_one_launch_needs_less_than_rectangles():
    """It copies neither keys nor answers."""
    rectangles = small(128)
    launch = rectangles.model_copy(update={"engine": rectangles.engine.model_copy(update={"attention": "triton"})})
    of_launch, of_rectangles = (expected_memory(config, meta_task(config), 1) for config in (launch, rectangles))
    assert 0.7 * of_rectangles.total < of_launch.total < 0.97 * of_rectangles.total
