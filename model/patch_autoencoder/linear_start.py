"""How PatchAE starts: nearly linear, its decoder the transpose of its encoder.

A narrow network of nonlinear layers takes long to learn to let a picture pass. Here it starts with a blurred one:

- Channels between two layers come in pairs (y, -y), and the layer behind their SiLU takes the difference of a pair,
  which is y: silu(y) - silu(-y) = y.
- Behind a GroupNorm, constants (b, b, -b, -b) that are added to such channels make up nearly all of a group's
  deviation, so that the norm divides by about b whatever the picture is. Its own weight and bias undo both.
- The last activation of the encoder has no pairs, for the code needs every channel. It works about the point where
  SiLU bends least.
- The weights of the convolutions are random and orthogonal, in the central taps of a kernel, 0 elsewhere.
"""

import math

import torch
from torch import Tensor, nn

_INNER_OFFSET, _OUTER_OFFSET = 16.0, 8.0  # b, behind the last convolution of the encoder and of the transposed ones
_INFLECTION = 2.3994  # of SiLU, where it bends least
_SPAN = 0.25  # of the last activation's input: what the unit of a signal is there


@torch.no_grad()
def start_convolutions(convolutions: list[nn.Conv2d], transposes: list[nn.Conv2d | nn.ConvTranspose2d]) -> None:
    """Weights of the encoder's convolutions, first to last, and of the decoder's that undo them, last to first."""
    for layer, transpose in zip(convolutions, transposes, strict=True):
        paired_in, paired_out = layer is not convolutions[0], layer is not convolutions[-1]
        nn.init.zeros_(layer.weight)
        taps = slice(1, 2) if layer.stride == (1, 1) else slice(1, 3)
        central_OIHW = layer.weight[:, :, taps, taps]
        out, fan_in = len(central_OIHW) // (1 + paired_out), central_OIHW[0].numel() // (1 + paired_in)
        basis = nn.init.orthogonal_(torch.empty(out, fan_in)) * max(1.0, out / fan_in) ** 0.5
        basis_OIHW = basis.unflatten(1, (-1, *central_OIHW.shape[2:]))
        if paired_in:
            basis_OIHW = _pairs(basis_OIHW, 1)
        central_OIHW.copy_(_pairs(basis_OIHW, 0) if paired_out else basis_OIHW)
        # The weight of a transposed convolution has its input's channels first, and so is a transpose as it stands.
        turned = isinstance(transpose, nn.ConvTranspose2d)
        transpose.weight.copy_(layer.weight if turned else layer.weight.transpose(0, 1))


def _pairs(x: Tensor, dim: int) -> Tensor:
    """Each slice y of a dimension followed by -y."""
    return torch.stack([x, -x], dim + 1).flatten(dim, dim + 1)


@torch.no_grad()
def start_norm(layer: nn.Conv2d | nn.ConvTranspose2d, norm: nn.GroupNorm, *, paired: bool) -> None:
    """Let `norm`, behind `layer`, pass the layer's output unchanged (paired), or as a part of it about _INFLECTION."""
    offset, span, centre = (_OUTER_OFFSET, 1.0, 0.0) if paired else (_INNER_OFFSET, _SPAN, _INFLECTION)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0] if paired else [1.0, -1.0])
    offset_C = offset * signs.repeat(norm.num_channels // len(signs))
    _, bias = layer.parameters()
    bias.copy_(offset_C)
    norm.weight.fill_(offset * span)
    norm.bias.copy_(centre - span * offset_C)


@torch.no_grad()
def start_code(to_code: nn.Linear, from_code: nn.Linear) -> None:
    """A random rotation of what the last activation changes, and back: each value of a code has a part of all.

    Stage 2 standardises each value of a code. What has values of its own, as fine detail has, would count as much there
    as all the rest.
    """
    gate = 1 / (1 + math.exp(-_INFLECTION))
    slope = gate * (1 + _INFLECTION * (1 - gate))  # of SiLU there
    rotation = nn.init.orthogonal_(torch.empty(to_code.weight.shape)) * (slope * _SPAN) ** -0.5
    to_code.weight.copy_(rotation)
    to_code.bias.copy_(-gate * _INFLECTION * rotation.sum(1))
    from_code.weight.copy_(rotation.T)
    nn.init.zeros_(from_code.bias)
