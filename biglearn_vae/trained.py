"""The model of a run, out of its configuration and its checkpoints."""

import logging
from pathlib import Path
from typing import Literal

from torch import Tensor

from biglearn_vae.before import add_values_of_before
from biglearn_vae.checkpoint import Checkpoint, load_checkpoint, newest_whole
from biglearn_vae.export import Description
from biglearn_vae.run_paths import RunPaths
from data.errors import UserError
from data.read.config import DataConfig
from data.section import Section
from data.values import checked, read_mapping
from model.biglearn import ModelConfig
from model.method import METHODS
from model.objective import ObjectiveConfig
from model.patch_autoencoder.codec import PatchCodec, read_codec
from model.patch_autoencoder.network import PatchAutoencoder

log = logging.getLogger(__name__)


class ModelOfRun(Section, extra="ignore"):
    """What the configuration of a run says of its model."""

    method: Literal[(*METHODS, "patch_ae")]
    seed: int
    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig


def read_trained(path: Path) -> tuple[Description, dict[str, Tensor], PatchCodec | None]:
    """The averaged weights of a checkpoint, or of the newest whole one of a run; UserError when there is none."""
    run, config, checkpoint = _read(path)
    if config.method == "patch_ae":
        raise UserError(f"{path} is a patch auto-encoder, which has no latent code of an image: give a run of stage 2")
    if config.data.code_dim and not run.codec.exists():
        raise UserError(
            f"{run.codec} is absent, without which codes are no images: copy it from where the run was made"
        )
    codec = _codec(run, checkpoint) if config.data.code_dim else None
    checksum = checkpoint.state.identity.get("data_checksum")
    description = Description.of(config, checkpoint.state.images, checksum if isinstance(checksum, str) else None)
    return description, _model_weights(checkpoint), codec


def _codec(run: RunPaths, checkpoint: Checkpoint) -> PatchCodec:
    remedy = "copy it from where the run was made"
    try:
        codec = read_codec(run.codec)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from None
    if codec.checksum != checkpoint.state.identity.get("codec"):
        raise UserError(f"{run.codec} is not the codec that this run was trained with: {remedy}")
    return codec


def read_patch_autoencoder(path: Path) -> PatchAutoencoder:
    """The averaged weights of a run of stage 1, as `read_trained`."""
    _, config, checkpoint = _read(path)
    if config.method != "patch_ae":
        raise UserError(
            f"{path} is a {config.method}, no patch auto-encoder: give a run of configs/celeba_patchae.yaml"
        )
    autoencoder = PatchAutoencoder()
    autoencoder.load_state_dict(_model_weights(checkpoint))
    return autoencoder.requires_grad_(False).eval()


def run_of(path: Path) -> RunPaths:
    """The run of a checkpoint; of any other path, that path as a run."""
    return RunPaths(path.resolve().parent.parent if _is_checkpoint(path) else path)


def _is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").exists()


def _read(path: Path) -> tuple[RunPaths, ModelOfRun, Checkpoint]:
    run, is_checkpoint = run_of(path), _is_checkpoint(path)
    if is_checkpoint and not run.config.exists():
        raise UserError(f"{path} is a checkpoint without its run: leave it in the run's checkpoints/, or export it")
    if not run.config.exists():
        raise UserError(f"{path} holds no run, no checkpoint and no export: give the run_dir of a training")
    values = read_mapping(run.config, "a configuration", "configs/")
    add_values_of_before(values)
    config = checked(values, ModelOfRun, run.config)
    if is_checkpoint:
        return run, config, load_checkpoint(path)
    _, checkpoint, faults = newest_whole(run.checkpoints)
    for fault in faults:
        log.warning("%s; an earlier checkpoint is used", fault)
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint yet: wait for the first one, or train longer")
    return run, config, checkpoint


def _model_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name.removeprefix("model."): value for name, value in checkpoint.tensors["ema"].items()}
