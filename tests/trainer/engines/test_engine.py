"""Engines, in this process: the same steps, the same state, accumulation."""

import dataclasses
import time
from functools import partial
from itertools import product

import pytest
import torch
import torch._dynamo.utils
from accelerate.state import AcceleratorState
from torch.profiler import profile

from data.batch import Batch
from data.errors import UserError
from trainer.build import build_engine, build_parts, build_task
from trainer.choices import choose
from trainer.engines.schedule import Rates

RATES = Rates(learning=1.0, ema_decay=0.5, beta=0.01)
ENGINES = {
    "accelerate": ["engine.name=accelerate"],
    **{f"deepspeed {stage}": ["engine.name=deepspeed", f"engine.zero_stage={stage}"] for stage in range(4)},
}


def build(config, world):
    chosen = choose(config, world.device, parameters=0)
    task = build_task(chosen)
    return task, build_engine(chosen, task, world)


def batch(step: int) -> Batch:
    x_BLD = torch.rand(16, 16, 192, generator=torch.Generator().manual_seed(step))
    return Batch(x_BLD, torch.arange(16) + 16 * step)


def steps(task, engine, numbers) -> list[dict[str, float]]:
    return [
        {name: value.item() for name, value in engine.step([batch(n)], task.plans[n % 4], RATES).items()}
        for n in numbers
    ]


@pytest.fixture
def expected(tiny, world):
    return steps(*build(tiny(), world), range(4))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_makes_the_same_steps(tiny, world, name, optimizer):
    overrides = [f"optimizer.name={optimizer}"]
    expected = steps(*build(tiny(*overrides), world), range(4))
    task, engine = build(tiny(*ENGINES[name], *overrides), world)
    average = None
    made = []
    for number in range(4):
        made += steps(task, engine, [number])
        state = engine.full_state("weights", "ema")
        weight = state["weights"]["model.x_head.1.fc2.weight"].clone()
        if average is not None:  # the recursion of the average, at the decay that the step was given
            average = 0.5 * average + 0.5 * weight
            torch.testing.assert_close(state["ema"]["model.x_head.1.fc2.weight"], average)
        average = state["ema"]["model.x_head.1.fc2.weight"].clone()
    for ours, theirs in zip(made, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_a_timed_step_is_a_step(tiny, world, expected, name):
    task, engine = build(tiny(*ENGINES[name]), world)
    began = time.monotonic()
    terms, seconds = engine.timed_step([batch(0)], task.plans[0], RATES)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected[0], rel=1e-5)
    assert seconds.keys() == {"seconds_forward", "seconds_backward", "seconds_optimizer"}
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= time.monotonic() - began
    assert steps(task, engine, [1])[0] == pytest.approx(expected[1], rel=1e-5)  # the next one is not timed


