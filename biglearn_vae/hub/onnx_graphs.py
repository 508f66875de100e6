"""A trained model as two ONNX graphs, for machines without torch."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.hub.files import DECODER, ENCODER
from biglearn_vae.observation import Observation, pixels_of
from data.errors import UserError

_MOST_BYTES = 2**31 - 2**24  # of weights: a file of ONNX holds 2 GiB


class _Graph(nn.Module):
    """A computation of a model, with the weights that it uses."""

    def __init__(self, vae: BigLearnVAE, compute: Callable[..., tuple[Tensor, ...]]):
        super().__init__()
        self.weights = nn.ModuleList(part for part in (vae.model, vae.codec) if part is not None)
        self.compute = compute

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.compute(*inputs)


def onnx_files(vae: BigLearnVAE) -> dict[str, bytes]:
    """encoder.onnx and decoder.onnx, of a model on the CPU, for batches of any size.

    The encoder makes mu and logvar (B, Z) of p(z | x_S) out of images (B, H, W, 3) in [0, 1] and observed (B, L), bool,
    the patches that are known, row by row. The decoder makes completed (B, H, W, 3), the mean of p(x | z, x_S) with the
    known patches as they are, out of z (B, Z) and both: where nothing is observed, of p(x | z). The joint VAE takes
    whole images and z alone. All float32. UserError when the packages are not installed, or the model is too large.
    """
    try:
        import onnxscript  # noqa: F401  # which torch.onnx needs
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: install what writes ONNX with `pip install 'biglearn-vae[onnx]'`") from None
    if sum(p.nbytes for part in (vae.model, vae.codec) if part for p in part.parameters()) > _MOST_BYTES:
        raise UserError("the weights are more than a file of ONNX holds, 2 GiB: leave --onnx out")
    side, patches = vae.description.data.image_size, vae.description.data.patches

    def known(images_BHWC: Tensor, observed_BL: Tensor) -> Observation:
        return Observation(images_BHWC, pixels_of(observed_BL, side), observed_BL)

    def encode(images_BHWC: Tensor, observed_BL: Tensor) -> tuple[Tensor, ...]:
        return vae.encode_portion(known(images_BHWC, observed_BL))

    def decode(z_BZ: Tensor, images_BHWC: Tensor, observed_BL: Tensor) -> tuple[Tensor, ...]:
        given = known(images_BHWC, observed_BL)
        return (given.complete(*vae.decode_portion(given, z_BZ)),)

    def encode_whole(images_BHWC: Tensor) -> tuple[Tensor, ...]:
        return encode(images_BHWC, torch.ones(images_BHWC.shape[0], patches, dtype=torch.bool))

    def decode_alone(z_BZ: Tensor) -> tuple[Tensor, ...]:
        batch = z_BZ.shape[0]  # len() would be a number
        return decode(z_BZ, torch.zeros(batch, side, side, 3), torch.zeros(batch, patches, dtype=torch.bool))

    images, z = torch.rand(2, side, side, 3), torch.randn(2, vae.description.model.latent_dim)
    if vae.method.is_conditional:
        given = {"images": images, "observed": torch.arange(2 * patches).view(2, patches) % 2 == 0}
        encoder, decoder = (encode, given), (decode, {"z": z, **given})
    else:
        encoder, decoder = (encode_whole, {"images": images}), (decode_alone, {"z": z})
    return {
        ENCODER: _traced(vae, *encoder, ["mu", "logvar"]),
        DECODER: _traced(vae, *decoder, ["completed"]),
    }


def _traced(vae: BigLearnVAE, compute: Callable, inputs: dict[str, Tensor], outputs: list[str]) -> bytes:
    """The graph of a computation; the first dimension of what goes in and comes out is the batch."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        shapes = (tuple({0: batch} for _ in inputs),)
        program = torch.export.export(_Graph(vae, compute).eval(), tuple(inputs.values()), dynamic_shapes=shapes)
        made = torch.onnx.export(program, input_names=[*inputs], output_names=outputs, dynamo=True, verbose=False)
    model = made.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # has the paths of this machine
    return model.SerializeToString()
