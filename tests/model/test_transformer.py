"""The dense block is timm's block: the same weights give the same output."""

import pytest
import torch

from model.timm_layers import TimmBlock
from model.transformer import Block


@pytest.mark.parametrize("mlp_ratio", [2, 4])
def test_timm_weights_give_timms_output(mlp_ratio):
    torch.manual_seed(0)
    theirs = TimmBlock(48, num_heads=3, mlp_ratio=mlp_ratio, qkv_bias=True)
    for parameter in theirs.parameters():  # biases and norms away from their trivial initial values
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Block(48, num_heads=3, mlp_ratio=mlp_ratio)
    ours.load_state_dict(theirs.state_dict())
    x_BND = torch.randn(2, 17, 48)
    torch.testing.assert_close(ours(x_BND, None), theirs(x_BND), rtol=1e-5, atol=1e-5)


def test_a_mask_that_allows_everything_is_the_dense_block():
    torch.manual_seed(0)
    block, x_BND = Block(48, num_heads=3, mlp_ratio=2), torch.randn(2, 17, 48)
    torch.testing.assert_close(block(x_BND, torch.ones(2, 17, 17, dtype=torch.bool)), block(x_BND, None))
