"""A model of PatchAE codes is used like any other: images in, images out."""

import subprocess
import sys

import pytest
import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import WEIGHTS, Description
from biglearn_vae.pictures import capability_rows
from data.errors import UserError
from data.patches import patchify, unpatchify
from data.read.config import DataConfig
from model.biglearn import BigLearnModel, ModelConfig
from model.objective import ObjectiveConfig
from model.patch_autoencoder.codec import CODEC, PatchCodec
from model.patch_autoencoder.network import PatchAutoencoder

SIZES = {"embed_dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2, "latent_dim": 4}
MODEL = ModelConfig(**SIZES, residual_init="xavier")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    data = DataConfig(source="digits", image_size=32, patch_size=16, code_dim=512)
    of = Description(method="biglearn_u", data=data, model=MODEL, objective=ObjectiveConfig(), seed=0, images=0)
    codec = PatchCodec(PatchAutoencoder(), torch.randn(512) / 10, torch.rand(512) + 0.1, images="0" * 64)
    model = BigLearnModel(MODEL, "biglearn_u", data.token_dim, data.patches).requires_grad_(False)
    return BigLearnVAE(model, of, codec=codec)


@pytest.fixture
def images():
    return torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(1))


def test_codes_stand_between_images_and_the_model(vae, images):
    everything_BL, nothing_BL = torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    token_BLC = vae.codec.encode(patchify(images, 16))
    mu_BZ, logvar_BZ = vae.model.encode(token_BLC, everything_BL)
    found = vae.encode(images)
    torch.testing.assert_close((found.mu_BZ, found.logvar_BZ), (mu_BZ, logvar_BZ))
    decoded_BLC = vae.model.decode(mu_BZ, token_BLC, nothing_BL)
    torch.testing.assert_close(vae.reconstruct(images), unpatchify(vae.codec.decode(decoded_BLC), 16))


def test_known_pixels_come_back_untouched_and_hidden_ones_do_not_matter(vae, images):
    images[:, :20] = torch.nan  # of the second half of the rows only the lower patches are whole
    given = vae.observe(images)
    assert given.observed_BL.tolist() == [[False] * 2 + [False] * 2] * 3
    images[:, :16], images[:, 16:20] = torch.nan, 0.5
    given = vae.observe(images)
    assert given.observed_BL.tolist() == [[False] * 2 + [True] * 2] * 3
    for painted in (*vae.inpaint(given, draws=2), *vae.pseudo_gibbs(given, draws=1, burn_in=1, steps=1)):
        assert torch.equal(painted[:, 16:], images[:, 16:])
        assert painted.isfinite().all()
    others = images.clone()
    others[:, :16] = 0.3
    hidden = vae.observe(others).hide(~given.observed_BL)
    assert torch.equal(vae.inpaint(hidden, draws=1)[:, :, :16], vae.inpaint(given, draws=1)[:, :, :16])


def test_every_capability_gives_images_of_the_size_that_went_in(vae, images):
    assert vae.generate(2).shape == (2, 32, 32, 3)
    assert vae.interpolate(images, images.flip(0), steps=3).shape == (3, 3, 32, 32, 3)
    before, after = vae.decoding_sensitivity(images, [0, 1])
    assert (before.shape, after.shape) == ((3, 32, 32, 3), (2, 3, 32, 32, 3))
    before, after = vae.encoding_sensitivity(images, torch.full_like(images, 0.1))
    assert not torch.equal(before.mu_BZ, after.mu_BZ)
    assert vae.elbo(images).shape == vae.log_likelihood_bound(images, samples=2).shape == (3,)
    assert all(tiles.shape[1:] == (32, 32, 3) for _, tiles in capability_rows(vae, images))


def test_an_export_has_its_codec_and_needs_no_training_code(vae, images, tmp_path, root):
    folder = tmp_path / "model"
    vae.export(folder)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch; sys.modules['trainer'] = None; from biglearn_vae.capabilities import BigLearnVAE; "
        f"vae = BigLearnVAE.load({str(folder)!r}); "
        f"torch.save(vae.reconstruct(torch.load({str(tmp_path / 'images.pt')!r})), {str(tmp_path / 'found.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), vae.reconstruct(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [CODEC, WEIGHTS])
def test_an_export_with_a_damaged_or_absent_part_is_refused(vae, tmp_path, name):
    vae.export(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        BigLearnVAE.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        BigLearnVAE.load(tmp_path)
