"""The models: encode p(z | x_S) and decode p(x_T | z, x_S) for any S and T (paper Sec. 3.2, Fig. 1).

The methods (model/method.py) share one code and, by construction, one parameter count:
- biglearn_u: one trunk Ξ for encode and decode (eq. 7);
- biglearn_t: a trunk Φ that encodes and a trunk Θ that decodes (eq. 6);
- vae: the joint VAE of eq. 1, with two trunks as biglearn_t, trained with S empty, T everything, prior N(0, I).
"""

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data.section import Section
from model.attention import decode_allowed, encode_allowed
from model.gaussian import Gaussian, Prior
from model.method import METHODS
from model.transformer import Mlp, Trunk

INITIAL_LOGVAR = -4.0


class ModelConfig(Section):
    """Sizes of the transformer. `biglearn_u` has one trunk of encoder_depth + decoder_depth layers."""

    embed_dim: int = Field(128, gt=0)  # width of a token, d; a multiple of num_heads and of 4
    encoder_depth: int = Field(4, gt=0)  # layers
    decoder_depth: int = Field(4, gt=0)  # layers
    num_heads: int = Field(4, gt=0)  # of attention, each embed_dim / num_heads wide
    mlp_ratio: float = Field(2, gt=0)  # hidden width of a block's MLP, times embed_dim
    latent_dim: int = Field(32, gt=0)  # of z
    mask_tokens: Literal["dense", "query_only"] = "query_only"  # [M] is a token as every other, or only asks
    logvar_limit: float = Field(10, gt=0)  # log variances are clamped to [-limit, limit]
    residual_init: Literal["zero", "xavier"] = "zero"  # of the weights through which a block adds to what passes it
    input_scale: float = Field(1.0, gt=0)  # of the patches where they enter; a position is 0.7 in root mean square

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.embed_dim % self.num_heads or self.embed_dim % 4:
            raise ValueError(f"embed_dim {self.embed_dim} must be divisible by num_heads {self.num_heads} and by 4")
        return self


