"""From a configuration to the parts of a run."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from data.batch import Batch
from data.config import DataConfig
from data.errors import UserError
from data.index import Index, load_index, prepare_command
from data.stream import Stream, prefetch
from model.biglearn import BigLearnModel
from model.masks import Plan, local_positions
from model.packed import attend_by_rectangles, attend_in_one_launch
from model.patch_autoencoder import PatchAutoencoder
from model.task import BigLearnTask, PatchAETask
from trainer.config import Config
from trainer.engine import Engine
from trainer.optimizer import ema_decay, learning_rate
from trainer.world import World


def build_task(config: Config) -> nn.Module:
    """The model with its objective, initialised from the seed."""
    torch.manual_seed(config.seed)
    if config.method == "patch_ae":
        return PatchAETask(PatchAutoencoder())
    model = BigLearnModel(config.model, config.method, config.data.token_dim, config.data.patches)
    attend = attend_in_one_launch if config.engine.attention == "triton" else attend_by_rectangles
    return BigLearnTask(model, config.objective, config.seed, attend)


def build_engine(config: Config, task: nn.Module, world: World) -> Engine:
    """The engine that `engine.name` asks for; it takes ownership of `task`.

    An engine is imported when it is asked for: DeepSpeed and Accelerate need not both be there.
    """
    task = task.to(world.device)
    if config.engine.name == "accelerate":
        from trainer.accelerate_engine import AccelerateEngine

        return AccelerateEngine(config.engine, config.optimizer, task, world, config.train.max_grad_norm)
    from trainer.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        config.engine,
        config.optimizer,
        task,
        world,
        micro_batch_size=config.micro_batch_size(world.size, task.groups),
        accumulation_steps=config.train.accumulation_steps,
        max_grad_norm=config.train.max_grad_norm,
    )


@dataclass(frozen=True)
class Parts:
    """What a step needs. `copy` is the task once more, outside the engine, for weights that are looked at."""

    index: Index
    train_stream: Stream
    test_stream: Stream
    engine: Engine
    copy: nn.Module

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by name."""
        return {name: tuple(p.shape) for name, p in self.copy.named_parameters()}


def build_parts(config: Config, world: World) -> Parts:
    """Everything that a configuration describes, on all ranks. UserError, on all ranks, when they do not fit."""
    with world.agreed():
        if config.engine.attention == "triton" and world.device.type != "cuda":
            raise UserError("engine.attention=triton needs a GPU: set engine.attention=sdpa")
        task, copy = build_task(config), build_task(config).requires_grad_(False)
        config.micro_batch_size(world.size, task.groups)  # refuses a batch that does not split
        index = open_index(config.data)
        train_stream, test_stream = open_streams(config, index, world.device)
        refuse_damage(config.data, train_stream, test_stream)
    world.require_same(**config.flat(), data_checksum=index.checksum)
    return Parts(index, train_stream, test_stream, build_engine(config, task, world), copy.to(world.device))


def refuse_damage(data: DataConfig, *streams: Stream) -> None:
    """UserError when more images of a split are damaged than the configuration accepts."""
    for stream in streams:
        if len(stream.damaged) > data.max_damaged:
            raise stream.damaged_error(data.max_damaged)


def open_index(data: DataConfig) -> Index:
    """The index of the shards, which must hold what the configuration says."""
    index = load_index(data.shards, data.source)
    if index.image_shape[0] != data.image_size:
        size, here = data.image_size, index.image_shape[0]
        mend = prepare_command(data.source, f"{data.shards}_{size}", f"--image-size {size}")
        raise UserError(
            f"{data.shards} holds images of {here} pixels, data.image_size is {size}: write others with {mend}"
        )
    if data.code_dim:
        raise UserError(f"{data.shards} holds pixels, data.code_dim asks for codes: set data.code_dim=null")
    return index


def open_streams(config: Config, index: Index, device: torch.device) -> tuple[Stream, Stream]:
    """The training sequence, and the test images in file order."""
    train, test = (
        Stream(
            index,
            config.data.shards,
            split,
            patch_size=config.data.patch_size,
            seed=seed,
            device=device,
            memory_bytes=config.data.memory_bytes,
        )
        for split, seed in (("train", config.seed), ("test", None))
    )
    return train, test


def step_inputs(config: Config, plans: tuple[Plan, ...], images: int, step: int) -> tuple[Plan, float, float]:
    """Plan, learning rate and decay of the average of the step that starts after `images` images and `step` steps."""
    rate = learning_rate(config.optimizer, config.schedule, images, config.train.batch_size, config.train.total_images)
    return plans[step % len(plans)], rate, ema_decay(config.optimizer, images, config.train.batch_size)


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