@pytest.mark.parametrize("name", ENGINES)
def test_full_state_moves_between_engines(tiny, world, expected, name):
    """Two steps on one engine, two on the other from its full state, give the steps of one run."""
    first, second = build(tiny(), world), build(tiny(*ENGINES[name]), world)
    steps(*first, range(2))
    state = first[1].full_state(*first[1].kinds)
    second[1].load_full_state(state, steps=2)
    for kind, tensors in second[1].full_state(*second[1].kinds).items():
        for key, value in tensors.items():
            assert torch.equal(value, state[kind][key]), (kind, key)
    for ours, theirs in zip(steps(*second, range(2, 4)), expected[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


# Inductor's kernels take a minute to compile; tests/launch/test_ranks.py trains with them.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["accelerate", pytest.param("deepspeed 2", marks=pytest.mark.exhaustive)])
def test_compiled_steps_are_the_same(tiny, world, expected, monkeypatch, name, backend):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.utils.counters.clear()
    task, engine = build(tiny(*ENGINES[name], "engine.compile=true"), world)
    for ours, theirs in zip(steps(task, engine, range(4)), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 5  # embedding, two heads, both halves of a block


@pytest.mark.parametrize("name", ["accelerate", "deepspeed 1", "deepspeed 3"])
def test_blocks_that_are_computed_again_give_the_same_steps(tiny, world, expected, name):
    task, engine = build(tiny(*ENGINES[name], "engine.activation_checkpointing=true"), world)
    for one, other in zip(steps(task, engine, range(4)), expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mode", ["query_only", "dense"])
def test_blocks_that_are_computed_again_keep_less(tiny, mode):
    def kept(again: str) -> int:
        """Bytes that a forward keeps for its backward."""
        overrides = (f"model.mask_tokens={mode}", "model.encoder_depth=4", "model.decoder_depth=4")
        task = build_task(tiny(f"engine.activation_checkpointing={again}", *overrides))
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            task(batch(0), task.plans[0], 0.1)
        return sum(sizes.values())

    assert kept("true") < 0.5 * kept("false")


@pytest.mark.parametrize("name", ["accelerate", "deepspeed 0", "deepspeed 2"])
def test_accumulation_is_the_large_batch(tiny, world, expected, name):
    task, engine = build(tiny(*ENGINES[name], "train.accumulation_steps=2"), world)
    whole = batch(0)
    halves_GB = torch.arange(16).view(4, 2, 2)  # of each group, one half goes to each micro-batch
    micro = [Batch(whole.x_BLD[half], whole.index_B[half]) for half in halves_GB.unbind(1) for half in [half.flatten()]]
    terms = engine.step(micro, task.plans[0], RATES)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.parametrize("name", ["accelerate", "deepspeed 0", "deepspeed 2"])
def test_gradients_are_clipped_to_the_norm(tiny, world, name):
    """With Adam's β1 = 0 and eps far above the gradient a step is proportional to the clipped gradient."""
    overrides = [
        "optimizer.name=adamw",
        "optimizer.beta1=0",
        "optimizer.eps=1e12",
        "optimizer.weight_decay=0",
        "optimizer.learning_rate=1e12",
    ]
    moved = []
    for limit in ("null", "1.0"):
        task, engine = build(tiny(*ENGINES[name], *overrides, f"train.max_grad_norm={limit}"), world)
        before = engine.full_state("weights")["weights"]
        before = {key: value.clone() for key, value in before.items()}
        norm = engine.step([batch(0)], task.plans[0], RATES)["gradient_norm"].item()
        after = engine.full_state("weights")["weights"]
        moved.append(sum((after[key] - before[key]).square().sum() for key in before).sqrt().item())
    assert norm > 2
    assert moved[0] == pytest.approx(norm, rel=0.05)
    assert moved[1] == pytest.approx(1.0, rel=0.05)


# Numbers and lists that become tensors; tensors that become numbers; truth values as an index.
WAITS = ("aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero")


PAIRS = {  # of engine, method and mode; in the other stages DeepSpeed itself waits
    ("accelerate", "vae", "dense"), ("accelerate", "biglearn_t", "query_only"), ("accelerate", "biglearn_u", "dense"),
    ("deepspeed 0", "vae", "query_only"), ("deepspeed 0", "biglearn_t", "dense"),
    ("deepspeed 0", "biglearn_u", "query_only"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method", "mode"),
    [
        pytest.param(*way, marks=() if way in PAIRS else pytest.mark.exhaustive)
        for way in product(["accelerate", "deepspeed 0"], ["vae", "biglearn_t", "biglearn_u"], ["dense", "query_only"])
    ],
)
def test_a_step_sends_nothing_from_or_to_the_host(tiny, world, name, method, mode):
    """What would make the host wait for a CUDA device has the same names on the CPU."""
    task, engine = build(tiny(*ENGINES[name], f"method={method}", f"model.mask_tokens={mode}"), world)
    for plan in task.plans[:2]:
        with profile() as seen:
            engine.step([batch(0)], plan, RATES)
        events = list(seen.events())
        assert any(event.name == "aten::_fused_adamw_" for event in events)  # on the CPU, it reads its scalars
        waits = [event for event in events if event.name in WAITS and "aten::_fused_adamw_" not in callers(event)]
        assert not waits, callers(waits[0])


def callers(event) -> list[str]:
    return [event.name, *callers(event.cpu_parent)] if event else []


@pytest.fixture
def fresh_precision():
    """Accelerate otherwise keeps the precision of the first engine of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.usefixtures("expected", "fresh_precision")
def test_bf16_stays_near_fp32_and_keeps_fp32_weights(tiny, world, expected, name):
    task, engine = build(tiny(*ENGINES[name], "engine.precision=bf16"), world)
    made = steps(task, engine, range(4))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    weights = engine.full_state("weights")["weights"]
    assert any((value != value.bfloat16().float()).any() for value in weights.values())


@pytest.mark.parametrize("fault", ["loss", "gradient"])
@pytest.mark.parametrize("name", [*ENGINES, "deepspeed 1, bf16", "deepspeed 3, bf16"])
@pytest.mark.usefixtures("fresh_precision")
def test_a_step_that_is_not_finite_changes_nothing(tiny, world, name, fault):
    """One image without a number in its loss, or a gradient that overflows: the state stays, bit for bit."""
    engine_name, _, bf16 = name.partition(", ")
    task, engine = build(tiny(*ENGINES[engine_name], *(["engine.precision=bf16"] if bf16 else [])), world)
    steps(task, engine, range(2))
    before = {
        kind: {k: v.clone() for k, v in tensors.items()} for kind, tensors in engine.full_state(*engine.kinds).items()
    }
    bad = batch(2)
    if fault == "loss":
        bad.x_BLD[3, 2, 1] = float("nan")
        terms = engine.step([bad], task.plans[2], RATES)
    else:
        weight = dict(task.named_parameters())["model.x_head.1.fc2.weight"]
        handle = weight.register_hook(lambda gradient: gradient * float("inf"))
        terms = engine.step([bad], task.plans[2], RATES)
        handle.remove()
        assert terms["loss"].isfinite()
        assert not terms["gradient_norm"].isfinite()
    assert terms["skipped"].item() == 1
    for kind, tensors in engine.full_state(*engine.kinds).items():
        assert all(torch.equal(value, before[kind][key]) for key, value in tensors.items()), kind
    (after,) = steps(task, engine, [3])
    assert after["skipped"] == 0
    changed = engine.full_state("weights", "ema")
    assert all(any(not torch.equal(v, before[kind][k]) for k, v in changed[kind].items()) for kind in changed)


def test_steps_after_a_skipped_one_are_as_if_it_never_was(tiny, world):
    """The count of steps that corrects Adam's moments is not advanced either."""
    (task, engine), (other_task, other) = build(tiny(), world), build(tiny(), world)
    bad = batch(0)
    bad.x_BLD[:] = float("inf")
    engine.step([bad], task.plans[0], RATES)
    assert steps(task, engine, range(3)) == steps(other_task, other, range(3))


def test_compiling_without_a_compiler_is_the_users_mistake(tiny, world, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no no-such-compiler: install one .* or set engine.compile=auto"):
        build_parts(tiny("engine.compile=true"), world)


@pytest.mark.parametrize("name", ["accelerate", "deepspeed 2"])
def test_an_engine_that_sees_another_world_than_the_launcher_made_is_refused(tiny, world, name):
    """As when a library falls back to a world of its own: each rank would train alone."""
    two = dataclasses.replace(world, rank=1, size=2)
    with pytest.raises(AssertionError, match="sees rank and world"):
        build(tiny(*ENGINES[name]), two)
