"""Checkpoints: complete or absent, one format for every engine, ZeRO stage and number of ranks.

    checkpoints/img-000000128000/
        weights.safetensors  ema.safetensors  optimizer.safetensors   whole fp32 tensors by parameter name
        state.json       images seen, step, and what the resuming run must share: method, model, seed, data
        manifest.json    size and SHA-256 of each of the others

A checkpoint is written under another name, flushed to the disk and renamed. Nothing in it is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import UserError
from trainer.files import sync_directory, write_aside

FORMAT = 1
_TENSORS = {"weights": ("weights",), "ema": ("ema",), "optimizer": ("exp_avg", "exp_avg_sq")}


class CheckpointConfig(BaseModel, extra="forbid", frozen=True):
    """Which checkpoints stay."""

    keep: int = Field(2, gt=0)  # the last so many


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by kind (weights, ema, exp_avg, exp_avg_sq) and parameter name, and what state.json holds."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict


def save_checkpoint(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write checkpoints/img-<images>; afterwards only the last `keep` stay. Call on one rank."""
    final = directory / f"img-{checkpoint.state['images']:012d}"
    aside = directory / f".writing-{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, kinds in _TENSORS.items():
        tensors = {f"{kind}/{key}": value for kind in kinds for key, value in checkpoint.tensors[kind].items()}
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors")
        _sync(aside / f"{name}.safetensors")
    write_aside(aside / "state.json", json.dumps({"format": FORMAT, **checkpoint.state}, indent=1).encode())
    manifest = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
    write_aside(aside / "manifest.json", json.dumps(manifest, indent=1).encode())
    if final.exists():  # the same images again, after a resume from an earlier one
        _remove(final)
    aside.rename(final)
    sync_directory(directory)
    for old in list_checkpoints(directory)[:-keep]:
        _remove(old)
    return final


def _remove(path: Path) -> None:
    """Renamed first: a checkpoint that is half removed is no checkpoint."""
    gone = path.with_name(f".removing-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("img-*") if (path / "manifest.json").exists())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises UserError that names the damaged file."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        expected = {f"{name}.safetensors" for name in _TENSORS} | {"state.json"}
        if set(manifest) != expected:
            raise UserError(f"{path}/manifest.json: names other files than {sorted(expected)}")
        for name in expected:
            if _fingerprint(path / name) != manifest[name]:
                raise UserError(
                    f"{path}/{name}: damaged (size or SHA-256 differs); delete {path} to use an earlier one"
                )
        state = json.loads((path / "state.json").read_text())
        if state.get("format") != FORMAT:
            raise UserError(f"{path}: checkpoint format {state.get('format')}, this version reads {FORMAT}")
        tensors: dict[str, dict[str, Tensor]] = {}
        for name in _TENSORS:
            for key, value in load_file(path / f"{name}.safetensors").items():
                kind, _, parameter = key.partition("/")
                tensors.setdefault(kind, {})[parameter] = value
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); delete it to use an earlier one") from None
    return Checkpoint(tensors, state)


def _fingerprint(path: Path) -> dict:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
