"""Checkpoints: complete or absent, kept by a policy, and never believed unchecked."""

import errno
import hashlib
import json
import os

import pytest
import torch

from biglearn_vae import checkpoint as module
from biglearn_vae.checkpoint import (
    Checkpoint,
    State,
    complete,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    remove_leftovers,
    start_writing,
    write_part,
)
from data.errors import UserError
from trainer.checkpoints.retention import CheckpointConfig, remove_others

KINDS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def checkpoint(images: int, score: float | None = None) -> Checkpoint:
    tensors = {kind: {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)} for kind in KINDS}
    return Checkpoint(tensors, State(images=images, step=images // 8, score=score, identity={"seed": 0}))


def save(directory, saved: Checkpoint, parts: int = 1):
    aside = start_writing(directory, saved.state.images)
    fingerprints = {}
    for part in range(parts):
        mine = {kind: dict(list(saved.tensors[kind].items())[part::parts]) for kind in KINDS}
        fingerprints |= write_part(aside, mine, part, parts)
    return complete(aside, saved.state, fingerprints)


@pytest.mark.parametrize("parts", [1, 2, 3])  # of three, one is empty
def test_round_trip(tmp_path, parts):
    saved = checkpoint(640)
    path = save(tmp_path, saved, parts)
    assert path.name == "img-000000000640"
    assert len(list(path.iterdir())) == 2 + 3 * parts
    loaded = load_checkpoint(path)
    assert loaded.state == saved.state
    for kind, tensors in saved.tensors.items():
        assert loaded.tensors[kind].keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(loaded.tensors[kind][name], value)


def kept(tmp_path, images: int | None = None, **policy) -> list[int]:
    """Those that are left after one at `images`, or the last one, was written."""
    images = images or int(list_checkpoints(tmp_path)[-1].name[4:])
    remove_others(tmp_path, CheckpointConfig(**policy), images, {})
    return [int(path.name[4:]) for path in list_checkpoints(tmp_path)]


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        ({"keep_last": 2, "keep_best": 0}, [56, 64]),
        ({"keep_last": 1, "keep_best": 1}, [24, 64]),
        ({"keep_last": 1, "keep_best": 2}, [24, 40, 64]),
        ({"keep_last": 1, "keep_best": 0, "keep_every_images": 20}, [24, 40, 64]),
        ({"keep_last": 3, "keep_best": 1, "keep_every_images": 30}, [24, 32, 48, 56, 64]),
    ],
)
def test_the_policy_says_which_stay_whenever_it_is_applied(tmp_path, policy, stay):
    scores = {24: -1.0, 40: -2.0, 16: -3.0, 64: -4.0}  # the others were not evaluated
    for images in range(8, 72, 8):
        save(tmp_path, checkpoint(images, scores.get(images)))
        if images % 16 == 0:  # applied on the way, or not
            kept(tmp_path, **policy)
    assert kept(tmp_path, **policy) == stay


def cut_short(path):
    os.truncate(path / "weights.safetensors", 20)


@pytest.mark.parametrize(
    ("policy", "damaged", "stay"),
    [
        ({"keep_last": 1, "keep_best": 0}, 40, [24, 40, 48]),  # beyond where the run is: left alone
        ({"keep_last": 2, "keep_best": 0}, 16, [8, 24, 40, 48]),
        ({"keep_last": 1, "keep_best": 1}, 16, [8, 24, 40, 48]),
        ({"keep_last": 1, "keep_best": 0, "keep_every_images": 8}, 16, [8, 16, 24, 40, 48]),
    ],
)
def test_damaged_ones_and_those_beyond_push_out_no_whole_one(tmp_path, policy, damaged, stay):
    for images, score in ((8, -2.0), (16, -1.0), (40, -0.5), (48, 0.0)):
        save(tmp_path, checkpoint(images, score))
    cut_short(tmp_path / f"img-{damaged:012d}")
    save(tmp_path, checkpoint(24))  # the run went on from 8
    assert kept(tmp_path, 24, **policy) == stay


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_what_cannot_be_read_for_the_moment_is_never_removed(tmp_path, monkeypatch, number):
    for images in (8, 16, 24, 32):
        save(tmp_path, checkpoint(images, -float(images)))

    def fingerprint(path):
        raise OSError(number, os.strerror(number), str(path)) if "img-000000000008" in str(path) else AssertionError

    monkeypatch.setattr(module, "_fingerprint", fingerprint)
    remove_others(tmp_path, CheckpointConfig(keep_last=1, keep_best=1), 32, {tmp_path / "img-000000000016": True})
    assert [int(path.name[4:]) for path in list_checkpoints(tmp_path)] == [8, 16, 32]