class TokenEmbedding(nn.Module):
    """The interface shared by encode and decode: whatever enters a trunk is embedded here.

    Patches stand at their places with a fixed 2-D sin-cos position; [M] stands where nothing is observed; the
    last token is z, either as a question (z_query) or as an input (z_embed).
    """

    position_LE: Tensor

    def __init__(self, token_dim: int, patches: int, embed_dim: int, latent_dim: int, input_scale: float):
        super().__init__()
        self.input_scale = input_scale
        self.patch_embed = nn.Linear(token_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.z_query = nn.Parameter(torch.empty(embed_dim))
        self.z_embed = nn.Sequential(
            nn.Linear(latent_dim, 2 * embed_dim),
            nn.GELU(),
            nn.Linear(2 * embed_dim, 2 * embed_dim),
            nn.GELU(),
            nn.Linear(2 * embed_dim, embed_dim),
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.register_buffer("position_LE", _positions(round(patches**0.5), embed_dim), persistent=False)

    def forward(
        self,
        x_ND: Tensor | None = None,
        place_N: Tensor | None = None,
        z_BZ: Tensor | None = None,
        z_queries: int = 0,
        masked_place_N: Tensor | None = None,
    ) -> Tensor:
        """Tokens one after the other, (rows, E): patches at their places, each z, so many z-queries, [M] at places."""
        dtype = self.mask_token.dtype
        position_LE = self.position_LE.to(dtype)
        rows = []
        if x_ND is not None:
            rows.append(self.patch_embed(x_ND.to(dtype) * self.input_scale) + position_LE[place_N])
        if z_BZ is not None:
            rows.append(self.z_embed(z_BZ.to(dtype)))
        rows.append(self.z_query.expand(z_queries, -1))
        if masked_place_N is not None:
            rows.append(self.mask_token + position_LE[masked_place_N])
        return self.norm(torch.cat(rows))


def _positions(side: int, embed_dim: int) -> Tensor:
    """(side², embed_dim): sines of row and column, then cosines, each of frequencies from 1 down to 1/10000."""
    bands = embed_dim // 4
    with torch.device("cpu"):  # arithmetic on the meta device imports torch's compiler
        frequency_F = 1 / 10000 ** (torch.arange(bands) / bands)
        place_L = torch.arange(side * side)
        angle_LAF = torch.stack([place_L // side, place_L % side], dim=1)[:, :, None] * frequency_F
        position_LE = torch.cat([angle_LAF.sin(), angle_LAF.cos()], dim=1).flatten(1)
    return position_LE.to(torch.get_default_device())


class BigLearnModel(nn.Module):
    """Encode and decode for any S and T. The readable oracle that every fast path is tested against."""

    def __init__(self, config: ModelConfig, method: str, token_dim: int, patches: int):
        super().__init__()
        width, z, ratio = config.embed_dim, config.latent_dim, config.mlp_ratio
        self.config, self.method, self.patches = config, METHODS[method], patches
        self.embed = TokenEmbedding(token_dim, patches, width, z, config.input_scale)
        if self.method.trunks == 1:
            self.trunk = Trunk(config.encoder_depth + config.decoder_depth, width, config.num_heads, ratio)
        else:
            self.encoder = Trunk(config.encoder_depth, width, config.num_heads, ratio)
            self.decoder = Trunk(config.decoder_depth, width, config.num_heads, ratio)
        self.z_head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), Mlp(width, int(ratio * width), 2 * z))
        self.x_head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), Mlp(width, 2 * width, token_dim))
        self.apply(_initialise)
        if config.residual_init == "zero":
            for trunk in {self.encoding_trunk, self.decoding_trunk}:
                trunk.start_as_identity()
        self._initialise_variance()

    @property
    def encoding_trunk(self) -> Trunk:
        return self.trunk if self.method.trunks == 1 else self.encoder

    @property
    def decoding_trunk(self) -> Trunk:
        return self.trunk if self.method.trunks == 1 else self.decoder

    def _initialise_variance(self) -> None:
        """Start with sigma = e^-2 everywhere.

        A z that is mostly noise is not worth reading, and the decoder would first learn to ignore it.
        """
        head: Any = self.z_head[1].fc2
        z = self.config.latent_dim
        nn.init.zeros_(head.weight[z:])
        nn.init.constant_(head.bias[z:], INITIAL_LOGVAR)

    def encode(self, x_BLD: Tensor, observed_BL: Tensor) -> Gaussian:
        """p(z | x_A) = N(mu, diag exp(logvar)) for any observed set A; the empty one gives the prior p(z).

        x_BLD: patches; what stands at unobserved places does not matter. observed_BL: bool, True in A.
        float32, logvar_BZ clamped to ±logvar_limit.
        """
        allowed = encode_allowed(observed_BL) if self.config.mask_tokens == "query_only" else None
        h_BNE = self.encoding_trunk.all_tokens(self._tokens(x_BLD, observed_BL, None), allowed)
        return self.z_distribution(h_BNE[:, -1])

    def prior(self, x_BLD: Tensor, observed_BL: Tensor) -> Prior:
        """p(z | x_S), learned or fixed, as the method has it."""
        if self.method.fixed_prior:
            return self.method.fixed_prior(torch.zeros(len(x_BLD), self.config.latent_dim, device=x_BLD.device))
        return self.encode(x_BLD, observed_BL)

    def z_distribution(self, h_BE: Tensor) -> Gaussian:
        """float32, from what came out for the z-query."""
        mu_BZ, logvar_BZ = self.z_head(h_BE).float().chunk(2, dim=-1)
        return Gaussian(mu_BZ, logvar_BZ.clamp(-self.config.logvar_limit, self.config.logvar_limit))

    def decode(self, z_BZ: Tensor, x_BLD: Tensor, observed_BL: Tensor, wanted_BT: Tensor | None = None) -> Tensor:
        """The mean of p(x_T | z, x_S) = N(mean, I).

        observed_BL: bool, True in S. wanted_BT: int64 places of T in each image, outside S; None asks for every
        place (what then stands at places in S has no meaning). Returns float32 mean_BTD (T = L for None).
        """
        allowed = decode_allowed(observed_BL) if self.config.mask_tokens == "query_only" else None
        h_BLE = self.decoding_trunk.all_tokens(self._tokens(x_BLD, observed_BL, z_BZ), allowed)[:, :-1]
        if wanted_BT is not None:
            h_BLE = h_BLE.gather(1, wanted_BT[..., None].expand(-1, -1, h_BLE.shape[-1]))
        return self.x_head(h_BLE).float()

    def _tokens(self, x_BLD: Tensor, observed_BL: Tensor, z_BZ: Tensor | None) -> Tensor:
        """All L+1 tokens of each sample, (B, L+1, E): patches or [M], then z or, without one, the z-query."""
        batch, patches = observed_BL.shape
        place_L = torch.arange(patches, device=x_BLD.device)
        rows = self.embed(x_BLD.flatten(0, 1), place_L.repeat(batch), z_BZ, batch if z_BZ is None else 0, place_L)
        patch_NE, z_BE, mask_LE = rows.split([batch * patches, batch, patches])
        patch_BLE = torch.where(observed_BL[..., None], patch_NE.unflatten(0, (batch, patches)), mask_LE)
        return torch.cat([patch_BLE, z_BE[:, None]], dim=1)


def _initialise(module: nn.Module) -> None:
    """Xavier-uniform matrices, zero biases; [M] and the z-query small and normal."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, TokenEmbedding) and not module.mask_token.is_meta:  # see `_positions`
        nn.init.normal_(module.mask_token, std=0.02)
        nn.init.normal_(module.z_query, std=0.02)
