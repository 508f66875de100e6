"""The dense block is timm's block: the same weights give the same output."""

import pytest
import torch

from model.transformer import Trunk
from tests.model.timm_block import TimmBlock


@pytest.mark.parametrize("mlp_ratio", [2, 4])
def test_timm_weights_give_timms_output(mlp_ratio):
    torch.manual_seed(0)
    theirs = TimmBlock(48, num_heads=3, mlp_ratio=mlp_ratio, qkv_bias=True)
    for parameter in theirs.parameters():  # biases and norms away from their trivial initial values
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Trunk(1, 48, num_heads=3, mlp_ratio=mlp_ratio)
    ours.blocks[0].load_state_dict(theirs.state_dict())
    x_BNE = torch.randn(2, 17, 48)
    torch.testing.assert_close(ours.all_tokens(x_BNE, None), theirs(x_BNE), rtol=1e-5, atol=1e-5)


def test_a_mask_that_allows_everything_is_the_dense_block():
    torch.manual_seed(0)
    trunk, x_BNE = Trunk(1, 48, num_heads=3, mlp_ratio=2), torch.randn(2, 17, 48)
    everything_BNN = torch.ones(2, 17, 17, dtype=torch.bool)
    torch.testing.assert_close(trunk.all_tokens(x_BNE, everything_BNN), trunk.all_tokens(x_BNE, None))
