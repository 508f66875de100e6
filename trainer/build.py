"""From a configuration to the parts of a run."""

import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data.batch import Batch
from data.config import DataConfig
from data.errors import UserError
from data.holdout import HOLDOUT, split_training
from data.index import Index, encode_command, load_index, prepare_command
from data.stream import Stream, prefetch
from model.biglearn import BigLearnModel
from model.codec import CODEC, PatchCodec, read_codec, weights_sha256
from model.masks import Plan, local_positions
from model.packed.rectangles import attend_by_rectangles
from model.patch_autoencoder import PatchAutoencoder
from model.task import BigLearnTask, PatchAETask
from trainer.config import Config
from trainer.engine import Engine
from trainer.run_directory import RunDirectory
from trainer.schedule import Rates, beta_at, ema_decay, learning_share
from trainer.trained import read_patch_autoencoder
from trainer.world import World

log = logging.getLogger(__name__)


def build_task(config: Config) -> nn.Module:
    """The model with its objective, initialised from the seed."""
    torch.manual_seed(config.seed)
    if config.method == "patch_ae":
        return PatchAETask(PatchAutoencoder(), config.patch_ae, config.seed)
    model = BigLearnModel(config.model, config.method, config.data.token_dim, config.data.patches)
    attend = attend_by_rectangles
    if config.engine.attention == "triton":
        from model.packed.triton_kernel import attend_in_one_launch as attend  # Triton is there where CUDA is
    return BigLearnTask(model, config.objective, config.seed, attend)


def meta_task(config: Config) -> nn.Module:
    """The task on tensors without storage, to count what it costs; always with attention that can be counted."""
    countable = config.engine.model_copy(update={"attention": "sdpa"})
    with torch.device("meta"):
        return build_task(config.model_copy(update={"engine": countable}))


def build_engine(config: Config, task: nn.Module, world: World) -> Engine:
    """The engine that `engine.name` asks for; it takes ownership of `task`.

    An engine is imported when it is asked for: DeepSpeed and Accelerate need not both be there.
    """
    task = task.to(world.device)
    if config.engine.compile:
        torch._dynamo.config.optimize_ddp = False  # it would cut the compiled parts at the sizes of DDP's buckets
        task.compile()
        if world.is_main:
            log.warning("engine.compile: the first step takes about a minute more")
    if config.engine.name == "accelerate":
        from trainer.accelerate_engine import AccelerateEngine

        return AccelerateEngine(config.engine, config.optimizer, task, world, config.train.max_grad_norm)
    from trainer.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        config.engine,
        config.optimizer,
        task,
        world,
        micro_batch_size=config.micro_batch_size(world.size),
        accumulation_steps=config.train.accumulation_steps,
        max_grad_norm=config.train.max_grad_norm,
    )


@dataclass(frozen=True)
class Parts:
    """What a step needs. `copy` is the task once more, outside the engine, for weights that are looked at.

    test_stream: the images that it is evaluated on, in an order of their own: those held out, where there are any.
    codec: of a model of codes, else None.
    """

    index: Index
    train_stream: Stream
    test_stream: Stream
    engine: Engine
    copy: nn.Module
    codec: PatchCodec | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by name."""
        return {name: tuple(p.shape) for name, p in self.copy.named_parameters()}


def build_parts(config: Config, world: World) -> Parts:
    """Everything that a configuration describes, on all ranks. UserError, on all ranks, when they do not fit."""
    with world.agreed():
        if config.engine.attention == "triton" and world.device.type != "cuda":
            raise UserError("engine.attention=triton needs a GPU: set engine.attention=sdpa")
        if config.engine.compile and not any(shutil.which(name) for name in _compilers(world.device)):
            raise UserError(
                f"engine.compile needs a compiler, and there is no {' and no '.join(_compilers(world.device))}: "
                "install one (Debian: apt install g++) or set engine.compile=false"
            )
        task, copy = build_task(config), build_task(config).requires_grad_(False)
        config.micro_batch_size(world.size)  # refuses a batch that does not split
        codec = open_codec(config.data)
        index = open_index(config.data, codec)
        train_stream, test_stream = (
            open_stream(config.data, index, split, seed, world.device, codec)
            for split, seed in (("train", config.seed), (config.data.evaluated_split, None))
        )
        refuse_damage(config.data, train_stream, test_stream)
    world.require_same(**config.flat(), data_checksum=index.checksum, codec=codec.checksum if codec else None)
    return Parts(index, train_stream, test_stream, build_engine(config, task, world), copy.to(world.device), codec)


def _compilers(device: torch.device) -> list[str]:
    """Those that torch.compile looks for: on the CPU for its kernels, else for what launches Triton's."""
    environment = os.environ.get
    return [environment("CXX", "g++")] if device.type == "cpu" else [environment("CC", "gcc"), "clang"]


