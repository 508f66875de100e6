"""The trunk: standard pre-LN transformer blocks."""

from torch import Tensor, nn

from model.attention import Attention
from model.timm_layers import Mlp


class Block(nn.Module):
    """Pre-LN block: (4+2r)d² + (9+r)d parameters. Parameter names are timm's, so its weights load."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(self, x_BND: Tensor, allowed_BQK: Tensor | None) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND), allowed_BQK)
        return x_BND + self.mlp(self.norm2(x_BND))

    def before_attention(self, x_NE: Tensor, first_query: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of packed rows, as `Attention.project` gives them."""
        return self.attn.project(self.norm1(x_NE), first_query, keys)

    def after_attention(self, x_QE: Tensor, y_QHK: Tensor) -> Tensor:
        """The rows that asked, and the answers of their heads, to the rows that leave the block."""
        x_QE = x_QE + self.attn.proj(y_QHK.flatten(1))
        return x_QE + self.mlp(self.norm2(x_QE))


class Trunk(nn.Module):
    """A stack of blocks; `allowed_BQK` as in model.attention."""

    def __init__(self, depth: int, embed_dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))

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

    def forward(self, x_BND: Tensor, allowed_BQK: Tensor | None) -> Tensor:
        for block in self.blocks:
            x_BND = block(x_BND, allowed_BQK)
        return x_BND
