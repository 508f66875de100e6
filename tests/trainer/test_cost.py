"""What a step costs: the counter against arithmetic by hand."""

from dataclasses import astuple
from functools import cache

import pytest
import torch

from model.biglearn import BigLearnModel, ModelConfig
from model.masks import Plan
from model.objective import ObjectiveConfig
from trainer.tasks.biglearn import BigLearnTask
from trainer.tasks.cost import Cost, _measure, measure_cost

PATCHES, TOKEN_DIM, WIDTH, RATIO = 64, 48, 128, 2
LAYERS = 2  # that encode, and that decode; in biglearn_u the same ones


def task_of(method: str, mask_tokens: str) -> BigLearnTask:
    depth = 1 if method == "biglearn_u" else 2
    with torch.device("meta"):
        config = ModelConfig(mask_tokens=mask_tokens, encoder_depth=depth, decoder_depth=depth)
        model = BigLearnModel(config, method, TOKEN_DIM, PATCHES)
        return BigLearnTask(model, ObjectiveConfig(), seed=0)


@cache
def measured(method: str, mask_tokens: str) -> Cost:
    return measure_cost(task_of(method, mask_tokens), PATCHES, TOKEN_DIM)


@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_only_wanted_tokens_are_computed(method):
    """For each sample: x_{S∪T} and its z-query, x_S and its own (or the one of p(z)), then z and T."""
    task = task_of(method, "query_only")
    tokens = token_layers = 0
    for plan in task.plans:
        known = sum(n_S + n_T + n_S for n_S, n_T in plan.groups)
        again = sum(n_S for n_S, _ in plan.groups) if method == "biglearn_t" else 0
        wanted = sum(n_T for _, n_T in plan.groups)
        encode, decode = known + queries(plan, method), again + len(plan.groups) + wanted
        tokens += encode + decode
        token_layers += encode * (LAYERS - 1) + queries(plan, method)
        token_layers += decode * (LAYERS - 1) + wanted
    cost = measured(method, "query_only")
    expect(cost, task, tokens, token_layers)
    assert cost.flops_per_image < measured(method, "dense").flops_per_image


@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_dense_is_three_passes_less_what_nobody_reads(method):
    """All tokens of x_{S∪T}, of x_S (once for all with empty S) and of the decode; at the end z-queries and T alone."""
    task = task_of(method, "dense")
    tokens = token_layers = 0
    for plan in task.plans:
        encode, decode = (PATCHES + 1) * queries(plan, method), (PATCHES + 1) * len(plan.groups)
        tokens += encode + decode
        token_layers += (encode + decode) * (LAYERS - 1)
        token_layers += queries(plan, method) + sum(n_T for _, n_T in plan.groups)
    cost = measured(method, "dense")
    expect(cost, task, tokens, token_layers)
    # Two operations a multiply-add, backward twice forward: linear layers, then attention's two products.
    trunk = 6 * cost.token_layers_per_image * ((4 + 2 * RATIO) * WIDTH**2 + 2 * 65 * WIDTH)
    assert trunk < cost.flops_per_image < 1.5 * trunk  # the rest: keys of the last layers, embedding, heads


def queries(plan: Plan, method: str) -> int:
    """z-queries of one sample of each group."""
    own_prior = [n_S > 0 for n_S, _ in plan.groups]
    return len(plan.groups) + (0 if method == "vae" else sum(own_prior) + (not all(own_prior)))


def expect(cost: Cost, task: BigLearnTask, tokens: int, token_layers: int) -> None:
    """These sums over one sample of each group of each plan."""
    samples = sum(len(plan.groups) for plan in task.plans)
    assert cost.tokens_per_image == pytest.approx(tokens / samples)
    assert cost.token_layers_per_image == pytest.approx(token_layers / samples)


@pytest.mark.parametrize(("method", "mask_tokens"), [("biglearn_t", "dense"), ("biglearn_u", "query_only")])
def test_the_cost_of_many_plans_is_that_of_running_each(method, mask_tokens):
    """What is computed from few groups against what is counted, plan by plan."""
    task = task_of(method, mask_tokens)
    task.plans = task.plans[:2]
    found, plans = measure_cost(task, PATCHES, TOKEN_DIM), task.plans
    assert any(not n_S for n_S, _ in plans[0].groups + plans[1].groups)
    counted = 0.0
    for plan in plans:
        counted += _measure(task, plan, PATCHES, TOKEN_DIM)
    groups = sum(len(plan.groups) for plan in plans)
    assert astuple(found) == pytest.approx(tuple(counted / groups), rel=1e-12)
