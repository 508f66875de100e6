"""From images to latent shards: what they hold, their statistics, resuming, refusals; and training on them."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.utils import Bunch

from biglearn_vae.checkpoint import State
from biglearn_vae.images import open_codec, open_index, open_stream
from biglearn_vae.trained import read_patch_autoencoder
from data.errors import UserError
from data.patches import patchify, unpatchify
from data.prepare import prepare
from data.prepare.at_once import prepare_at_once
from data.prepare.shard_files import locked
from data.prepare.verify import verify
from data.read.config import DataConfig
from data.read.index import INDEX_NAME, encode_command, load_index
from data.read.stream import Stream
from data.sources.digits import Digits
from data.storage.storage import storage_of
from model.patch_autoencoder.codec import CODEC, codes_of, read_codec, weights_sha256
from model.patch_autoencoder.network import PatchAutoencoder
from tests.data.tars.conftest import write_tars
from tests.servers import s3_of
from trainer import encoding
from trainer.build import build_parts
from trainer.checkpoints.writer import CheckpointWriter
from trainer.encoding import encode_images, merge, moments_of
from trainer.resume import identity, restore


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return PatchAutoencoder().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def digits_shards(tmp_path_factory) -> Path:
    """Every fifth of the digits, instead of all."""
    out, every = tmp_path_factory.mktemp("images") / "digits", datasets.load_digits()
    fifth = Bunch(images=every.images[::5], target=every.target[::5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda: fifth)
        patch.setattr(Digits, "splits", {"train": 288, "test": 72})
        prepare("digits", out, progress=False)
    return out


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_RECORD_IMAGES", 20)
        patch.setattr(encoding, "_SHARD_RECORDS", 5)
        yield


def encode(images, out, autoencoder, world, **options):
    index = load_index(images)
    data = DataConfig(source=index.source, shards=str(images), image_size=index.image_shape[0], patch_size=1)
    return encode_images(data, index, out, autoencoder, world, command=partial(encode_command, out), **options)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, digits_shards, autoencoder, world):
    """The codes of the digits as four shards. Copy the folder to change it."""
    out = tmp_path_factory.mktemp("latents") / "digits"
    summary = encode(digits_shards, out, autoencoder, world)
    assert "the codes of 360 images in 4 shards" in summary
    return out


@pytest.fixture
def latents(encoded, tmp_path):
    return shutil.copytree(encoded, tmp_path / "latents")


@pytest.fixture(scope="module")
def with_mirrored(tmp_path_factory, digits_shards, autoencoder, world):
    """The same with the codes of the mirrored images. Copy the folder to change it."""
    out = tmp_path_factory.mktemp("with-mirrored") / "digits"
    encode(digits_shards, out, autoencoder, world, flip=True)
    return out


def test_shards_hold_the_codes_and_labels_of_the_images(encoded, digits_shards, autoencoder):
    index = load_index(encoded)
    assert (index.codes.patches, index.codes.code_dim) == (4, 512)
    assert index.codes.patch_autoencoder_sha256 == weights_sha256(autoencoder)
    assert index.checksum == load_index(digits_shards).checksum
    assert verify(encoded) == []
    position_B = torch.arange(90, 110)  # over a seam of shards
    pixels = Stream(load_index(digits_shards), digits_shards, "train", patch_size=16, seed=None).read(position_B)
    for memory_bytes in (0, 2**31):
        codes = Stream(index, encoded, "train", patch_size=16, seed=None, memory_bytes=memory_bytes).read(position_B)
        assert torch.equal(codes.label_B, pixels.label_B)
        expected_BLC = codes_of(autoencoder, pixels.x_BLD).float()
        torch.testing.assert_close(codes.x_BLD, expected_BLC, rtol=2e-3, atol=1e-6)  # a step of float16


def test_codes_and_their_codec_may_lie_in_s3(encoded, digits_shards, tmp_path, monkeypatch):
    data = DataConfig(
        source="digits", shards=str(digits_shards), image_size=32, patch_size=16, code_dim=512, latents=str(encoded)
    )
    with s3_of(encoded) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        far = data.model_copy(update={"latents": "s3://bucket/set", "cache": str(tmp_path)})
        read = []
        for each in (data, far):
            codec = open_codec(each)
            stream = open_stream(each, open_index(each, codec), "train", None, codec=codec)
            read.append(stream.read(torch.arange(0, 288, 10)).x_BLD)
    assert torch.equal(*read)


def test_codes_of_tar_files_are_written_to_s3(autoencoder, world, tmp_path, monkeypatch):
    tars = write_tars(tmp_path / "tars", images=120, per_tar=40, size=40)
    with s3_of(tars) as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        data = DataConfig(
            source="webdataset", shards="s3://bucket/set/{00000..00002}.tar", index=str(tmp_path / "index"),
            cache=str(tmp_path / "cache"), image_size=32, patch_size=16, code_dim=512, latents="s3://bucket/latents",
        )  # fmt: skip
        prepare_at_once(data)
        pixels = data.model_copy(update={"code_dim": None})
        index = open_index(pixels)
        command = partial(encode_command, data.latents)
        encode_it = partial(encode_images, pixels, index, data.latents, autoencoder, world, command=command)
        assert "the codes of 120 images in 3 shards" in encode_it()
        assert "is whole, nothing to do" in encode_it()
        assert verify(data.latents) == []
        codec = open_codec(data)
        stream = open_stream(data, open_index(data, codec), "train", None, codec=codec)
        on_the_fly = data.model_copy(update={"encode": "on_the_fly"})
        other = open_stream(on_the_fly, open_index(on_the_fly, codec), "train", None, codec=codec)
        position_B = torch.arange(0, stream.images, 7)
        ahead, at_once = stream.read(position_B), other.read(position_B)
    assert torch.equal(ahead.label_B, at_once.label_B)
    torch.testing.assert_close(ahead.x_BLD, at_once.x_BLD, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("overwrite", [False, True])
def test_images_are_never_lost_to_their_codes(digits_shards, autoencoder, world, tmp_path, overwrite):
    """However their folder is written, and whatever of them is left."""
    images = shutil.copytree(digits_shards, tmp_path / "images")
    before = {path.name: path.read_bytes() for path in images.iterdir() if path.name != ".lock"}
    index, moved = images / INDEX_NAME, tmp_path / "index"
    (tmp_path / "link").symlink_to(images)
    for out in (f"file://{images}", f"{images}/", tmp_path / "link"):
        with pytest.raises(UserError, match="holds the images: choose another --out"):
            encode(images, out, autoencoder, world, overwrite=overwrite)
    index.rename(moved)  # interrupted: the sidecars alone say what they are of
    with pytest.raises(UserError, match="holds images: choose another --out"):
        encode(digits_shards, images, autoencoder, world, overwrite=overwrite)
    moved.rename(index)
    assert {path.name: path.read_bytes() for path in images.iterdir() if path.name != ".lock"} == before


def test_codes_are_never_lost_to_images(latents):
    with pytest.raises(UserError, match="holds codes: choose another --out"):
        prepare("digits", latents, overwrite=True, progress=False)


def test_webdataset_reads_them(encoded):
    url = str(encoded / "train-{000000..000002}.tar")
    found = [*webdataset.WebDataset(url, shardshuffle=False).decode()]
    assert sum(len(record["labels.npy"]) for record in found) == 288
    assert all(record["codes.npy"].dtype == np.float16 for record in found)


def test_the_statistics_are_those_of_all_training_codes(encoded):
    stream = Stream(load_index(encoded), encoded, "train", patch_size=16, seed=None)
    code_NC = stream.read(torch.arange(stream.images)).x_BLD.double().flatten(0, 1)
    codec = read_codec(encoded / CODEC)
    torch.testing.assert_close(codec.mean_C.double(), code_NC.mean(0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(codec.std_C.double(), code_NC.std(0, correction=0), rtol=1e-6, atol=0)
    token_NC = codec.standardise(code_NC.float())
    assert token_NC.mean(0).abs().max() < 1e-4
    assert (token_NC.std(0) - 1).abs().max() < 1e-3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31), st.floats(-1e4, 1e4))
def test_moments_of_parts_are_those_of_the_whole(sizes, seed, offset):
    code_NC = np.random.default_rng(seed).normal(size=(sum(sizes), 3)) + offset
    parts = np.split(code_NC, np.cumsum(sizes)[:-1])
    merged = merge(moments_of(part) for part in parts)
    assert merged.count == len(code_NC)
    np.testing.assert_allclose(merged.mean, code_NC.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.deviation, np.square(code_NC - code_NC.mean(0)).sum(0), rtol=1e-6, atol=1e-9)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_whole_folder_is_left_alone(latents, digits_shards, autoencoder, world):
    before = {path: path.stat().st_mtime_ns for path in latents.iterdir() if path.name != ".lock"}
    assert "is whole, nothing to do" in encode(digits_shards, latents, autoencoder, world)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    "lost",
    [
        (INDEX_NAME,),
        (CODEC,),
        (INDEX_NAME, CODEC, "train-000001.tar"),
        (INDEX_NAME, CODEC, "train-000002.tar.json", "train-000002.tar", "test-000000.tar"),
        ("train-000000.tar",),
    ],
)
def test_an_interrupted_folder_is_completed_to_the_same_bytes(
    latents, encoded, digits_shards, autoencoder, world, lost
):
    sidecar = (latents / "train-000000.tar.json").read_text()
    for name in lost:
        (latents / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in latents.glob("*.tar")}
    (latents / "train-000009.tar").write_bytes(b"of another request")
    (latents / "train-000009.tar.json").write_text(sidecar.replace("train-000000.tar", "train-000009.tar"))
    encode(digits_shards, latents, autoencoder, world)
    assert content(latents) == content(encoded)
    for path, mtime in kept.items():
        if f"{path.name}.json" not in lost:
            assert path.stat().st_mtime_ns == mtime


def test_the_codes_of_mirrored_images_lie_behind_those_of_the_images(
    with_mirrored, encoded, digits_shards, autoencoder
):
    index = load_index(with_mirrored)
    assert verify(with_mirrored) == []
    assert index.checksum == load_index(encoded).checksum
    assert (with_mirrored / CODEC).read_bytes() == (encoded / CODEC).read_bytes()
    position_B = torch.arange(90, 110)
    pixels = Stream(load_index(digits_shards), digits_shards, "train", patch_size=16, seed=None).read(position_B)
    mirrored_BLD = patchify(unpatchify(pixels.x_BLD, 16).flip(2), 16)
    one, other = (
        Stream(index, with_mirrored, "train", patch_size=16, seed=None, is_mirrored=chosen).read(position_B).x_BLD
        for chosen in (None, lambda position_B: position_B % 2 == 1)
    )
    plain_BLC, mirrored_BLC = (codes_of(autoencoder, x_BLD).float() for x_BLD in (pixels.x_BLD, mirrored_BLD))
    expected_BLC = torch.where((position_B % 2 == 1)[:, None, None], mirrored_BLC, plain_BLC)
    torch.testing.assert_close(one, plain_BLC, rtol=2e-3, atol=1e-6)  # a step of float16
    torch.testing.assert_close(other, expected_BLC, rtol=2e-3, atol=1e-6)
    assert not torch.allclose(mirrored_BLC, plain_BLC, rtol=0.1)


def test_a_folder_keeps_the_codes_of_mirrored_images(with_mirrored, digits_shards, autoencoder, world, tmp_path):
    latents = shutil.copytree(with_mirrored, tmp_path / "latents")
    assert "is whole, nothing to do" in encode(digits_shards, latents, autoencoder, world)
    (latents / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar.* --flip --overwrite"):
        load_index(latents)
    encode(digits_shards, latents, autoencoder, world)
    assert content(latents) == content(with_mirrored)


def test_a_folder_without_mirrored_images_is_replaced_on_request(
    with_mirrored, latents, digits_shards, autoencoder, world
):
    with pytest.raises(UserError, match=r"holds other data \(no codes of mirrored images\).*--overwrite"):
        encode(digits_shards, latents, autoencoder, world, flip=True)
    encode(digits_shards, latents, autoencoder, world, flip=True, overwrite=True)
    assert content(latents) == content(with_mirrored)


def test_the_statistics_alone_are_the_same(encoded, digits_shards, autoencoder, world, tmp_path):
    encode(digits_shards, tmp_path / "out", autoencoder, world, statistics_only=True)
    assert content(tmp_path / "out") == {CODEC: (encoded / CODEC).read_bytes()}
    assert "is whole" in encode(digits_shards, tmp_path / "out", autoencoder, world, statistics_only=True)


def other_autoencoder():
    torch.manual_seed(1)
    return PatchAutoencoder().requires_grad_(False).eval()


@pytest.mark.parametrize("has_index", [True, False])
def test_the_codes_of_another_patchae_are_refused_and_replaced_on_request(latents, digits_shards, world, has_index):
    if not has_index:
        (latents / INDEX_NAME).unlink()
    with pytest.raises(UserError, match=r"another PatchAE.*launch/encode\.py.*--overwrite"):
        encode(digits_shards, latents, other_autoencoder(), world)
    encode(digits_shards, latents, other_autoencoder(), world, overwrite=True)
    assert load_index(latents).codes.patch_autoencoder_sha256 == weights_sha256(other_autoencoder())
    assert verify(latents) == []


def test_shards_of_another_patchae_that_an_interruption_left_are_written_again(latents, digits_shards, world, tmp_path):
    for name in (INDEX_NAME, CODEC):
        (latents / name).unlink()
    encode(digits_shards, latents, other_autoencoder(), world)
    encode(digits_shards, tmp_path / "clean", other_autoencoder(), world)
    assert content(latents) == content(tmp_path / "clean")


def test_an_interrupted_overwriting_leaves_no_index(latents, digits_shards, world, monkeypatch):
    monkeypatch.setattr(encoding._Encoder, "encode", lambda *_: pytest.exit("killed"))
    with pytest.raises(pytest.exit.Exception):
        encode(digits_shards, latents, other_autoencoder(), world, overwrite=True)
    assert not [*latents.glob("*.json")]
    assert not (latents / CODEC).exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["photos.tar", CODEC, "train-000000.tar"])
def test_files_of_others_are_never_replaced(digits_shards, autoencoder, world, tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"--out|damaged"):
        encode(digits_shards, tmp_path, autoencoder, world, overwrite=overwrite)
    assert content(tmp_path) == {name: b"mine"}


def test_a_damaged_codec_is_replaced_on_request(latents, encoded, digits_shards, autoencoder, world):
    for path in latents.iterdir():
        if path.name != CODEC:
            path.unlink()
    os.truncate(latents / CODEC, 10_000)
    with pytest.raises(UserError, match="damaged"):
        encode(digits_shards, latents, autoencoder, world)
    encode(digits_shards, latents, autoencoder, world, overwrite=True)
    assert content(latents) == content(encoded)


def test_two_writers_of_a_folder_are_refused(latents, digits_shards, autoencoder, world):
    with locked(storage_of(latents), wait=False), pytest.raises(UserError, match="is being written by another process"):
        encode(digits_shards, latents, autoencoder, world)


def test_moments_that_cannot_be_of_the_codes_are_made_again(latents, encoded, digits_shards, autoencoder, world):
    for name in (INDEX_NAME, CODEC):
        (latents / name).unlink()
    for number, change in enumerate(({"count": 1}, {"mean": [0.0] * 500}, {"deviation": [-1.0] * 512})):
        path = latents / f"train-{number:06d}.tar.json"
        sidecar = json.loads(path.read_text())
        sidecar["moments"] |= change
        path.write_text(json.dumps(sidecar))
    encode(digits_shards, latents, autoencoder, world)
    assert content(latents) == content(encoded)


def test_other_images_are_refused(latents, autoencoder, world, tmp_path):
    prepare("digits", tmp_path / "larger", image_size=64, progress=False)
    with pytest.raises(UserError, match="holds other data"):
        encode(tmp_path / "larger", latents, autoencoder, world)
    for name in [path.name for path in latents.iterdir() if path.name not in (CODEC, ".lock")]:
        (latents / name).unlink()
    with pytest.raises(UserError, match="of other images"):
        encode(tmp_path / "larger", latents, autoencoder, world, statistics_only=True)


@pytest.mark.parametrize("size", [8, 40])
def test_images_that_do_not_divide_into_patches_are_refused(autoencoder, world, tmp_path, size):
    prepare("digits", tmp_path / "images", image_size=size, progress=False)
    with pytest.raises(UserError, match=f"{size}x{size} pixels.*patches of 16: prepare them with --image-size"):
        encode(tmp_path / "images", tmp_path / "out", autoencoder, world)


def test_images_are_never_overwritten_by_their_codes(digits_shards, autoencoder, world):
    before = content(digits_shards)
    with pytest.raises(UserError, match="holds the images: choose another --out"):
        encode(digits_shards, digits_shards / "." / "", autoencoder, world, overwrite=True)
    assert content(digits_shards) == before


def test_codes_are_no_images(encoded, autoencoder, world, tmp_path):
    with pytest.raises(UserError, match="holds codes already"):
        encode(encoded, tmp_path / "out", autoencoder, world)


def test_codes_that_do_not_vary_are_a_clear_error(digits_shards, world, tmp_path):
    dead = other_autoencoder()
    dead.encoder[-1].weight[3] = 0
    with pytest.raises(UserError, match=r"1 of 512 dimensions of the codes do not vary .*\(first 3\)"):
        encode(digits_shards, tmp_path / "out", dead, world, statistics_only=True)


def test_codes_that_are_not_finite_are_a_clear_error(digits_shards, world, tmp_path):
    diverged = other_autoencoder()
    diverged.encoder[-1].bias[3] = 1e6  # over what float16 can hold
    with pytest.raises(UserError, match="train images 0 to 19 are not finite"):
        encode(digits_shards, tmp_path / "out", diverged, world)
    assert not (tmp_path / "out" / INDEX_NAME).exists()


def test_damaged_images_are_counted_and_sound_ones_stand_in(digits_shards, autoencoder, world, tmp_path, monkeypatch):
    images = shutil.copytree(digits_shards, tmp_path / "images")
    record = load_index(images).splits["train"][0].records[0]
    with (images / "train-000000.tar").open("r+b") as file:
        file.seek(record.content.offset + record.content.bytes - 1024 * 10)  # the tenth from the end
        file.write(b"\xff" * 8)
    assert "sound images stand in for 1 damaged ones" in encode(images, tmp_path / "out", autoencoder, world)
    code_BLC = (
        Stream(load_index(tmp_path / "out"), tmp_path / "out", "train", patch_size=16, seed=None)
        .read(torch.arange(274, 284))
        .x_BLD
    )
    equal_B = (code_BLC[1:] == code_BLC[:-1]).flatten(1).all(1)
    assert equal_B.sum() == 1  # the damaged one is like the next one
    (replaced,) = load_index(tmp_path / "out").replaced
    assert replaced.stand_in == replaced.index + 1 == 275 + equal_B.int().argmax()
    assert "CRC-32" in replaced.reason
    (tmp_path / "out" / INDEX_NAME).unlink()
    assert "sound images stand in for 1 damaged ones" in encode(images, tmp_path / "out", autoencoder, world)
    monkeypatch.setattr(encoding, "_MAX_DAMAGED", 0)
    with pytest.raises(UserError, match="more than 0 images .* are damaged"):
        encode(images, tmp_path / "other", autoencoder, world)


# Training on them


@pytest.fixture
def coded(tiny, latents):
    """coded(*overrides): a configuration of a run on these latents."""
    return lambda *overrides: tiny("data.patch_size=16", "data.code_dim=512", f"data.latents={latents}", *overrides)


@pytest.fixture
def flipped(with_mirrored, coded):
    """coded(*overrides), of which half of the training images are mirrored."""
    return partial(coded, "data.flip=true", f"data.latents={with_mirrored}")


@pytest.mark.parametrize(
    ("configured", "holdout", "memory_bytes"),
    [("coded", 0, 2**31), ("coded", 7, 2**31), ("flipped", 7, 2**31), ("flipped", 0, 0)],
)
def test_encoding_on_the_fly_gives_what_the_shards_hold(request, world, configured, holdout, memory_bytes):
    coded = request.getfixturevalue(configured)
    named = (f"data.holdout={holdout}", f"data.memory_bytes={memory_bytes}")
    ahead, on_the_fly = (build_parts(coded(f"data.encode={how}", *named), world) for how in ("ahead", "on_the_fly"))
    assert (ahead.train_stream.images, ahead.test_stream.images) == (288 - holdout, holdout or 72)
    position_B = torch.arange(270, 300)  # over the seam of an epoch
    for mine, theirs in ((ahead.train_stream, on_the_fly.train_stream), (ahead.test_stream, on_the_fly.test_stream)):
        one, other = mine.read(position_B), theirs.read(position_B)
        assert torch.equal(one.label_B, other.label_B)
        std_C = ahead.codec.std_C
        step = 2e-3 * (one.x_BLD * std_C + ahead.codec.mean_C).abs() / std_C + 1e-6  # a step of float16
        assert ((one.x_BLD - other.x_BLD).abs() <= step).all()
    of_both = [identity(coded(), parts.index, parts.codec) for parts in (ahead, on_the_fly)]
    assert of_both[0] == of_both[1]


def test_codes_of_mirrored_images_that_are_absent_name_the_command(coded, world):
    with pytest.raises(UserError, match=r"no codes of mirrored images.*launch/encode\.py.* --flip --overwrite"):
        build_parts(coded("data.flip=true"), world)


@pytest.mark.parametrize("how", ["ahead", "on_the_fly"])
def test_latents_without_their_codec_name_the_command(coded, latents, world, how):
    (latents / CODEC).unlink()
    with pytest.raises(UserError, match=rf"{CODEC} cannot be read .*launch/encode\.py.*launch/pipeline\.py"):
        build_parts(coded(f"data.encode={how}"), world)


def test_latents_that_are_absent_name_the_command(coded, latents):
    (latents / INDEX_NAME).unlink()
    data = coded("data.patch_autoencoder=runs/one").data
    with pytest.raises(UserError, match=r"index\.json does not exist.*launch/encode\.py --images .* runs/one --out"):
        open_index(data, open_codec(data))


def test_latents_of_another_patchae_than_their_codec_are_refused(coded, latents, digits_shards, world, tmp_path):
    encode(digits_shards, tmp_path / "other", other_autoencoder(), world, statistics_only=True)
    shutil.copy(tmp_path / "other" / CODEC, latents / CODEC)
    with pytest.raises(UserError, match=r"shards of another PatchAE.* than its codec.*--overwrite"):
        build_parts(coded(), world)


def run_of_stage_1(tiny, world, folder):
    config = tiny("method=patch_ae", "data.patch_size=16", f"run_dir={folder}", "seed=5")
    parts = build_parts(config, world)
    from trainer.run_directory import RunDirectory

    run = RunDirectory(config.run_dir)
    run.path.mkdir()
    run.create(config, 0, None, {})
    writer = CheckpointWriter(run.checkpoints, config.checkpoint, parts.engine, parts.shapes)
    writer.start(State(images=0, step=0, identity=identity(config, parts.index, parts.codec)))
    writer.finish()
    return folder


def test_latents_of_another_patchae_than_stage_1_now_has_are_refused(coded, tiny, digits_shards, world, tmp_path):
    stage_1 = run_of_stage_1(tiny, world, tmp_path / "stage_1")
    with pytest.raises(UserError, match=r"codes of another PatchAE than .*stage_1.*data\.patch_autoencoder=null"):
        open_codec(coded(f"data.patch_autoencoder={stage_1}").data)
    assert open_codec(coded(f"data.patch_autoencoder={tmp_path / 'absent'}").data)  # as where latents were copied to
    encode(digits_shards, tmp_path / "its", read_patch_autoencoder(stage_1), world, statistics_only=True)
    assert open_codec(coded(f"data.patch_autoencoder={stage_1}", f"data.latents={tmp_path / 'its'}").data)


def test_a_run_does_not_go_on_with_the_codes_of_another_patchae(coded, latents, digits_shards, world, tmp_path):
    config = coded()
    parts = build_parts(config, world)
    writer = CheckpointWriter(tmp_path / "kept", config.checkpoint, parts.engine, parts.shapes)
    writer.start(State(images=0, step=0, identity=identity(config, parts.index, parts.codec)))
    writer.finish()
    encode(digits_shards, latents, other_autoencoder(), world, overwrite=True)
    others = build_parts(config, world)
    with pytest.raises(UserError, match="codec .* there, .* here"):
        restore(others, tmp_path / "kept", identity(config, others.index, others.codec))


def test_images_are_not_taken_for_codes_nor_codes_for_images(coded, latents, tiny, digits_shards, world, tmp_path):
    with pytest.raises(UserError, match="holds codes, not images"):
        build_parts(tiny("data.patch_size=16", f"data.shards={latents}"), world)
    mistaken = shutil.copytree(digits_shards, tmp_path / "mistaken")
    shutil.copy(latents / CODEC, mistaken / CODEC)
    with pytest.raises(UserError, match="shards of another PatchAE.* than its codec"):
        build_parts(coded(f"data.latents={mistaken}"), world)
