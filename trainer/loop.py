"""The training loop: one function, read from top to bottom."""

import io
import json
import logging
import math
import shlex
from functools import partial

import torch

from biglearn_vae.checkpoint import State
from data.errors import NonFiniteError
from data.files import write_aside
from data.read.stream import Stream
from trainer.build import Parts, build_parts, micro_batches, refuse_damage, step_inputs
from trainer.build_prometheus import make_prometheus_server
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config import Config
from trainer.evaluation import evaluate
from trainer.metrics.json_lines import JsonLines
from trainer.metrics.progress import ProgressBar
from trainer.metrics.recorder import Metrics, require_finite
from trainer.metrics.trackers import TrackedRun, Trackers, require_trackers
from trainer.ranks.stop import StopRequest
from trainer.ranks.world import World
from trainer.resume import identity, restore, warn_of_jump
from trainer.run_directory import RunDirectory

log = logging.getLogger(__name__)


def train(config: Config, world: World, run: RunDirectory, resume: bool, stop: StopRequest) -> dict:
    """Train to config.total_images and return the summary that also stands in reports/summary.json.

    resume: continue from the newest whole checkpoint when there is one. When `stop` is asked for on any rank, all
    write a checkpoint after the step and return; the summary names the signal as `stopped_by`. Every rank calls
    this. Raises NonFiniteError and UserError on all ranks together.
    """
    with world.agreed():
        if world.is_main:
            require_trackers(config.metrics.trackers, run.trackers)

    # What is trained, and on what.
    parts = build_parts(config, world)
    engine, task, train_stream, test_stream = parts.engine, parts.copy, parts.train_stream, parts.test_stream

    with world.agreed():
        if world.is_main:
            run.acquire(resume)

    # Where it goes on: the order of a resume is numbered in trainer/resume.py.
    shared = identity(config, parts.index, parts.codec)
    state = (restore(parts, run.checkpoints, shared) if resume else None) or State(identity=shared)
    images, step = state.images, state.step
    heading = f"{world.size} process(es), {', '.join(f'{way} {chosen}' for way, chosen in parts.ways.items())}"
    bar = ProgressBar(images, config.total_images, heading, shown=world.is_main)
    sinks, evaluations, spent = [], [], (0.0, 0.0)
    with world.agreed():
        if world.is_main:
            warn_of_jump(config, run.config, images)
            run.create(config, images, parts.codec, parts.ways)
            sinks = [JsonLines(run.metrics, images), bar]
            evaluations = [JsonLines(run.evaluations, images)]
            spent = sinks[0].spent
    world.require_same(run_id=run.record().id)  # all see the one folder
    prometheus = make_prometheus_server(config, world, run, task, state, spent)
    tracked = TrackedRun(run.name, run.record().id, run.trackers, step, config.flat())
    trackers = Trackers(config.metrics.trackers if world.is_main else (), tracked, world.device)
    metrics = Metrics(config.metrics, images, [*sinks, prometheus, trackers], state.skipped_steps)
    writer = CheckpointWriter(run.checkpoints, config.checkpoint, engine, parts.shapes, [prometheus], state.images)

    def look(with_picture: bool) -> dict:
        """Evaluate the averaged weights, on all ranks; draw what the model can do, on one."""
        metrics.flush()  # sinks get the steps before what was found after them
        with metrics.phase("evaluation"):
            task.load_state_dict(engine.full_state("ema")["ema"])
            values = {"step": step, "images": images, **evaluate(task, test_stream, config.evaluate, world)}
            require_finite(values)
            for sink in (*evaluations, prometheus, trackers):
                sink(values)
            if with_picture and world.is_main:
                _draw(parts, config, values, run)
        return values

    start_images, owes_checkpoint = images, False
    (stopped,) = world.max_over_ranks(stop.signal is not None)
    values = world.broadcast(run.evaluation(images) if world.is_main else None)
    with prometheus, trackers, writer, bar:
        if values is None and not stopped and (images == 0 or images >= config.total_images):
            values = look(with_picture=not images)
        batches = micro_batches(train_stream, config, images, task.groups, world)
        while images < config.total_images and not stopped:
            plan, rates = step_inputs(config, task.plans, images, step)
            with metrics.phase("data"):
                batches_of_step = next(batches)
            every = config.metrics.phases_every_steps
            is_timed = every and step % every == every - 1  # not the first one, which warms up
            with metrics.phase("step"):
                inputs = batches_of_step, plan, rates
                terms, of_phases = engine.timed_step(*inputs) if is_timed else (engine.step(*inputs), {})
            before, images, step = images, images + config.train.batch_size, step + 1

            # What one rank knows and all act on.
            damaged = max(len(train_stream.damaged), len(test_stream.damaged))
            stopped, damaged, writing = world.max_over_ranks(stop.signal is not None, damaged, writer.is_writing)
            due = partial(_is_due, before=before, images=images, total_images=config.total_images)
            owes_checkpoint = owes_checkpoint or due(config.checkpoint.every_images)
            known = {"learning_rate": rates.learning * config.optimizer.learning_rate, "world_size": world.size}
            known |= {"damaged_images": damaged, **of_phases}
            known |= {"beta": rates.beta} if "kl" in terms else {}
            metrics.record_step(step, images, terms, **known)
            if stopped or owes_checkpoint:
                metrics.flush()
            if writer.is_pending and not writing:
                writer.finish()
            if damaged > config.data.max_damaged:
                with world.agreed():
                    refuse_damage(config.data, train_stream, test_stream)
            if len(metrics.last_skipped) >= config.train.max_skipped_steps:
                writer.finish()
                raise _non_finite(metrics.last_skipped, train_stream, config, run, world)

            if not stopped and (due(config.evaluate.every_images) or due(config.evaluate.picture_every_images)):
                values = look(with_picture=due(config.evaluate.picture_every_images))
            # Weights that have just given a loss that is not finite are kept only when there will be no others.
            if stopped or images >= config.total_images or (owes_checkpoint and not metrics.last_skipped):
                owes_checkpoint = False
                with metrics.phase("checkpoint"):
                    score = task.score(values) if values and values["images"] == images else None
                    skipped = metrics.skipped_steps
                    writer.start(State(images=images, step=step, skipped_steps=skipped, score=score, identity=shared))
        metrics.flush()
        prometheus.is_finished = start_images < images == config.total_images
    with world.agreed():
        writer.refuse_failure()
    seconds = metrics.training_seconds
    return {
        "method": config.method,
        "mask_tokens": config.model.mask_tokens,
        "parameters": sum(p.numel() for p in task.parameters()),
        "engine": config.engine.name,
        "world_size": world.size,
        "steps": step,
        "images": images,
        "skipped_steps": metrics.skipped_steps,
        "damaged_images": len(train_stream.damaged) + len(test_stream.damaged),
        "training_seconds": round(seconds, 3),  # of this process, without evaluation and checkpoints
        "images_per_second": round((images - start_images) / seconds, 1) if seconds else None,
        "evaluated_split": config.data.evaluated_split,
        "before": run.evaluation(),
        "after": values,
        "stopped_by": next((name for name in world.gather(stop.signal_name) if name), None) if stopped else None,
    }


