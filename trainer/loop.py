"""The training loop: one function, read from top to bottom."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch.distributed as dist

from data.batch import Batch
from data.config import DataConfig
from data.errors import UserError
from data.index import Index, load_index, prepare_command
from data.stream import Stream, prefetch
from model.masks import local_positions
from model.task import BigLearnTask
from trainer.build import build_engine, build_task
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from trainer.config import Config
from trainer.engine import Engine
from trainer.evaluation import evaluate
from trainer.metrics import JsonLines, Metrics, NonFiniteError, ProgressBar, require_finite
from trainer.optimizer import AdamWithAverage, ema_decay, learning_rate
from trainer.pictures import draw_sheet
from trainer.run_directory import RunDirectory
from trainer.world import World

KINDS = ("weights", *AdamWithAverage.STATE)


def train(config: Config, world: World, run: RunDirectory, resume: bool) -> dict:
    """Train to config.total_images and return the summary that also stands in reports/summary.json.

    resume: continue from the newest checkpoint when there is one. Every rank calls this.
    """
    # What is trained, and on what.
    task = build_task(config)
    config.micro_batch_size(world.size, task.groups)  # refuses a batch that does not split
    index = open_index(config.data)
    train_stream, test_stream = (
        Stream(
            index,
            config.data.shards,
            split,
            patch_size=config.data.patch_size,
            seed=seed,
            device=world.device,
            memory_bytes=config.data.memory_bytes,
        )
        for split, seed in (("train", config.seed), ("test", None))  # the test images in file order
    )
    engine = build_engine(config, task, world)
    evaluated_task = build_task(config).to(world.device).requires_grad_(False)

    # Resume: 1. verify and read the checkpoint; 2. weights, average and moments; 3. the two integers that fix the
    # order of the data, the masks, the noise, the plan and the learning rate; 4. logs, without what is made again.
    identity = _identity(config, index)
    images = step = 0
    newest = run.newest_checkpoint() if resume else None
    if newest:
        checkpoint = load_checkpoint(newest)
        _refuse_another(identity, checkpoint.state, newest)
        engine.load_full_state(checkpoint.tensors, checkpoint.state["step"])
        images, step = checkpoint.state["images"], checkpoint.state["step"]
    dist.barrier()
    sinks, evaluations = [], []
    if world.is_main:
        run.create(config)
        bar = ProgressBar(images, config.total_images)
        sinks = [JsonLines(run.metrics, images), bar]
        evaluations = [JsonLines(run.evaluations, images - 1)]  # the evaluation at this point is made again below
    metrics = Metrics(config.metrics, images, sinks)

    def look(with_picture: bool) -> dict:
        """Evaluate the averaged weights, on all ranks; draw what the model can do, on one."""
        with metrics.phase("evaluation"):
            evaluated_task.load_state_dict(engine.full_state("ema")["ema"])
            values = evaluate(evaluated_task, test_stream, config.evaluate, world)
            line = {"step": step, "images": images, **values}
            require_finite(line)
            for sink in evaluations:
                sink(line)
            if with_picture and world.is_main and isinstance(evaluated_task, BigLearnTask):
                title = f"{config.method}, {config.model.mask_tokens}: {images:,} training images, "
                title += f"test BigLearnELBO {values['biglearn_elbo']:.2f}, JointELBO {values['joint_elbo']:.2f}"
                draw_sheet(evaluated_task, test_stream, config.data.patch_size, title).save(run.picture(images))
        return values

    values = look(with_picture=not images)
    start_images = images
    batches = _batches(train_stream, config, images, task.groups, world)
    while images < config.total_images:
        plan = task.plans[step % len(task.plans)]
        rate = learning_rate(
            config.optimizer, config.schedule, images, config.train.batch_size, config.train.total_images
        )
        decay = ema_decay(config.optimizer, images, config.train.batch_size)
        with metrics.phase("data"):
            micro_batches = list(itertools.islice(batches, config.train.accumulation_steps))
        with metrics.phase("step"):
            terms = engine.step(micro_batches, plan, rate, decay)
        before, images, step = images, images + config.train.batch_size, step + 1
        metrics.record_step(step, images, terms, learning_rate=rate)

        due = partial(_is_due, before=before, images=images, total_images=config.total_images)
        if due(config.train.checkpoint_every_images):
            metrics.flush()  # numbers that are not finite never get into a checkpoint
        if due(config.evaluate.every_images) or due(config.evaluate.picture_every_images):
            values = look(with_picture=due(config.evaluate.picture_every_images))
        if due(config.train.checkpoint_every_images):
            with metrics.phase("checkpoint"):
                _save(engine, config, run, {"images": images, "step": step, "identity": identity})
    metrics.flush()
    if world.is_main:
        bar.close()
    seconds = metrics.training_seconds
    return {
        "method": config.method,
        "mask_tokens": config.model.mask_tokens,
        "parameters": sum(p.numel() for p in evaluated_task.parameters()),
        "engine": config.engine.name,
        "world_size": world.size,
        "steps": step,
        "images": images,
        "training_seconds": round(seconds, 3),  # of this process, without evaluation and checkpoints
        "images_per_second": round((images - start_images) / seconds, 1) if seconds else None,
        "before": run.first_evaluation() if world.is_main else None,
        "after": values,
    }


def _is_due(every: int, *, before: int, images: int, total_images: int) -> bool:
    """Whether a step from `before` to `images` images passes a multiple of `every` or is the last one."""
    return images >= total_images or bool(every and images // every > before // every)


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


def _batches(stream: Stream, config: Config, images: int, groups: int, world: World) -> Iterator[Batch]:
    """The micro-batches of this rank, endlessly, from the position `images` of the training sequence on."""
    size, accumulation = config.train.batch_size, config.train.accumulation_steps
    positions = (
        local_positions(first, size, groups, micro * world.size + world.rank, accumulation * world.size)
        for first in itertools.count(images, size)
        for micro in range(accumulation)
    )
    return prefetch(stream.read, positions, config.data.workers)


def _identity(config: Config, index: Index) -> dict:
    """What a checkpoint and the run that goes on from it must have in common."""
    return {
        "method": config.method,
        "seed": config.seed,
        "patch_size": config.data.patch_size,
        "data_checksum": index.checksum,
        **{
            f"{name}.{key}": value
            for name, section in (("model", config.model), ("objective", config.objective))
            for key, value in section.model_dump(mode="json").items()
        },
    }


def _refuse_another(identity: dict, state: dict, path: Path) -> None:
    """UserError that names what differs when a checkpoint belongs to another model or other data."""
    saved = state["identity"]
    differ = [
        f"{name} {saved.get(name)} there, {value} here" for name, value in identity.items() if saved.get(name) != value
    ]
    if differ:
        raise UserError(f"{path} is of another run ({'; '.join(differ)}): choose another run_dir=...")


def _save(engine: Engine, config: Config, run: RunDirectory, state: dict) -> None:
    """Gather the whole state on all ranks; rank 0 writes it."""
    tensors = engine.full_state(*KINDS)
    for kind, of_kind in tensors.items():  # the same on all ranks
        if not all(value.isfinite().all() for value in of_kind.values()):
            raise NonFiniteError(f"{kind} are not finite at step {state['step']}")
    if engine.world.is_main:
        save_checkpoint(run.checkpoints, Checkpoint(tensors, state), config.checkpoint.keep)
    dist.barrier()
