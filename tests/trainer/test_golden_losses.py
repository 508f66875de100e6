"""Golden losses: what the first steps of every method and mode give, committed.

Within rounding: a few steps with SSE, AVX2 or AVX-512 instructions differ by up to 6e-6. A deliberate change of the
model, the masks, the noise or the data order is written down with

    python tests/trainer/test_golden_losses.py > tests/trainer/golden_losses.json
"""

import json
from pathlib import Path

import pytest
import torch

from data.batch import Batch
from data.randomness import uniform
from trainer.build import build_engine, build_task
from trainer.config import load_config
from trainer.engines.schedule import Rates, ema_decay, learning_share

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("golden_losses.json")
WAYS = [f"{method} {mode}" for method in ("vae", "biglearn_t", "biglearn_u") for mode in ("dense", "query_only")]
CASES = WAYS + [f"{way} muon" for way in WAYS]
OVERRIDES = (
    "engine.name=accelerate",
    "train.batch_size=16",
    "schedule.warmup_images=64",
    "optimizer.learning_rate=1e-3",
)
MUON = ("optimizer.name=muon", "optimizer.muon.weight_decay=0", "model.residual_init=zero")
MUON += ("objective.connected_share=0.5",)


def first_losses(case: str, world) -> list[float]:
    """The losses of three steps of MNIST Case 1's model on synthetic images, on one thread."""
    method, mode, *muon = case.split()
    overrides = [f"method={method}", f"model.mask_tokens={mode}", *OVERRIDES, *(MUON if muon else ())]
    config = load_config(ROOT / "configs/paper_case1.yaml", overrides)
    task = build_task(config)
    engine = build_engine(config, task, world)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum depends on the threads
    losses = []
    for step in range(3):
        index_B = torch.arange(16) + 16 * step
        x_BLD = uniform(0, "golden images", index_B, 64 * 48).view(16, 64, 48)
        learning = learning_share(config.schedule, 16 * step, 16, config.total_images)
        rates = Rates(learning, ema_decay(config.optimizer, 16 * step, 16), config.objective.beta)
        terms = engine.step([Batch(x_BLD, index_B)], task.plans[step % len(task.plans)], rates)
        losses.append(terms["loss"].item())
    torch.set_num_threads(threads)
    return losses


@pytest.fixture(scope="module")
def measured(start) -> dict:
    """From a process of their own: what ran before in a process can move the last bits."""
    done = start("python", __file__)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_golden_ones(case, measured):
    assert measured[case] == pytest.approx(json.loads(FILE.read_text())[case], rel=2e-5)


if __name__ == "__main__":
    from trainer.ranks.world import join_world

    the_world = join_world("cpu")
    print(json.dumps({case: first_losses(case, the_world) for case in CASES}, indent=1))
