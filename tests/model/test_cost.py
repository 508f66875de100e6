"""What a step costs: the counter against arithmetic by hand."""

import pytest
import torch

from model.biglearn import BigLearnVAE, ModelConfig
from model.cost import measure_cost
from model.objective import ObjectiveConfig
from model.task import BigLearnTask


@pytest.mark.parametrize(
    ("method", "passes", "token_layers"),
    [("vae", 2, 65 * (4 + 4)), ("biglearn_t", 3, 65 * (4 + 4 + 4)), ("biglearn_u", 3, 65 * 3 * 8)],
)
def test_tokens_and_flops_of_case_1(method, passes, token_layers):
    d, r, patches, token_dim = 128, 2, 64, 48
    with torch.device("meta"):
        task = BigLearnTask(BigLearnVAE(ModelConfig(), method, token_dim, patches), ObjectiveConfig(), seed=0)
    cost = measure_cost(task, patches, token_dim)
    assert cost.tokens_per_image == 65 * passes
    assert cost.token_layers_per_image == token_layers
    # Two operations a multiply-add, backward twice forward: linear layers, then attention's two products.
    trunk = 6 * token_layers * ((4 + 2 * r) * d**2 + 2 * 65 * d)
    assert trunk < cost.flops_per_image < 1.1 * trunk  # the rest: embedding and heads
