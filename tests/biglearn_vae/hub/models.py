"""Models as they are initialised, small, and whether ONNX is what they are."""

import numpy as np
import onnxruntime
import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from data.read.config import DataConfig
from model.biglearn import BigLearnModel, ModelConfig
from model.objective import ObjectiveConfig
from model.patch_autoencoder.codec import PatchCodec
from model.patch_autoencoder.network import PatchAutoencoder

SIZES = {"embed_dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "latent_dim": 4}
CLOSE = {"rtol": 0, "atol": 1e-4}


def untrained(method: str, mask_tokens: str, *, of_codes: bool = False) -> BigLearnVAE:
    """A model of digits of 32x32 pixels, 16 patches of them, or of the codes of 4."""
    torch.manual_seed(0)
    config = ModelConfig(**SIZES, mask_tokens=mask_tokens, residual_init="xavier")
    tokens = {"patch_size": 16, "code_dim": 512} if of_codes else {"patch_size": 8}
    data = DataConfig(source="digits", image_size=32, **tokens)
    of = Description(method=method, data=data, model=config, objective=ObjectiveConfig(), seed=0, images=0)
    codec = PatchCodec(PatchAutoencoder(), torch.randn(512) / 10, torch.rand(512) + 0.1, "0" * 64) if of_codes else None
    model = BigLearnModel(config, method, data.token_dim, data.patches).requires_grad_(False).eval()
    return BigLearnVAE(model, of, codec=codec)


def ran(content: bytes, **inputs: torch.Tensor) -> list[torch.Tensor]:
    """What comes out of a graph of ONNX."""
    session = onnxruntime.InferenceSession(content)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, arrays)]


def assert_as_torch(vae: BigLearnVAE, files: dict[str, bytes]) -> None:
    """ONNX computes what a conditional model does: batches of any size, everything known, a part, nothing."""
    side, patches, latent = vae.description.data.image_size, vae.description.data.patches, vae.model.config.latent_dim
    for batch in (1, 5):
        images, z = torch.rand(batch, side, side, 3), torch.randn(batch, latent)
        observed = torch.rand(batch, patches) < 0.5
        observed[0], observed[-1] = True, False  # for one image: nothing
        given = vae.observe(images).hide(~observed)
        mu, logvar = ran(files["encoder.onnx"], images=images, observed=observed)
        torch.testing.assert_close((mu, logvar), tuple(vae.encode(given)), **CLOSE)
        (completed,) = ran(files["decoder.onnx"], z=z, images=images, observed=observed)
        torch.testing.assert_close(completed, vae.decode(z, given), **CLOSE)
        assert torch.equal(completed[given.seen_BHW], images[given.seen_BHW])
