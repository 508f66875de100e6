"""What onnxruntime computes is what torch computes."""

import sys

import pytest
import torch

from biglearn_vae.hub import onnx_graphs
from biglearn_vae.hub.onnx_graphs import onnx_files
from data.errors import UserError
from tests.biglearn_vae.hub.models import CLOSE, assert_as_torch, ran, untrained


@pytest.mark.parametrize(
    ("method", "mask_tokens", "of_codes"),
    [
        ("biglearn_u", "dense", True),
        pytest.param("biglearn_u", "query_only", False, marks=pytest.mark.exhaustive),  # tests/launch/test_export.py
        pytest.param("biglearn_u", "dense", False, marks=pytest.mark.exhaustive),
        pytest.param("biglearn_u", "query_only", True, marks=pytest.mark.exhaustive),
        pytest.param("biglearn_t", "query_only", False, marks=pytest.mark.exhaustive),
    ],
)
def test_onnx_is_torch_for_any_batch(method, mask_tokens, of_codes):
    vae = untrained(method, mask_tokens, of_codes=of_codes)
    assert_as_torch(vae, onnx_files(vae))


@pytest.mark.exhaustive
def test_a_joint_vae_takes_whole_images_and_z_alone():
    vae = untrained("vae", "query_only")
    files, images, z = onnx_files(vae), torch.rand(3, 32, 32, 3), torch.randn(3, 4)
    torch.testing.assert_close(tuple(ran(files["encoder.onnx"], images=images)), tuple(vae.encode(images)), **CLOSE)
    torch.testing.assert_close(ran(files["decoder.onnx"], z=z)[0], vae.decode(z), **CLOSE)


def test_what_cannot_be_written_is_said(monkeypatch):
    vae = untrained("biglearn_u", "query_only")
    monkeypatch.setattr(onnx_graphs, "_MOST_BYTES", 1000)
    with pytest.raises(UserError, match="more than a file of ONNX holds"):
        onnx_files(vae)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'biglearn-vae\[onnx\]'"):
        onnx_files(vae)
