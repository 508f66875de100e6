"""PatchAE, stage 1 of the two-stage training (paper Appendix B): a residual convolutional auto-encoder of one patch."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from data.section import Section
from model.patch_autoencoder.linear_start import start_code, start_convolutions, start_norm

_PIXEL_MEAN, _PIXEL_STD = 0.5, 0.25  # about those of photographs
_GAIN = 1.6  # of a layer behind a SiLU, which about keeps the variance
# Patches that are computed at once without gradients: a CPU's caches hold what 256 of them need.
_PORTION = {"cpu": 256, "cuda": 16_384, "meta": 256}


class PatchAEConfig(Section):
    """How stage 1 uses an image: a patch costs about 0.2 GFLOP to train, so a step need not take all of them."""

    patches_per_image: int = Field(16, gt=0)  # drawn anew each time an image comes; at most those that it has


def _norm_act(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(16, channels), nn.SiLU()


class ResidualBlock(nn.Module):
    """Pre-activation residual block: norm, SiLU, 3x3 convolution, twice."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            *_norm_act(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            *_norm_act(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def start_as_identity(self) -> None:
        (weight, bias), last = (layer.parameters() for layer in self.body if isinstance(layer, nn.Conv2d))
        nn.init.normal_(weight, std=(_GAIN / weight[0].numel()) ** 0.5)
        for parameter in (bias, *last):
            nn.init.zeros_(parameter)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW + self.body(x_NCHW)


class PatchAutoencoder(nn.Module):
    """Encodes each 16x16x3 patch, on its own, to a code of 512 and back: 2,432,003 parameters."""

    patch_size, code_dim = 16, 512

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 128, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(128, 128, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(128, 128, 4, stride=2, padding=1),
            ResidualBlock(128),
            *_norm_act(128),
            nn.Flatten(),
            nn.Linear(512, self.code_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(self.code_dim, 512),
            nn.Unflatten(1, (128, 2, 2)),
            ResidualBlock(128),
            nn.ConvTranspose2d(128, 128, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(128, 128, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            *_norm_act(64),
            nn.Conv2d(64, 3, 3, padding=1),
        )
        self._start()

    def _start(self) -> None:
        """Nearly linear: see `model.patch_autoencoder.linear_start`."""
        encoder, decoder = list[Any](self.encoder), list[Any](self.decoder)
        convolutions = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
        transposes = [layer for layer in decoder if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
        start_convolutions(convolutions, transposes[::-1])
        start_norm(convolutions[-1], encoder[8], paired=False)
        start_norm(transposes[-2], decoder[8], paired=True)
        start_code(encoder[11], decoder[0])
        for block in (encoder[7], decoder[2]):
            block.start_as_identity()

    def encode(self, x_ND: Tensor) -> Tensor:
        """Codes (N, 512) of flattened patches (N, 768), pixels in [0, 1], in row, column, channel order."""
        return _in_portions(self._encode, x_ND)

    def decode(self, code_NC: Tensor) -> Tensor:
        """Flattened patches (N, 768), float32, of codes (N, 512)."""
        return _in_portions(self._decode, code_NC)

    def _encode(self, x_ND: Tensor) -> Tensor:
        scaled_ND = ((x_ND - _PIXEL_MEAN) / _PIXEL_STD).to(self.encoder[0].weight.dtype)  # type: ignore[arg-type]
        return self.encoder(scaled_ND.unflatten(1, (self.patch_size, self.patch_size, 3)).permute(0, 3, 1, 2))

    def _decode(self, code_NC: Tensor) -> Tensor:
        return (self.decoder(code_NC).float() * _PIXEL_STD + _PIXEL_MEAN).permute(0, 2, 3, 1).flatten(1)


def _in_portions(compute: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """All rows at once for training; without gradients a portion after the other, which bounds the memory."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return compute(rows)
    return torch.cat([compute(portion) for portion in rows.split(_PORTION[rows.device.type])])
