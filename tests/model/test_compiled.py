"""What torch.compile makes of training: the same values and gradients, by few graphs for all plans and layers."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from data.batch import Batch
from model.masks import Plan
from model.objective import ObjectiveConfig
from tests.model.test_biglearn import L, images, small_model
from trainer.tasks.biglearn import BigLearnTask

PLANS = [
    Plan(((0, L), (6, 4), (0, 5), (1, 1))),
    Plan(((3, L - 3), (6, 4), (0, 5), (L - 1, 1))),  # only one group has the shared prior
    Plan(((2, 2), (0, L), (0, 1), (0, 7))),  # only one group has an own prior
]


def gradients(task: BigLearnTask, plan: Plan) -> list[torch.Tensor]:
    """The loss, and the gradient of each parameter."""
    task.zero_grad()
    loss, _ = task(Batch(images(8), torch.arange(8)), plan, beta=0.01)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in task.parameters())]


OTHERS = [("vae", "query_only"), ("biglearn_t", "query_only"), ("biglearn_u", "dense")]


def as_it_is(graph, inputs):
    return graph.forward


@pytest.mark.parametrize(
    ("method", "mode", "compiler"),
    [
        *((method, mode, as_it_is) for method, mode in OTHERS),
        ("biglearn_u", "query_only", aot_eager),  # with a compiled backward pass, which takes twice the time
        *(pytest.param(method, mode, aot_eager, marks=pytest.mark.exhaustive) for method, mode in OTHERS),
    ],
)
def test_compiled_parts_give_the_same_and_are_made_once(method, mode, compiler):
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return compiler(graph, inputs)

    task, readable = (BigLearnTask(small_model(method, mode), ObjectiveConfig(groups=4), seed=0) for _ in range(2))
    task.compile(backend=backend)
    plans, made = task.plans if method == "vae" else PLANS, 0
    for plan in [*plans, *plans]:
        for ours, theirs in zip(gradients(task, plan), gradients(readable, plan), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * max(1.0, theirs.abs().max().item()))
        made = made or len(graphs)
    assert 0 < made <= 16  # not some for each layer
    assert len(graphs) == made  # the first step has met all there is
