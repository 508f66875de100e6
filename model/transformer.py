"""The trunk: standard pre-LN transformer blocks, one loop over them, and any way to attend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.attention import Attention


@dataclass(frozen=True, eq=False)
class Layer:
    """Which rows of a layer ask, those from first_query on, and which are asked, the first n_keys; none is neither.

    order_N: the order in which the rows are put first; None: they stay as they are.
    """

    first_query: int
    n_keys: int
    order_N: Tensor | None = None


class Attend(Protocol):
    """How rows attend to one another. layer: a Layer, of the kind that this way needs."""

    def __call__(self, layer: Any, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: Any) -> tuple[Tensor, Any]:
        """The answers of the heads, y_QHK, and what the same layer of the next pass gets as `kept`."""


def attend_by_mask(allowed_BQK: Tensor | None, batch: int) -> Attend:
    """All tokens of so many samples, as many of each; allowed_BQK as in model.attention."""
    mask = None if allowed_BQK is None else allowed_BQK[:, None]

    def attend(layer: Layer, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: None) -> tuple[Tensor, None]:
        q_BHNK, k_BHNK, v_BHNK = (rows.unflatten(0, (batch, -1)).transpose(1, 2) for rows in (q_QHK, k_NHK, v_NHK))
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=mask)
        return y_BHNK.transpose(1, 2).flatten(0, 1), None

    return attend


class Mlp(nn.Module):
    """Two linear layers with a GELU between them. Parameter names are timm's."""

    def __init__(self, width: int, hidden: int, out_features: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out_features)

    def forward(self, x_NE: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_NE)))


class Block(nn.Module):
    """Pre-LN block: (4+2r)d² + (9+r)d parameters. Parameter names are timm's, so its weights load."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), embed_dim)

    def forward(self, x_NE: Tensor, layer: Layer, attend: Attend, kept: object = None) -> tuple[Tensor, object]:
        """Rows in, those that ask out, and what `attend` keeps."""
        qkv = self.before_attention(x_NE, layer.first_query, layer.n_keys)
        y_QHK, keep = attend(layer, *qkv, kept)
        return self.after_attention(x_NE[layer.first_query :], y_QHK), keep

    def before_attention(self, x_NE: Tensor, first_query: int, n_keys: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the rows, as `Attention.project` gives them."""
        return self.attn.project(self.norm1(x_NE), first_query, n_keys)

    def after_attention(self, x_QE: Tensor, y_QHK: Tensor) -> Tensor:
        """The rows that asked, and the answers of their heads, to the rows that leave the block."""
        x_QE = x_QE + self.attn.proj(y_QHK.flatten(1))
        return x_QE + self.mlp(self.norm2(x_QE))


class Trunk(nn.Module):
    """A stack of blocks.

    recomputes: in training, keep of each block what enters it, and compute the rest again in the backward.
    """

    def __init__(self, depth: int, embed_dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.recomputes = False
        blocks = (Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]  # torch does not say of what

    def start_as_identity(self) -> None:
        """Let every block add nothing at first: depth then costs no signal, and each block grows from what is there."""
        for block in self.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)

    def matrices(self) -> dict[str, tuple[int, int, int]]:
        """The names of the weights that are matrices, and of each (how many, rows, columns): q, k and v are three."""
        shapes = {name: tuple(p.shape) for name, p in self.named_parameters() if p.ndim == 2}
        return {
            name: (3, rows // 3, columns) if name.endswith("attn.qkv.weight") else (1, rows, columns)
            for name, (rows, columns) in shapes.items()
        }

    def forward(
        self, x_NE: Tensor, inner: Layer, last: Layer, attend: Attend, kept: Sequence = ()
    ) -> tuple[Tensor, list]:
        """Rows through all blocks, the last one by `last`: what asks there comes out, and what each block kept."""
        keeps = []
        for depth, block in enumerate(self.blocks):
            layer = last if depth == len(self.blocks) - 1 else inner
            if layer.order_N is not None:
                x_NE = x_NE.index_select(0, layer.order_N)
            inputs = x_NE, layer, attend, kept[depth] if kept else None
            if self.recomputes and torch.is_grad_enabled():
                x_NE, keep = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x_NE, keep = block(*inputs)
            keeps.append(keep)
        return x_NE, keeps

    def all_tokens(self, x_BNE: Tensor, allowed_BQK: Tensor | None) -> Tensor:
        """Samples of equal length, all tokens of them; allowed_BQK as in model.attention."""
        batch, tokens, _ = x_BNE.shape
        layer = Layer(0, batch * tokens)
        x_NE, _ = self(x_BNE.flatten(0, 1), layer, layer, attend_by_mask(allowed_BQK, batch))
        return x_NE.unflatten(0, (batch, tokens))
