"""Between pixels and standardised codes, and the file of a codec, which may come from elsewhere."""

import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data.errors import UserError
from model.patch_autoencoder.codec import CODEC, PatchCodec, codes_of, read_codec, weights_sha256
from model.patch_autoencoder.network import PatchAutoencoder


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return PatchCodec(PatchAutoencoder(), torch.randn(512), torch.rand(512) + 0.1, images="0" * 64)


@pytest.fixture
def path(codec, tmp_path):
    (tmp_path / CODEC).write_bytes(codec.to_bytes())
    return tmp_path / CODEC


def test_tokens_are_standardised_float16_codes_and_come_back_as_what_the_patchae_decodes(codec):
    x_BLD = torch.rand(3, 4, 768)
    code_BLC = codes_of(codec.autoencoder, x_BLD)
    assert (code_BLC.dtype, code_BLC.shape) == (torch.float16, (3, 4, 512))
    token_BLC = codec.encode(x_BLD)
    assert torch.equal(token_BLC, (code_BLC.float() - codec.mean_C) / codec.std_C)
    expected_ND = codec.autoencoder.decode(code_BLC.float().flatten(0, 1))
    torch.testing.assert_close(codec.decode(token_BLC).flatten(0, 1), expected_ND, rtol=1e-4, atol=1e-5)


def test_a_codec_comes_back_from_its_file(codec, path):
    found = read_codec(path)
    assert (found.patch_autoencoder, found.checksum) == (codec.patch_autoencoder, codec.checksum)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in codec.state_dict().items())
    assert not any(p.requires_grad for p in found.parameters())


def test_its_file_has_the_format_that_loaders_ask_for_and_the_same_bytes_each_time(codec, path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata == {"format": "pt", "of": f"{codec.images} {codec.checksum}"}
    assert len({codec.to_bytes() for _ in range(20)}) == 1
    save_file(load_file(path), path, {"of": metadata["of"]})  # as files were that have no format
    assert read_codec(path).checksum == codec.checksum


def test_the_checksum_is_of_every_weight():
    torch.manual_seed(0)
    model = PatchAutoencoder()
    seen = {weights_sha256(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(weights_sha256(model))
    assert len(seen) == 1 + len([*model.parameters()])


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


def spoil(path, fault):
    content, tensors = path.read_bytes(), load_file(path)
    if fault in ("pickle", "cut", "huge", "bit"):
        contents = {"pickle": pickle.dumps(Trap()), "cut": content[:100_000], "huge": content + bytes(2**27)}
        contents["bit"] = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
        path.write_bytes(contents[fault])
        return
    if fault == "zero variance":
        tensors["std_C"][7] = 0
    elif fault == "nan":
        tensors["mean_C"][7] = torch.nan
    elif fault == "shape":
        tensors["std_C"] = tensors["std_C"][:-1]
    elif fault == "name":
        tensors["other"] = tensors.pop("mean_C")
    elif fault == "dtype":
        tensors = {name: value.half() for name, value in tensors.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


@pytest.mark.parametrize("fault", ["pickle", "cut", "huge", "zero variance", "nan", "shape", "name", "dtype", "bit"])
def test_what_is_no_codec_is_refused_by_name(path, fault):
    spoil(path, fault)
    with pytest.raises(UserError, match=str(path)):
        read_codec(path)
