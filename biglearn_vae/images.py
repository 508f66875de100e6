"""The images, or the codes of images, that a configuration names: their codec, their index, the stream of a split."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from biglearn_vae.run_paths import RunPaths
from biglearn_vae.trained import read_patch_autoencoder
from data.errors import UserError
from data.files import cache_folder
from data.order.holdout import HOLDOUT, split_training, trained_images
from data.read.config import DataConfig
from data.read.index import encode_command, load_index, prepare_command
from data.read.stream import ImageIndex, Stream, fits_memory
from data.read.views import Views, is_mirrored
from data.storage.addresses import TARS
from data.storage.cache import BlockCache
from data.tars.manifest import TarIndex, index_command, read_manifest
from model.patch_autoencoder.codec import CODEC, PatchCodec, read_codec, weights_sha256

CACHE = ("cache", "cache_bytes")  # keys of data that say what is kept of what lies elsewhere


def open_codec(data: DataConfig) -> PatchCodec | None:
    """What makes codes of pixels, as it lies beside the latent shards; None where the tokens are pixels.

    UserError when it is absent or damaged, or of another PatchAE than the run of stage 1 now has.
    """
    if not data.code_dim:
        return None
    path, command = f"{data.latents}/{CODEC}", _encode_command(data)
    try:
        codec = read_codec(path)
    except OSError as error:
        one = "or all that comes before training with `python launch/pipeline.py`"
        raise UserError(f"{path} cannot be read ({error.strerror}): make the codes with {command()}, {one}") from None
    except UserError as error:
        raise UserError(f"{error}: make the codes again with {command('--overwrite')}") from None
    stage_1 = Path(data.patch_autoencoder) if data.patch_autoencoder else None
    is_there = stage_1 and RunPaths(stage_1).config.exists()  # latents may have been copied without it
    if is_there and weights_sha256(read_patch_autoencoder(stage_1)) != codec.patch_autoencoder:
        raise UserError(
            f"{data.latents} has the codes of another PatchAE than {stage_1} (trained on since?): make them again"
            f" with {command('--overwrite')}, or take them as they are with data.patch_autoencoder=null"
        )
    return codec


def _encode_command(data: DataConfig) -> Callable[..., str]:
    from_what = {"images": encoded_images(data), "patch_autoencoder": data.patch_autoencoder or "RUN"}
    return partial(encode_command, data.latents, *what_is_encoded(data), **from_what)


def what_is_encoded(data: DataConfig) -> list[str]:
    """The options of launch/encode.py that say what a configuration needs of the images."""
    if data.encode == "on_the_fly":
        return ["--statistics-only"]
    return ["--flip"] if data.flip else []


def encoded_images(data: DataConfig) -> tuple[str, ...]:
    """The options of launch/encode.py that name the images of a configuration."""
    named = {"--images": data.shards}
    if data.source == TARS:
        named |= {"--image-size": str(data.image_size), "--index": data.index}
        named |= {"--test-shards": data.test_shards, "--label": data.label_field}
    named |= {f"--{key.replace('_', '-')}": str(getattr(data, key)) for key in CACHE if key in data.model_fields_set}
    return tuple(text for option, value in named.items() if value for text in (option, value))


def open_index(data: DataConfig, codec: PatchCodec | None = None) -> ImageIndex:
    """The index of the shards to read, which must hold what the configuration says.

    codec: what the codes must be of, in latent shards, unless they are made on the fly; None: the images are read.
    """
    if codec and data.encode == "ahead":
        command = _encode_command(data)
        root, index = data.latents, load_index(data.latents, data.source, command)
        if not index.codes or (index.codes.patch_autoencoder_sha256, index.checksum) != (
            codec.patch_autoencoder,
            codec.images,
        ):
            raise UserError(
                f"{root} has shards of another PatchAE, or of other images, than its {CODEC}: write them again with"
                f" {command('--overwrite')}"
            )
    elif data.source == TARS:
        return _open_tars(data, codec)
    else:
        root, index = data.shards, load_index(data.shards, data.source)
        if index.codes:
            raise UserError(f"{root} holds codes, not images: name it as data.latents, and give data.shards the images")
        if codec and codec.images != index.checksum:
            raise UserError(
                f"{data.latents} has the statistics of other images than those of {root}: make them again with"
                f" {_encode_command(data)('--overwrite')}"
            )
    if index.image_shape[0] != data.image_size:
        size, here = data.image_size, index.image_shape[0]
        remedy = prepare_command(data.source, f"{data.shards}_{size}", "--image-size", str(size))
        raise UserError(f"{root} holds images of {here} pixels, data.image_size is {size}: write others with {remedy}")
    return index


def _open_tars(data: DataConfig, codec: PatchCodec | None) -> TarIndex:
    folder = data.index_folder
    command = index_command(data.shards, data.test_shards, data.label_field, folder)
    manifest = read_manifest(folder, command)
    asked, found = ((x.shards, x.test_shards, x.label_field) for x in (data, manifest))
    if asked != found:
        raise UserError(f"{folder} is the index of other shards ({manifest.shards}): make another with {command}")
    index = TarIndex(manifest, folder, data.image_size)
    if codec and codec.images != index.checksum:
        raise UserError(
            f"{data.latents} has the statistics of other images than those of {data.shards}: make them again with"
            f" {_encode_command(data)('--overwrite')}"
        )
    return index


def order_law(data: DataConfig, index: ImageIndex) -> str:
    """Names the function that gives the order in which a run sees its training images."""
    images = trained_images(index.images.get("train", 0), data.holdout)
    return index.order(_root(data, index), images, 0, fits_memory(index, images, data.memory_bytes)).law


def open_stream(
    data: DataConfig,
    index: ImageIndex,
    split: str,
    seed: int | None,
    device: torch.device | str = "cpu",
    codec: PatchCodec | None = None,
) -> Stream:
    """One split of an opened index: pixels or, with a codec, standardised codes.

    seed: of the order, in which training images are shown as data.flip and data.crop say; None: all as they lie.
    split: one of the index, of which "train" is without the data.holdout images that are held out, or "holdout", these.
    Raises UserError when no images are held out, or all, when codes of mirrored images are absent, and as `Stream`.
    """
    stored, part = split, None
    if split == HOLDOUT and not data.holdout:
        raise UserError("no images are held out, data.holdout is 0: take the split test, or train with data.holdout=N")
    if split == HOLDOUT or (split == "train" and data.holdout):
        trained, held_out = split_training(index.images.get("train", 0), data.holdout, index.draw_held_out)
        stored, part = "train", held_out if split == HOLDOUT else trained
    codec = codec.to(device) if codec else None
    is_shown = seed is not None and split == "train" and data.has_views
    if is_shown and index.codes and not index.codes.mirrored:
        raise UserError(
            f"{data.latents} has no codes of mirrored images, which data.flip needs: make the codes again with"
            f" {_encode_command(data)('--overwrite')}, or set data.flip=false"
        )
    encode = (codec.standardise if index.codes else codec.encode) if codec else None
    return Stream(
        index,
        _root(data, index),
        stored,
        patch_size=data.patch_size,
        seed=seed,
        part=part,
        device=device,
        memory_bytes=data.memory_bytes,
        show=Views(seed, data.patch_size, data.flip, data.crop) if is_shown and not index.codes else None,
        is_mirrored=partial(is_mirrored, seed) if is_shown and index.codes else None,
        transform=encode,
        cache=BlockCache(Path(data.cache) if data.cache else cache_folder() / "blocks", data.cache_bytes),
    )


def _root(data: DataConfig, index: ImageIndex) -> str:
    return data.latents if index.codes else data.shards