def test_what_was_just_written_stays_even_if_another_is_more_of_everything(tmp_path):
    for images in (8, 16):
        save(tmp_path, checkpoint(images, 1.0))
    save(tmp_path, checkpoint(12, 0.0))
    assert kept(tmp_path, 12, keep_last=1, keep_best=1) == [8, 12, 16]


def test_an_interrupted_one_is_no_checkpoint_and_does_no_harm(tmp_path):
    save(tmp_path, checkpoint(8))
    half = start_writing(tmp_path, 16)
    (half / "weights.safetensors").write_bytes(b"half")
    (half / "of an older version").write_bytes(b"")
    assert len(list_checkpoints(tmp_path)) == 1
    load_checkpoint(save(tmp_path, checkpoint(16)))
    start_writing(tmp_path, 24)
    remove_leftovers(tmp_path)
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["08", "16"]


def test_others_may_read_what_the_umask_lets_them(shared_folder, as_nobody):
    for umask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        before = os.umask(umask)
        path = save(shared_folder, checkpoint(8 + umask), parts=2)
        os.umask(before)
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {mode}
    with as_nobody(), pytest.raises(UserError, match=r"img-000000000071 cannot be|manifest.json cannot be") as caught:
        newest_whole(shared_folder)
    assert "ask its owner" in str(caught.value)
    assert "remove" not in str(caught.value)
    path.chmod(0o700)


def test_a_file_that_may_not_be_read_is_not_damaged(shared_folder, as_nobody):
    for images in (8, 16):
        save(shared_folder, checkpoint(images))
    (shared_folder / "img-000000000016/ema.safetensors").chmod(0o600)
    with as_nobody(), pytest.raises(UserError, match=r"ema.safetensors cannot be read \(Permission denied\): ask"):
        newest_whole(shared_folder)
    shared_folder.chmod(0o700)
    with as_nobody(), pytest.raises(UserError, match=r"cannot be read \(Permission denied\): ask its owner"):
        list_checkpoints(shared_folder)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "altered at the end", "longer", "absent"])
def test_damage_is_found_the_file_named_and_the_last_whole_one_used(tmp_path, name, damage):
    earlier, path = save(tmp_path, checkpoint(8)), save(tmp_path, checkpoint(16))
    content = bytearray((path / name).read_bytes())
    if damage == "truncated":
        (path / name).write_bytes(content[: len(content) // 2])
    elif damage.startswith("altered"):
        content[len(content) // 2 if damage == "altered" else -1] ^= 1
        (path / name).write_bytes(content)
    elif damage == "longer":
        (path / name).write_bytes(content + content)
    else:
        (path / name).unlink()
    with pytest.raises(UserError, match="img-000000000016") as refusal:
        load_checkpoint(path)
    assert "\n" not in str(refusal.value)
    used, _, faults = newest_whole(tmp_path)
    assert used == earlier
    if (name, damage) != ("manifest.json", "absent"):  # without a manifest it never was a checkpoint
        assert faults == [str(refusal.value)]
        assert f"{path}/{name}" in faults[0]


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path):
    assert newest_whole(tmp_path) == (None, None, [])
    (save(tmp_path, checkpoint(8)) / "state.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint in .* is whole"):
        newest_whole(tmp_path)


def test_the_newest_before_a_step(tmp_path):
    paths = [save(tmp_path, checkpoint(images)) for images in (8, 1000, 24)]  # steps 1, 125, 3
    assert [newest_whole(tmp_path, before_step=step)[0] for step in (200, 124, 3, 2, 0)] == [
        paths[1], paths[2], paths[2], paths[0], None,
    ]  # fmt: skip


def forge(path, name: str, content: bytes) -> None:
    """Another content of a file, with a manifest that agrees."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = save(tmp_path, checkpoint(8))
    state = json.loads((path / "state.json").read_text())
    forge(path, "state.json", json.dumps(state | {"format": 99}).encode())
    with pytest.raises(UserError, match="format 99, this version reads 2"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "weights.pt", "extra.safetensors"])
def test_a_manifest_that_names_other_files_is_refused(tmp_path, name):
    path = save(tmp_path, checkpoint(8))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[name] = manifest["ema.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not name the files of a checkpoint"):
        load_checkpoint(path)


def test_a_part_that_is_missing_is_noticed(tmp_path):
    path = save(tmp_path, checkpoint(8), parts=2)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["ema-00002-of-00002.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not name the files of a checkpoint"):
        load_checkpoint(path)


def test_the_same_images_again_replace_the_checkpoint(tmp_path):
    save(tmp_path, checkpoint(8))
    again = checkpoint(8)
    assert torch.equal(load_checkpoint(save(tmp_path, again)).tensors["ema"]["a.bias"], again.tensors["ema"]["a.bias"])
