"""Self-attention over tokens, and who attends to whom (paper Fig. 1; docs/mathematics.md has the table).

An image has L patch tokens; the token of the latent code z is the last one, so masks are (L+1) x (L+1).
`allowed_BQK` is boolean, True where query q may read key k; None means that everything attends to everything.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PartialLinear(nn.Linear):
    """A linear layer of which a part of the outputs can be asked for.

    The weight is cut inside of `forward`, where ZeRO stage 3 has it whole.
    """

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return F.linear(x, self.weight[start:stop], self.bias[start:stop])


class Attention(nn.Module):
    """The projections of multi-head self-attention, with the names of timm's (qkv and proj with biases)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = PartialLinear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def project(self, x_NE: Tensor, first_query: int, n_keys: int) -> tuple[Tensor, Tensor, Tensor]:
        """q of the rows from first_query on, k and v of the first n_keys rows, each (rows, heads, width of a head).

        No row is neither: first_query <= n_keys.
        """
        rows, width = x_NE.shape
        only_read_NE, both_NE, only_ask_NE = x_NE.split([first_query, n_keys - first_query, rows - n_keys])
        q_NE, kv_NE = self.qkv(both_NE).split([width, 2 * width], dim=1)
        if len(only_read_NE):
            kv_NE = torch.cat([self.qkv(only_read_NE, width), kv_NE])
        if len(only_ask_NE):
            q_NE = torch.cat([q_NE, self.qkv(only_ask_NE, 0, width)])
        return q_NE.unflatten(1, (self.num_heads, -1)), *kv_NE.unflatten(1, (2, self.num_heads, -1)).unbind(1)


def encode_allowed(observed_BL: Tensor) -> Tensor:
    """`query_only` encode p(z | x_A): only x_A are keys; the z-query also reads itself. (B, L+1, L+1) bool.

    Every token reads itself: for x_A and the z-query that is the rule; for tokens that nobody reads it keeps
    the softmax defined when A is empty.
    """
    is_key_BN = F.pad(observed_BL, (0, 1), value=False)
    itself_NN = torch.eye(is_key_BN.shape[1], dtype=torch.bool, device=observed_BL.device)
    return is_key_BN[:, None, :] | itself_NN


def decode_allowed(observed_BL: Tensor) -> Tensor:
    """`query_only` decode p(x_T | z, x_S): x_S reads x_S; z reads x_S and z; [M] reads x_S and z. (B, L+1, L+1) bool.

    x_S never reads z: its stream is the one of encode x_S. Mask tokens are queries, never keys.
    """
    is_key_BN = F.pad(observed_BL, (0, 1), value=True)
    is_observed_BN = F.pad(observed_BL, (0, 1), value=False)
    is_z_N = torch.arange(is_key_BN.shape[1], device=observed_BL.device) == is_key_BN.shape[1] - 1
    return is_key_BN[:, None, :] & ~(is_observed_BN[:, :, None] & is_z_N)
