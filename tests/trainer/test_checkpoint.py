"""Checkpoints: complete or absent, and never believed unchecked."""

import hashlib
import json

import pytest
import torch

from data.errors import UserError
from trainer.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from trainer.run_directory import RunDirectory


def checkpoint(images: int) -> Checkpoint:
    tensors = {
        kind: {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}
        for kind in ("weights", "ema", "exp_avg", "exp_avg_sq")
    }
    return Checkpoint(tensors, {"images": images, "step": images // 8, "seed": 0})


def test_round_trip(tmp_path):
    saved = checkpoint(640)
    path = save_checkpoint(tmp_path, saved, keep=2)
    assert path.name == "img-000000000640"
    assert sorted(p.name for p in path.iterdir()) == [
        "ema.safetensors", "manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors",
    ]  # fmt: skip
    loaded = load_checkpoint(path)
    assert loaded.state == {"format": 1, **saved.state}
    assert loaded.tensors.keys() == saved.tensors.keys()
    for kind, tensors in saved.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(loaded.tensors[kind][name], value)


def test_the_last_ones_stay(tmp_path):
    for images in (8, 16, 24, 32):
        save_checkpoint(tmp_path, checkpoint(images), keep=2)
    assert [path.name[-2:] for path in list_checkpoints(tmp_path)] == ["24", "32"]


def test_an_interrupted_one_is_no_checkpoint_and_does_no_harm(tmp_path):
    save_checkpoint(tmp_path, checkpoint(8), keep=2)
    half = tmp_path / ".writing-img-000000000016"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (half / "of an older version").write_bytes(b"")
    assert len(list_checkpoints(tmp_path)) == 1
    load_checkpoint(save_checkpoint(tmp_path, checkpoint(16), keep=2))


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "absent"])
def test_damage_is_found_and_the_file_named(tmp_path, name, damage):
    path = save_checkpoint(tmp_path, checkpoint(8), keep=2)
    content = bytearray((path / name).read_bytes())
    if damage == "truncated":
        (path / name).write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
    else:
        (path / name).unlink()
    with pytest.raises(UserError, match="img-000000000008") as refusal:
        load_checkpoint(path)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(8), keep=2)
    state = json.loads((path / "state.json").read_text())
    content = json.dumps(state | {"format": 99}).encode()
    (path / "state.json").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        load_checkpoint(path)


def test_the_same_images_again_replace_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path, checkpoint(8), keep=2)
    again = checkpoint(8)
    path = save_checkpoint(tmp_path, again, keep=2)
    assert torch.equal(load_checkpoint(path).tensors["ema"]["a.bias"], again.tensors["ema"]["a.bias"])


def test_a_run_goes_on_from_the_newest(tmp_path):
    run = RunDirectory(str(tmp_path))
    assert run.newest_checkpoint() is None
    for images in (8, 1000, 24):
        save_checkpoint(run.checkpoints, checkpoint(images), keep=3)
    assert run.newest_checkpoint().name == "img-000000001000"
