"""Steps on many GPUs: messages, memory and times by hand, and the messages of real ranks."""

import itertools
import json
import shlex
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from benchmarks import scaling
from benchmarks.collectives import FP32, MOST_ELEMENTS, Group, StepShape, messages_of_step
from benchmarks.scaling import Gpu, Link, Network, Predictor, optimizer_seconds, state_bytes
from data.errors import UserError
from tests.tiny import TINY
from trainer.build import meta_task
from trainer.config import Config
from trainer.memory import expected_memory
from trainer.tasks.cost import Cost

# 20 elements in two groups; of the first, Muon needs three matrices of 2 x 2 whole.
SHAPE = StepShape((Group((8, 4), 2, {(2, 2): 3}), Group((7, 1), 3, {})), used=(7, 8, 1, 4), terms=6)
SLOW = Network(8, within=Link(1e9, 1e-3), between=Link(1e8, 1e-2), host_latency=0.1)
GPU = Gpu(flops=1e12, memory_bandwidth=1e11, image_seconds=0.01)


def sent(config, ranks, shape=SHAPE) -> list[tuple[str, int]]:
    return [(message.operation, message.bytes) for message in messages_of_step(config, shape, ranks)]


def deepspeed(tiny, stage, *overrides):
    return tiny("engine.name=deepspeed", f"engine.zero_stage={stage}", *overrides)


CONTROL = [("send", 24)] * 2  # of 4 ranks
MATRICES = ("all_gather", 4 * 4 * 4)  # three of 4 elements, padded to one for each of 4 ranks


def test_plain_torch_and_stage_0_reduce_all_gradients_once(tiny):
    expected = [("all_reduce", 80), ("all_reduce", 28), MATRICES, *CONTROL]
    assert sent(tiny("train.accumulation_steps=2"), 4) == expected
    assert sent(deepspeed(tiny, 0), 4) == expected
    assert sent(deepspeed(tiny, 0, "train.max_grad_norm=1"), 4) == [*expected[:2], ("all_reduce", 4), *expected[2:]]
    assert sent(tiny(), 1) == []
    assert sent(tiny(), 7)[2] == ("all_reduce", 3 * 4 * 4)  # seven ranks, three matrices: a sum with zeros


