"""The model of a run, out of its checkpoints."""

import logging
from pathlib import Path

from torch import Tensor

from data.errors import UserError
from model.export import Description
from trainer.checkpoint import load_checkpoint, newest_whole
from trainer.config import Config, load_config
from trainer.run_directory import RunDirectory

log = logging.getLogger(__name__)


def read_trained(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """The averaged weights of a checkpoint, or of the newest whole one of a run; UserError when there is none."""
    is_checkpoint = (path / "manifest.json").exists()
    run = RunDirectory(path.resolve().parent.parent if is_checkpoint else path)
    if is_checkpoint and not run.config.exists():
        raise UserError(f"{path} is a checkpoint without its run: leave it in the run's checkpoints/, or export it")
    if not run.config.exists():
        raise UserError(f"{path} holds no run, no checkpoint and no export: give the run_dir of a training")
    config = load_config(run.config)
    if config.method == "patch_ae":
        raise UserError(f"{path} is a patch auto-encoder, which has no latent code of an image: give a run of stage 2")
    if is_checkpoint:
        checkpoint = load_checkpoint(path)
    else:
        _, checkpoint, faults = newest_whole(run.checkpoints)
        for fault in faults:
            log.warning("%s; an earlier checkpoint is used", fault)
        if checkpoint is None:
            raise UserError(f"{path} has no checkpoint yet: wait for the first one, or train longer")
    weights = {name.removeprefix("model."): value for name, value in checkpoint.tensors["ema"].items()}
    return describe(config, checkpoint.state.images), weights


def describe(config: Config, images: int) -> Description:
    """What a model of this configuration is after so many training images."""
    return Description(
        method=config.method,
        data=config.data,
        model=config.model,
        objective=config.objective,
        seed=config.seed,
        images=images,
    )
