"""PatchAE: its count, its order of pixels, its independence of the neighbours."""

import torch

from model.patch_autoencoder import network as patch_autoencoder
from model.patch_autoencoder.network import PatchAutoencoder


def test_parameter_count_is_the_papers():
    assert sum(p.numel() for p in PatchAutoencoder().parameters()) == 2_432_003


def test_each_patch_is_coded_on_its_own():
    torch.manual_seed(0)
    model, x_ND = PatchAutoencoder(), torch.rand(4, 768)
    together, alone = model.encode(x_ND), torch.cat([model.encode(x_D[None]) for x_D in x_ND])
    assert together.shape == (4, 512)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert model.decode(together).shape == (4, 768)


def test_bf16_weights_take_float_pixels():
    model = PatchAutoencoder().bfloat16()
    code_NC = model.encode(torch.rand(2, 768))
    assert (code_NC.dtype, model.decode(code_NC).dtype) == (torch.bfloat16, torch.float32)


def test_pixels_are_in_row_column_channel_order():
    """A translation by one pixel along a row moves what the first convolution sees along its last axis."""
    model, seen = PatchAutoencoder(), []
    model.encoder[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x_HWC = torch.rand(16, 16, 3)
    model.encode(x_HWC.reshape(1, 768))
    torch.testing.assert_close(seen[0][0], (x_HWC.permute(2, 0, 1) - 0.5) / 0.25)


def test_portions_without_gradients_change_nothing(monkeypatch):
    torch.manual_seed(0)
    model, x_ND = PatchAutoencoder(), torch.rand(10, 768)
    whole_ND = model.decode(model.encode(x_ND)).detach()
    monkeypatch.setitem(patch_autoencoder._PORTION, "cpu", 3)
    seen = []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        torch.testing.assert_close(model.decode(model.encode(x_ND)), whole_ND, rtol=1e-4, atol=1e-5)
    assert seen == [3, 3, 3, 1]


def test_a_picture_passes_almost_linearly_before_any_training():
    """Half the contrast gives half the code, and the decoder, as a transpose, points back to where the patch was."""
    torch.manual_seed(0)
    model = PatchAutoencoder()
    coarse_NCHW = torch.rand(64, 3, 4, 4)
    x_ND = torch.nn.functional.interpolate(coarse_NCHW, 16, mode="bilinear").permute(0, 2, 3, 1).flatten(1)
    code_NC, half_NC = model.encode(x_ND), model.encode(0.5 + 0.5 * (x_ND - 0.5))
    assert (half_NC - 0.5 * code_NC).norm() < 0.15 * half_NC.norm()
    there_ND, back_ND = x_ND - 0.5, model.decode(code_NC) - 0.5
    cosine = (there_ND * back_ND).sum() / (there_ND.norm() * back_ND.norm())
    assert cosine > 0.5
    assert 0.3 < back_ND.norm() / there_ND.norm() < 2