def _is_due(every: int, *, before: int, images: int, total_images: int) -> bool:
    """Whether a step from `before` to `images` images passes a multiple of `every` or is the last one."""
    return images >= total_images or bool(every and images // every > before // every)


def _non_finite(skipped: list[dict], stream: Stream, config: Config, run: RunDirectory, world: World) -> NonFiniteError:
    """The error for steps that were skipped in a row, of which rank 0 leaves a report."""
    first, last_position = skipped[0], skipped[0]["images"] - 1
    first_position = first["images"] - config.train.batch_size
    terms = {name: first[name] for name in ("loss", "reconstruction", "kl", "gradient_norm") if name in first}
    newest = run.newest_checkpoint()
    path = run.reports / f"non-finite-step-{first['step']:09d}.json"
    report = {
        "skipped": [{name: _written(value) for name, value in line.items()} for line in skipped],
        "first_position": first_position,
        "data_set_indices": stream.order(torch.arange(first_position, last_position + 1)).tolist(),
        "last_good_checkpoint": str(newest) if newest else None,
    }
    if world.is_main:
        try:
            write_aside(path, json.dumps(report, indent=1).encode())
        except OSError as error:
            log.warning("%s could not be written: %s", path, error.strerror)
    return NonFiniteError(
        f"{len(skipped)} steps in a row are not finite, the first is step {first['step']} "
        f"({', '.join(f'{name} {value:.4g}' for name, value in terms.items())}) on the images {first_position:,} to "
        f"{last_position:,} of the sequence, which {path} lists; the last good checkpoint is {newest or 'none'}; "
        f"look closer with `python launch/replay.py --run {shlex.quote(str(run.path))} --step {first['step']}`"
    )


def _written(value: float) -> float | str:
    """JSON knows no infinity and no nan."""
    return value if math.isfinite(value) else str(value)


def _draw(parts: Parts, config: Config, values: dict, run: RunDirectory) -> None:
    """The sheet of what the model can do; a disk that refuses it does not end the run."""
    picture = io.BytesIO()
    parts.copy.picture(parts.test_stream, config.data, parts.codec, values).save(picture, "png")
    try:
        write_aside(run.picture(values["images"]), picture.getvalue())
    except OSError as error:
        log.warning("the picture could not be written: %s", error.strerror)
