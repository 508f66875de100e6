"""Which steps run, are recorded and replayed. test_gpu.py has what only a CUDA device can show."""

from collections.abc import Iterable

import pytest
import torch

from data.batch import Batch
from tests.trainer.engines.test_engine import ENGINES, RATES, batch, build
from trainer.engines.cuda_graphs import StepGraphs
from trainer.engines.schedule import Rates


class Rerun:
    """Stands in for CUDA: recording runs nothing, a replay runs the function again.

    As in the shared memory of CUDA graphs, each replay writes its terms over those of the last; and what is not
    memory, as which tensor is the gradient of which of `parameters`, stays as it was.
    """

    def __init__(self, log: list[str], parameters: Iterable = ()):
        self.log, self.terms, self.parameters = log, {}, [*parameters]

    def run(self, function):
        self.log.append("run")
        return function()

    def record(self, function):
        self.log.append("record")

        def replay():
            self.log.append("replay")
            gradients = [p.grad for p in self.parameters]
            new = function()
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient
            for name, value in new.items():
                self.terms.setdefault(name, torch.empty(())).copy_(value)
            return {name: self.terms[name] for name in new}

        return replay


def with_graphs(engine) -> list[str]:
    """The list to which an engine then adds what it does."""
    log = []
    step = engine.compute_gradients if engine.gradients else engine.step_of_one
    engine.graphs = StepGraphs(step, lambda: Rerun(log, engine.parameters.values()))
    return log


def micro_batches(number: int, parts: int, device: torch.device) -> list[Batch]:
    whole = batch(number)
    pairs = zip(whole.x_BLD.to(device).chunk(parts), whole.index_B.to(device).chunk(parts), strict=True)
    return [Batch(*pair) for pair in pairs]


def cycles(engine, plans, numbers, parts=1) -> list[dict[str, float]]:
    """The terms of the steps of these numbers, each with its own images and rates."""
    made = []
    for n in numbers:
        batches = micro_batches(n, parts, engine.world.device)
        rates = Rates(learning=1 / (n + 1), ema_decay=1 - 1 / (n + 2), beta=0.01 * (n + 1))
        made.append(engine.step(batches, plans[n % len(plans)], rates))
    return [{name: value.item() for name, value in terms.items()} for terms in made]  # after the last step


def copy_of_state(engine):
    state = engine.full_state(*engine.kinds)
    return {kind: {name: value.clone() for name, value in of_kind.items()} for kind, of_kind in state.items()}


def assert_same(engine, other):
    for kind, tensors in engine.full_state(*engine.kinds).items():
        for name, value in other.full_state(kind)[kind].items():
            assert torch.equal(tensors[name], value), (kind, name)


RECORDED = {name: ENGINES[name] for name in ("accelerate", "deepspeed 0", "deepspeed 1")}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", RECORDED)
def test_replayed_steps_are_the_steps(tiny, world, parts, name):
    config = tiny(*RECORDED[name], f"train.accumulation_steps={parts}")
    (task, engine), (_, other) = build(config, world), build(config, world)
    log = with_graphs(engine)
    made = cycles(engine, task.plans[:2], range(6), parts)
    assert log == ["run"] * 2 + ["record", "replay"] * 2 + ["replay"] * 2
    assert made == cycles(other, task.plans[:2], range(6), parts)
    assert_same(engine, other)


@pytest.mark.parametrize("name", RECORDED)
def test_a_step_that_is_not_finite_is_skipped_in_a_replay_too(tiny, world, name):
    (task, engine), (_, other) = build(tiny(*RECORDED[name]), world), build(tiny(*RECORDED[name]), world)
    with_graphs(engine)
    plan, bad = task.plans[0], batch(9)
    bad.x_BLD[0] = float("nan")
    for number in range(5):
        if number == 3:
            assert engine.step([bad], plan, RATES)["skipped"].item() == 1
        for each in (engine, other):
            assert each.step([batch(number)], plan, RATES)["skipped"].item() == 0
    assert_same(engine, other)


@pytest.mark.parametrize("name", RECORDED)
def test_state_that_is_loaded_makes_recordings_void(tiny, world, name):
    (task, engine), (_, other) = build(tiny(*RECORDED[name]), world), build(tiny(*RECORDED[name]), world)
    log = with_graphs(engine)
    cycles(engine, task.plans[:2], range(4))
    state = copy_of_state(engine)
    log.clear()
    engine.load_full_state(state, steps=4)
    other.load_full_state(state, steps=4)
    assert cycles(engine, task.plans[:2], range(4, 9)) == cycles(other, task.plans[:2], range(4, 9))
    assert log == ["run"] * 2 + ["record", "replay"] * 2 + ["replay"]
    assert_same(engine, other)


def test_a_step_that_cannot_be_recorded_runs_as_it_is(tiny, world, caplog):
    class Refuses(Rerun):
        def record(self, function):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    (task, engine), (_, other) = build(tiny(), world), build(tiny(), world)
    engine.graphs = StepGraphs(engine.step_of_one, lambda: Refuses([]))
    assert cycles(engine, task.plans[:2], range(6)) == cycles(other, task.plans[:2], range(6))
    assert_same(engine, other)
    assert caplog.messages == [
        "no CUDA graphs: operation not permitted when stream is capturing; the run goes on without"
    ]