def test_stages_1_and_2_gather_directions_and_weights_of_padded_groups(tiny):
    """12 and 8 elements in pieces of a multiple of 2: of 4 and 2."""
    before = [("all_reduce", 80), ("all_reduce", 24), ("all_reduce", 4), ("all_reduce", 4)]
    after = [("all_gather", 64), MATRICES, ("all_gather", 64), ("all_gather", 32), *CONTROL]
    assert sent(deepspeed(tiny, 1, "train.accumulation_steps=2"), 4) == [*before, *after]
    assert sent(deepspeed(tiny, 2, "train.accumulation_steps=2"), 4) == [before[0], *before, *after]
    halved = [(operation, size // 2) for operation, size in after[:2]]  # large products are in bf16, and what they need
    assert sent(deepspeed(tiny, 1, "engine.precision=bf16"), 4)[4:6] == halved


def test_stage_3_gathers_small_weights_alone_and_large_ones_in_buckets(tiny):
    group, large = SHAPE.groups[1], 30_000_001
    shape = StepShape((*SHAPE.groups, Group((large,) * 3, 3, {})), (7, large, 8, large, 1, large, 4), terms=6)
    messages = messages_of_step(deepspeed(tiny, 3, "optimizer.name=adamw"), shape, 4)
    padded = 4 * (large + 3)
    assert [(m.bytes, m.when) for m in messages[:2]] == [(2 * padded, "exposed"), (padded, "forward")]
    assert (messages[2].operation, messages[2].bytes) == ("reduce_scatter", 4 * (8 + 8 + 4 + 4) + 3 * padded)
    assert [(m.operation, m.bytes) for m in messages[-6:]] == [*(("all_gather", n) for n in (32, 32, 16, 16)), *CONTROL]
    assert group.states == 3


def test_a_model_that_may_need_more_messages_is_refused(tiny):
    shape = StepShape((Group((MOST_ELEMENTS + 1,), 3, {}),), (MOST_ELEMENTS + 1,), 6)
    with pytest.raises(UserError, match="are predicted for at most 500,000,000"):
        messages_of_step(tiny(), shape, 2)


def test_what_a_rank_holds_and_sends(tiny):
    assert state_bytes(tiny(), SHAPE, 4) == 4 * (2 * 20 + 2 * 12 + 3 * 8)
    assert state_bytes(deepspeed(tiny, 1), SHAPE, 4) == 4 * (2 * 20 + 3 * 4 + 4 * 2)
    assert state_bytes(deepspeed(tiny, 2), SHAPE, 4) == 4 * (20 + 4 * 4 + 5 * 2 + 20)
    assert state_bytes(deepspeed(tiny, 3), SHAPE, 4) == 4 * (20 + 5 * 3 + 6 * 3 + 20)
    messages = messages_of_step(tiny(), SHAPE, 4)
    assert [message.sent(4) for message in messages[:3]] == [1.5 * 80, 1.5 * 28, 0.75 * 64]


@pytest.fixture(scope="module")
def alone():
    """A process of its own: where a world of one rank has begun, none of four can be looked at."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def memory_of_four(config):
    return expected_memory(config, meta_task(config), 4)


@pytest.mark.parametrize("way", scaling.WAYS)
def test_what_a_rank_holds_is_what_a_dry_run_says(predictor, way, alone, world):
    """Which has the copy for evaluations, too."""
    config = predictor.of(way, 64)
    memory = alone.submit(memory_of_four, config).result()
    held = memory.weights + memory.gradients + memory.optimizer - FP32 * predictor.shape.elements
    assert state_bytes(config, predictor.shape, 4) == pytest.approx(held, rel=0.01)


def test_the_time_of_a_message_by_hand(tiny):
    gradients, *_, control = messages_of_step(tiny("optimizer.name=adamw"), SHAPE, 2)
    assert SLOW.seconds(gradients, 8) == pytest.approx(2 * 7 * (1e-3 + 10 / 1e9))
    ring, tree = 2 * 3 * (1e-2 + 2.5 / 1e8), 2 * (2 * 1e-2 + 10 / 1e8)
    assert tree < ring
    assert SLOW.seconds(gradients, 32) == pytest.approx(SLOW.seconds(gradients, 8) + tree)
    assert SLOW.seconds(control, 32) == pytest.approx(0.1)
    with pytest.raises(UserError, match="no whole nodes of 8"):
        SLOW.seconds(gradients, 12)


def test_the_optimizer_updates_what_a_rank_holds(tiny):
    whole, sharded = (optimizer_seconds(c, SHAPE, 4, GPU) for c in (tiny(), deepspeed(tiny, 1)))
    elements = scaling.OPTIMIZER_BYTES / GPU.memory_bandwidth
    assert whole - sharded == pytest.approx((20 - 6) * elements)
    alone = optimizer_seconds(tiny(), SHAPE, 1, GPU)
    assert alone - whole == pytest.approx(2 * scaling.orthogonal_flops((2, 2), tiny().engine.dtype) / GPU.flops)


@pytest.fixture(scope="module")
def predictor():
    train = TINY["train"] | {"total_images": 10**6}
    return Predictor(Config.model_validate(TINY | {"train": train}))


@pytest.mark.parametrize("way", scaling.WAYS)
def test_more_images_are_more_efficient_and_slower_links_less(predictor, way):
    fast = Network(8, Link(1e11, 1e-6), Link(1e10, 1e-5), 1e-5)
    rows = [predictor.predict(way, 64, images, GPU, fast) for images in (4, 16, 64)]
    for fewer, more in itertools.pairwise(rows):
        assert fewer["efficiency"] < more["efficiency"]
        assert fewer["step_seconds"] <= more["step_seconds"]
    for network in (SLOW, Network(8, fast.within, fast.between, host_latency=1.0)):
        assert predictor.predict(way, 64, 16, GPU, network)["step_seconds"] > rows[1]["step_seconds"]
    assert predictor.predict(way, 1, 16, GPU, SLOW)["efficiency"] == 1
    with pytest.raises(UserError, match="not divisible by 64 ranks"):
        predictor.predict(way, 64, 5, GPU, fast)


def test_only_the_hosts_of_plain_torch_agree_while_the_gpus_compute(predictor):
    patient = Network(8, Link(1e11, 1e-6), Link(1e10, 1e-5), 1e-4)
    rows = {way: predictor.predict(way, 64, 16, GPU, patient) for way in ("plain", "stage 1")}
    spent = {
        way: row["compute_seconds"] + row["optimizer_seconds"] + row["exposed_seconds"] for way, row in rows.items()
    }
    assert rows["plain"]["step_seconds"] == pytest.approx(spent["plain"])
    assert rows["stage 1"]["step_seconds"] == pytest.approx(spent["stage 1"] + 6 * 1e-4)


def test_the_least_batch_has_the_efficiency_and_a_smaller_one_has_not(predictor):
    fast = Network(8, Link(1e11, 1e-6), Link(1e11, 1e-6), 1e-6)
    line = scaling.least_batch(predictor, "plain", 64, GPU, fast)
    batch = int(line.partition("batch of ")[2].partition(" on")[0].replace(",", ""))
    images = batch // 64
    assert predictor.predict("plain", 64, images, GPU, fast)["efficiency"] >= 0.9
    assert images == 4 or predictor.predict("plain", 64, images - 4, GPU, fast)["efficiency"] < 0.9
    assert "is out of reach, all 1,000,000 images" in scaling.least_batch(
        predictor, "stage 1", 64, GPU, replace(SLOW, host_latency=10.0)
    )


COMMAND = "python benchmarks/scaling.py "


def commands(root) -> list[str]:
    lines = (line.strip() for line in (root / "docs/performance.md").read_text().splitlines())
    return [line for line in lines if line.startswith(COMMAND)]


def test_the_page_shows_what_its_commands_print(root, tmp_path, capsys, monkeypatch):
    """The operations of an image, ten seconds to count, are those of the stored result."""
    stored = json.loads((root / "benchmarks/results/scaling-celeba_base.json").read_text())
    flops = stored["image_seconds"] * 1e12 * stored["assumed"]["peak_tflops"] * stored["assumed"]["mfu"]
    monkeypatch.setattr(scaling, "measure_cost", lambda *_: Cost(0, 0, flops))
    monkeypatch.chdir(root)
    page = (root / "docs/performance.md").read_text()
    assert len(commands(root)) == 2
    for command in commands(root):
        scaling.main([*shlex.split(command.removeprefix(COMMAND)), "--out", str(tmp_path / "scaling.json")])
        printed = capsys.readouterr().out.splitlines()
        shown = [line for line in printed if line.startswith("| ") and "GPUs" not in line]
        assert [line for line in shown if line not in page] == []
        found = json.loads((tmp_path / "scaling.json").read_text())
        assert len(found["rows"]) == len(shown)
        assert [line for line in found["recommended"] if line not in printed] == []
        assert found["assumed"].keys() == scaling.ASSUMED.keys()


def test_times_of_one_gpu_are_taken_from_rows_of_other_benchmarks(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    row = {"case": "celeba_base", "method": "biglearn_u", "mask_tokens": "query_only", "precision": "bf16"}
    rows = [
        row
        | {"world_size": 1, "batch_size": size, "seconds_per_image": seconds / size, "overrides": "optimizer.name=muon"}
        for size, seconds in ((128, 0.040), (512, 0.100))
    ]
    rows[0]["seconds_optimizer"] = 0.01
    parts = {"step": {"rows": rows}, "tests": {"error": "none"}}
    out = tmp_path / "scaling.json"
    measured = tmp_path / "rows.json"
    command = [
        "--config",
        "configs/celeba_base.yaml",
        "--gpus",
        "1",
        "--images",
        "128",
        "--measured",
        str(measured),
        "--out",
        str(out),
    ]
    measured.write_text(json.dumps(parts))
    scaling.main(command)
    (plain, *_) = json.loads(out.read_text())["rows"]
    assert plain["compute_seconds"] == pytest.approx(0.030)
    assert plain["optimizer_seconds"] == pytest.approx(0.010)
    assert json.loads(out.read_text())["image_seconds"] == pytest.approx(0.060 / 384)
    for content, cause in ((json.dumps(rows[:0]), "has no row of case celeba_base"), ("no JSON", "holds no rows")):
        measured.write_text(content)
        with pytest.raises(UserError, match=cause):
            scaling.main(command)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, "optimizer.name=adamw engine.precision=bf16"),
        (2, "optimizer.name=muon train.accumulation_steps=2 model.embed_dim=256 train.max_grad_norm=1"),
        *(
            pytest.param(ranks, f"optimizer.name={name} model.embed_dim=256", marks=pytest.mark.exhaustive)
            for ranks, name in itertools.product((4, 8), ("adamw", "muon"))
        ),
    ],
)
def test_ranks_send_what_is_predicted(start, tiny, tmp_path, ranks, overrides):
    """Weights of width 256 are large enough for stage 3 to keep them in pieces."""
    out = tmp_path / "found.json"
    options = ["--config", tiny.path, "--images", 8, "--steps", 1, "--worker", out]
    done = start.ranks(ranks, "benchmarks/scaling_check.py", *options, *overrides.split())
    assert done.returncode == 0, done.stderr
    for way, found in json.loads(out.read_text())["ways"].items():
        assert sorted(found["counted"]) == sorted(found["predicted"]), way
        assert len(found["counted"]) >= 3


@pytest.mark.cluster
def test_the_check_compares_ranks_with_the_prediction(start, tiny, tmp_path):
    out = tmp_path / "check.json"
    small = ["--images", 4, "--steps", 1, "--rounds", 1, "--out", out]
    done = start("python", "benchmarks/scaling_check.py", "--config", tiny.path, *small)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert [row["way"] for row in rows] == [*scaling.WAYS]
    for row in rows:
        assert row["messages_agree"]
        assert row["bytes_predicted"] == row["bytes_counted"] > 0
        assert row["predicted_seconds"] > row["alone_seconds"] / 2
        assert row["found_seconds"] > 0
