"""From a configuration to the parts of a run."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from biglearn_vae.images import open_codec, open_index, open_stream
from data.batch import Batch
from data.read.config import DataConfig
from data.read.stream import ImageIndex, Stream, expected, prefetch
from model.biglearn import BigLearnModel
from model.masks import Plan, local_positions
from model.packed.rectangles import attend_by_rectangles
from model.patch_autoencoder.codec import PatchCodec
from model.patch_autoencoder.network import PatchAutoencoder
from trainer.choices import choose, ways_of
from trainer.config import Config
from trainer.engines.cuda_graphs import CudaRecorder
from trainer.engines.engine import Engine
from trainer.engines.schedule import Rates, beta_at, ema_decay, learning_share
from trainer.ranks.world import World
from trainer.tasks.biglearn import BigLearnTask
from trainer.tasks.patch_autoencoder import PatchAETask
from trainer.tasks.task import Task

log = logging.getLogger(__name__)


def build_task(config: Config) -> Task:
    """The model with its objective, initialised from the seed."""
    torch.manual_seed(config.seed)
    if config.method == "patch_ae":
        return PatchAETask(PatchAutoencoder(), config.patch_ae, config.seed)
    model = BigLearnModel(config.model, config.method, config.data.token_dim, config.data.patches)
    attend = attend_by_rectangles
    if config.engine.attention == "triton":
        from model.packed.triton_kernel import attend_in_one_launch as attend  # Triton is there where CUDA is
    for trunk in (model.encoding_trunk, model.decoding_trunk):
        trunk.recomputes = config.engine.activation_checkpointing
    return BigLearnTask(model, config.objective, config.seed, attend)


def meta_task(config: Config) -> Task:
    """The task on tensors without storage, to count what it costs; always with attention that can be counted."""
    countable = config.engine.model_copy(update={"attention": "sdpa"})
    with torch.device("meta"):
        return build_task(config.model_copy(update={"engine": countable}))


def build_engine(config: Config, task: Task, world: World) -> Engine:
    """The engine that `engine.name` asks for; it takes ownership of `task`.

    An engine is imported when it is asked for: DeepSpeed and Accelerate need not both be there.
    """
    task = task.to(world.device)
    make_recorder = CudaRecorder if config.engine.cuda_graphs is True else None
    if config.engine.compile is True:
        task.compile()
        if world.is_main:
            log.warning("engine.compile: the first step takes about a minute more")
    if config.engine.name == "accelerate":
        from trainer.engines.accelerate_engine import AccelerateEngine

        clip = config.train.max_grad_norm
        return AccelerateEngine(config.engine, config.optimizer, task, world, clip, make_recorder)
    from trainer.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        config.engine,
        config.optimizer,
        task,
        world,
        micro_batch_size=config.micro_batch_size(world.size),
        accumulation_steps=config.train.accumulation_steps,
        max_grad_norm=config.train.max_grad_norm,
        make_recorder=make_recorder,
    )


@dataclass(frozen=True)
class Parts:
    """What a step needs. `copy` is the task once more, outside the engine, for weights that are looked at.

    ways: how steps are computed, as chosen for this machine.
    test_stream: the images that it is evaluated on, in an order of their own: those held out, where there are any.
    codec: of a model of codes, else None.
    """

    index: ImageIndex
    train_stream: Stream
    test_stream: Stream
    engine: Engine
    ways: dict[str, str | bool]
    copy: Task
    codec: PatchCodec | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by name."""
        return {name: tuple(p.shape) for name, p in self.copy.named_parameters()}


def build_parts(config: Config, world: World) -> Parts:
    """Everything that a configuration describes, on all ranks. UserError, on all ranks, when they do not fit."""
    with world.agreed():
        copy = build_task(config).requires_grad_(False)
        chosen = choose(config, world.device, sum(p.numel() for p in copy.parameters()))
        task = build_task(chosen)
        config.micro_batch_size(world.size)  # refuses a batch that does not split
        codec = open_codec(config.data)
        index = open_index(config.data, codec)
        train_stream, test_stream = (
            open_stream(config.data, index, split, seed, world.device, codec)
            for split, seed in (("train", config.seed), (config.data.evaluated_split, None))
        )
        refuse_damage(config.data, train_stream, test_stream)
    world.require_same(**config.flat(), data_checksum=index.checksum, codec=codec.checksum if codec else None)
    ways, engine = ways_of(chosen, world.device), build_engine(chosen, task, world)
    return Parts(index, train_stream, test_stream, engine, ways, copy.to(world.device), codec)


def refuse_damage(data: DataConfig, *streams: Stream) -> None:
    """UserError when more images of a split are damaged than the configuration accepts."""
    for stream in streams:
        if len(stream.damaged) > data.max_damaged:
            raise stream.damaged_error(data.max_damaged)


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
    samples = config.micro_batch_size(world.size)
    at_once = stream.reads_at_once(samples)
    reads = (torch.cat([next(positions) for _ in range(at_once)]) for _ in itertools.count())
    reads = expected(stream, reads, depth=stream.look_ahead // size * accumulation)
    batches = (batch for read in prefetch(stream.read, reads, config.data.workers) for batch in read.split(samples))
    while True:
        yield list(itertools.islice(batches, accumulation))
