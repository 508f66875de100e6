"""What a step costs: the counter against arithmetic by hand."""

import pytest
import torch

from model.biglearn import BigLearnVAE, ModelConfig
from model.cost import measure_cost
from model.objective import ObjectiveConfig
from model.task import BigLearnTask

PATCHES, TOKEN_DIM, WIDTH, RATIO = 64, 48, 128, 2


def case_1(method: str, mask_tokens: str) -> BigLearnTask:
    with torch.device("meta"):
        model = BigLearnVAE(ModelConfig(mask_tokens=mask_tokens), method, TOKEN_DIM, PATCHES)
        return BigLearnTask(model, ObjectiveConfig(), seed=0)


@pytest.mark.parametrize(
    ("method", "passes", "token_layers"),
    [("vae", 2, 65 * (4 + 4)), ("biglearn_t", 3, 65 * (4 + 4 + 4)), ("biglearn_u", 3, 65 * 3 * 8)],
)
def test_tokens_and_flops_of_the_literal_form(method, passes, token_layers):
    cost = measure_cost(case_1(method, "dense"), PATCHES, TOKEN_DIM)
    assert cost.tokens_per_image == 65 * passes
    assert cost.token_layers_per_image == token_layers
    # Two operations a multiply-add, backward twice forward: linear layers, then attention's two products.
    trunk = 6 * token_layers * ((4 + 2 * RATIO) * WIDTH**2 + 2 * 65 * WIDTH)
    assert trunk < cost.flops_per_image < 1.1 * trunk  # the rest: embedding and heads


@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_only_wanted_tokens_are_computed(method):
    """For each sample: x_{S∪T} and its z-query, x_S and its own (or the one of p(z)), then z and T."""
    task = case_1(method, "query_only")
    tokens = token_layers = 0
    encoder, decoder = (8, 8) if method == "biglearn_u" else (4, 4)
    for plan in task.plans:
        shares_prior = method != "vae" and any(n_S == 0 for n_S, _ in plan.groups)
        queries = len(plan.groups) + shares_prior + sum(n_S > 0 for n_S, _ in plan.groups)
        known = sum(n_S + n_T + n_S for n_S, n_T in plan.groups)
        again = sum(n_S for n_S, _ in plan.groups) if method == "biglearn_t" else 0
        wanted = sum(n_T for _, n_T in plan.groups)
        tokens += known + queries + again + len(plan.groups) + wanted
        # The last layer of each phase: the z-queries alone, then T alone.
        token_layers += (known + queries) * (encoder - 1) + queries
        token_layers += (again + len(plan.groups) + wanted) * (decoder - 1) + wanted
    samples = sum(len(plan.groups) for plan in task.plans)
    cost = measure_cost(task, PATCHES, TOKEN_DIM)
    assert cost.tokens_per_image == pytest.approx(tokens / samples)
    assert cost.token_layers_per_image == pytest.approx(token_layers / samples)
    assert cost.flops_per_image < measure_cost(case_1(method, "dense"), PATCHES, TOKEN_DIM).flops_per_image
