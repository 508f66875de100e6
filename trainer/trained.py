"""The model of a run, out of its checkpoints."""

import logging
from pathlib import Path

from torch import Tensor

from data.errors import UserError
from model.codec import PatchCodec, read_codec
from model.export import Description
from model.patch_autoencoder import PatchAutoencoder
from trainer.checkpoint import Checkpoint, load_checkpoint, newest_whole
from trainer.config import Config, load_config
from trainer.run_directory import RunDirectory

log = logging.getLogger(__name__)


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
    description = describe(config, checkpoint.state.images, checksum if isinstance(checksum, str) else None)
    return description, _model_weights(checkpoint), codec


def _codec(run: RunDirectory, checkpoint: Checkpoint) -> PatchCodec:
    mend = "copy it from where the run was made"
    try:
        codec = read_codec(run.codec)
    except UserError as error:
        raise UserError(f"{error}: {mend}") from None
    if codec.checksum != checkpoint.state.identity.get("codec"):
        raise UserError(f"{run.codec} is not the codec that this run was trained with: {mend}")
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


def run_of(path: Path) -> RunDirectory:
    """The run of a checkpoint; of any other path, that path as a run."""
    return RunDirectory(path.resolve().parent.parent if _is_checkpoint(path) else path)


def _is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").exists()


def _read(path: Path) -> tuple[RunDirectory, Config, Checkpoint]:
    run, is_checkpoint = run_of(path), _is_checkpoint(path)
    if is_checkpoint and not run.config.exists():
        raise UserError(f"{path} is a checkpoint without its run: leave it in the run's checkpoints/, or export it")
    if not run.config.exists():
        raise UserError(f"{path} holds no run, no checkpoint and no export: give the run_dir of a training")
    config = load_config(run.config)
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


def describe(config: Config, images: int, data_checksum: str | None = None) -> Description:
    """What a model of this configuration is after so many training images, those of an index of this checksum."""
    return Description(
        method=config.method,
        data=config.data,
        model=config.model,
        objective=config.objective,
        seed=config.seed,
        images=images,
        data_checksum=data_checksum,
    )
