"""Going on from a checkpoint, with any engine and any number of ranks. The order:

1. rank 0 looks for the newest checkpoint that is whole, and reads it once: what is verified is what is used;
2. what the checkpoint and this run must share is compared (`identity`), then the names and shapes of its tensors;
3. weights, their average and the moments go from rank 0 to all ranks and into the engine;
4. two integers, `images` and `step`, go into the loop: the images, masks and noise of a sample, the plan, the
   learning rate and the decay of a step are pure functions of them and the configuration, so no generator, loader
   or schedule has a state;
5. the logs lose the lines of the steps that are made again, and the evaluation at this point, if there was one,
   is not made again.
"""

import logging
from pathlib import Path

import torch
import torch.distributed as dist

from biglearn_vae.before import OF_BEFORE
from biglearn_vae.checkpoint import Checkpoint, State, newest_whole
from biglearn_vae.images import order_law
from data.errors import UserError
from data.order.order import Permuted
from data.read.stream import ImageIndex
from model.patch_autoencoder.codec import PatchCodec
from trainer.build import Parts, rates_at
from trainer.config import Config, load_config
from trainer.engines.optimizers.optimizer import RULES

log = logging.getLogger(__name__)


def identity(config: Config, index: ImageIndex, codec: PatchCodec | None) -> dict:
    """What a checkpoint and the run that goes on from it must have in common."""
    of_codec = {"codec": codec.checksum} if codec else {}
    law = order_law(config.data, index)
    of_order = {} if law == Permuted.law else {"data_order": law}  # the one that there always was
    return {**config.of_model(), **of_codec, **of_order, "data_checksum": index.checksum}


def whole_identity(state: State) -> dict:
    """That of a checkpoint; a key that there was not yet counts as its value of before, or as its default."""
    of_default = Config.model_validate({"data": {"source": "digits"}, "train": {"total_images": 1}}).of_model()
    return {**of_default, **OF_BEFORE, **state.identity}


def restore(parts: Parts, directory: Path, shared: dict, before_step: int | None = None) -> State | None:
    """Steps 1 to 3 on all ranks; where the run was, or None when there is no checkpoint.

    shared: the identity of this run. before_step: only a checkpoint of at most so many steps. Raises UserError that
    names the fields that differ.
    """
    engine, world, checkpoint = parts.engine, parts.engine.world, None
    wanted = {kind: {name: parts.shapes[name] for name in names} for kind, names in engine.kinds.items()}
    with world.agreed():
        if world.is_main:
            path, checkpoint, faults = newest_whole(directory, before_step)
            for fault in faults:
                log.warning("%s; an earlier checkpoint is used", fault)
            if checkpoint:
                _refuse_another(path, checkpoint, shared, wanted)
    state = world.broadcast(checkpoint.state if checkpoint else None)
    if state:
        tensors = checkpoint.tensors if checkpoint else {kind: {} for kind in wanted}
        for kind, shapes in wanted.items() if world.size > 1 else ():
            for name, shape in shapes.items():
                tensors[kind][name] = tensors[kind][name] if checkpoint else torch.empty(shape)
                dist.broadcast(tensors[kind][name], src=0, group=world.control)
        engine.load_full_state(tensors, state.step - state.skipped_steps)
    return state


def warn_of_jump(config: Config, before: Path, images: int) -> None:
    """Log it when rates or beta do not go on after `images` images where the configuration `before` has them.

    Schedules follow the length of the run, so that another total_images moves all of them.
    """
    try:
        earlier = load_config(before) if images else None
    except UserError:  # not there, or no longer understood
        earlier = None
    if not earlier:
        return
    was, now = (_rates(each, images) for each in (earlier, config))
    if any(abs(old - new) > 0.01 * max(old, new) for old, new in zip(was, now, strict=True)):
        ours, theirs = config.flat(), earlier.flat()
        of_rates = ("optimizer.", "schedule.", "train.batch_size", "train.total_images")
        differ = [f"{key} {theirs[key]} -> {ours[key]}" for key in ours if ours[key] != theirs[key]]
        log.warning(
            "after %s images the learning rate goes on at %.3g and beta at %.3g,"
            " where the run had them at %.3g and %.3g (%s)", f"{images:,}", now[0], now[-1], was[0], was[-1],
            ", ".join(each for each in differ if each.startswith(of_rates)),
        )  # fmt: skip


def _rates(config: Config, images: int) -> tuple[float, float, float]:
    """AdamW's rate, that of the matrices, and beta, of the step after `images` images."""
    rates, optimizer = rates_at(config, images), config.optimizer
    of_matrices = RULES[optimizer.name](optimizer, torch.float32).learning_rate
    return rates.learning * optimizer.learning_rate, rates.learning * of_matrices, rates.beta


def _refuse_another(
    path: Path, checkpoint: Checkpoint, shared: dict, wanted: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    """wanted: the shape of each tensor by kind and parameter."""
    saved = whole_identity(checkpoint.state)
    differ = [
        f"{name} {saved.get(name)} there, {shared.get(name)} here"
        for name in sorted(saved.keys() | shared.keys())
        if saved.get(name) != shared.get(name)
    ]
    for kind in sorted(wanted.keys() | checkpoint.tensors.keys()) if not differ else ():
        found = {name: (tuple(value.shape), value.dtype) for name, value in checkpoint.tensors.get(kind, {}).items()}
        ours = {name: (shape, torch.float32) for name, shape in wanted.get(kind, {}).items()}
        for name in sorted(found.keys() | ours.keys()):
            if found.get(name) != ours.get(name):
                differ.append(f"{kind} of {name} {found.get(name)} there, {ours.get(name)} here")
    if differ:
        shown = "; ".join(differ[:5]) + (f"; and {len(differ) - 5} more" if len(differ) > 5 else "")
        raise UserError(f"{path} is of another run ({shown}): choose another run_dir=...")