def refuse_damage(data: DataConfig, *streams: Stream) -> None:
    """UserError when more images of a split are damaged than the configuration accepts."""
    for stream in streams:
        if len(stream.damaged) > data.max_damaged:
            raise stream.damaged_error(data.max_damaged)


def open_codec(data: DataConfig) -> PatchCodec | None:
    """What makes codes of pixels, as it lies beside the latent shards; None where the tokens are pixels.

    UserError when it is absent or damaged, or of another PatchAE than the run of stage 1 now has.
    """
    if not data.code_dim:
        return None
    path, command = Path(data.latents) / CODEC, _encode_command(data)
    try:
        codec = read_codec(path)
    except OSError as error:
        one = "or all that comes before training with `python launch/pipeline.py`"
        raise UserError(f"{path} cannot be read ({error.strerror}): make the codes with {command()}, {one}") from None
    except UserError as error:
        raise UserError(f"{error}: make the codes again with {command('--overwrite')}") from None
    stage_1 = Path(data.patch_autoencoder) if data.patch_autoencoder else None
    is_there = stage_1 and RunDirectory(stage_1).config.exists()  # latents may have been copied without it
    if is_there and weights_sha256(read_patch_autoencoder(stage_1)) != codec.patch_autoencoder:
        raise UserError(
            f"{data.latents} has the codes of another PatchAE than {stage_1} (trained on since?): make them again"
            f" with {command('--overwrite')}, or take them as they are with data.patch_autoencoder=null"
        )
    return codec


def _encode_command(data: DataConfig) -> Callable[..., str]:
    from_what = {"images": data.shards, "patch_autoencoder": data.patch_autoencoder or "RUN"}
    options = ["--statistics-only"] if data.encode == "on_the_fly" else []
    return partial(encode_command, data.latents, *options, **from_what)


def open_index(data: DataConfig, codec: PatchCodec | None = None) -> Index:
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
        mend = prepare_command(data.source, f"{data.shards}_{size}", "--image-size", str(size))
        raise UserError(f"{root} holds images of {here} pixels, data.image_size is {size}: write others with {mend}")
    return index


def open_stream(
    data: DataConfig,
    index: Index,
    split: str,
    seed: int | None,
    device: torch.device | str = "cpu",
    codec: PatchCodec | None = None,
) -> Stream:
    """One split of an opened index: pixels or, with a codec, standardised codes.

    split: one of the index, of which "train" is without the data.holdout images that are held out, or "holdout", these.
    Raises UserError when no images are held out, or all, and as `Stream`.
    """
    stored, part_N = split, None
    if split == HOLDOUT and not data.holdout:
        raise UserError("no images are held out, data.holdout is 0: take the split test, or train with data.holdout=N")
    if split == HOLDOUT or (split == "train" and data.holdout):
        trained_N, held_out_N = split_training(index.images.get("train", 0), data.holdout)
        stored, part_N = "train", held_out_N if split == HOLDOUT else trained_N
    codec = codec.to(device) if codec else None
    encode = (codec.standardise if index.codes else codec.encode) if codec else None
    return Stream(
        index,
        data.latents if index.codes else data.shards,
        stored,
        patch_size=data.patch_size,
        seed=seed,
        part_N=part_N,
        device=device,
        memory_bytes=data.memory_bytes,
        transform=encode,
    )


def step_inputs(config: Config, plans: tuple[Plan, ...], images: int, step: int) -> tuple[Plan, Rates]:
    """Plan and rates of the step that starts after `images` images and `step` steps."""
    return plans[step % len(plans)], rates_at(config, images)


def rates_at(config: Config, images: int) -> Rates:
    """What the schedules give for the step that starts after `images` images."""
    batch_size, total_images = config.train.batch_size, config.train.total_images
    learning = learning_share(config.schedule, images, batch_size, total_images)
    average = ema_decay(config.optimizer, images, batch_size)
    return Rates(learning, average, beta_at(config.objective, images, total_images))


def micro_batches(stream: Stream, config: Config, images: int, groups: int, world: World) -> Iterator[list[Batch]]:
    """The micro-batches of each step of this rank, endlessly, from the position `images` of the sequence on."""
    size, accumulation = config.train.batch_size, config.train.accumulation_steps
    positions = (
        local_positions(first, size, groups, micro * world.size + world.rank, accumulation * world.size)
        for first in itertools.count(images, size)
        for micro in range(accumulation)
    )
    batches = prefetch(stream.read, positions, config.data.workers)
    while True:
        yield list(itertools.islice(batches, accumulation))
