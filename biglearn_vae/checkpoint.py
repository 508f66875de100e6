"""Checkpoints on the disk: complete or absent, one format for every engine, ZeRO stage and number of ranks.

    checkpoints/img-000000128000/
        weights.safetensors  ema.safetensors  optimizer.safetensors   whole fp32 tensors, named <kind>/<parameter>;
                         each may be cut into parts NAME-00001-of-00004.safetensors, written by different ranks
        state.json       where the run is, and what the resuming run must share with it
        manifest.json    size and SHA-256 of each of the others

A checkpoint is written under another name, flushed to the disk and renamed. Nothing in it is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.errors import UserError
from data.files import sync_directory, utf8_name, write_aside

FORMAT = 2
FILES = ("weights", "ema", "optimizer")  # the first two hold the kind of their name, the last all others
_JSON_BYTES = 2**24  # no state.json or manifest.json of ours is longer


class State(BaseModel, extra="forbid", frozen=True):
    """Where a run is. Everything else that it needs is in the tensors or follows from its configuration."""

    format: int = FORMAT
    images: int = Field(0, ge=0)
    step: int = Field(0, ge=0)
    skipped_steps: int = Field(0, ge=0)
    score: float | None = None  # of an evaluation at this very point; higher is better
    identity: dict[str, JsonValue]  # what a run that goes on from here must have in common with it

    @field_validator("format")
    @classmethod
    def _ours(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"checkpoint format {value}, this version reads {FORMAT}")
        return value


class _Fingerprint(BaseModel, extra="forbid", frozen=True, strict=True):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


# No separators and no dots but ours: a name cannot lead out of its folder.
_TENSOR_FILE = re.compile(r"(weights|ema|optimizer)(?:-(\d{5})-of-(\d{5}))?\.safetensors")
_MANIFEST = TypeAdapter(dict[str, _Fingerprint])


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by kind (weights, ema, moments of the optimizer) and parameter name, and where the run was."""

    tensors: dict[str, dict[str, Tensor]]
    state: State


class DamagedError(UserError):
    """A checkpoint is not what was written."""


class UnreadableError(DamagedError):
    """For the moment it cannot be known: the disk, or the way to it, fails."""


def remove_leftovers(directory: Path) -> None:
    """Remove what killed runs left half written or half removed. Call on one rank, when no other run is here."""
    for path in (*directory.glob(".writing-*"), *directory.glob(".removing-*")):
        shutil.rmtree(path, ignore_errors=True)


def start_writing(directory: Path, images: int) -> Path:
    """An empty folder in which the files of a checkpoint gather. Call on one rank."""
    aside = directory / f".writing-{_name(images)}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def write_part(aside: Path, tensors: dict[str, dict[str, Tensor]], part: int, parts: int) -> dict[str, dict]:
    """Write part number `part` of `parts` of every file; its fingerprints by file name.

    tensors: CPU tensors by kind and parameter name, those of this part. Raises OSError when the disk refuses.
    """
    fingerprints = {}
    for name in FILES:
        suffix = f"-{part + 1:05d}-of-{parts:05d}" if parts > 1 else ""
        path = aside / f"{name}{suffix}.safetensors"
        named = {
            f"{kind}/{key}": value.contiguous()
            for kind, of_kind in tensors.items()
            if _file_of(kind) == name
            for key, value in of_kind.items()
        }
        path.touch()
        mode = path.stat().st_mode  # as the umask wants it; safetensors would let nobody else read it
        try:
            save_file(named, path, {"format": "pt"})
        except SafetensorError as error:  # how safetensors reports what the disk refuses
            raise OSError(None, str(error), str(path)) from error
        path.chmod(mode)
        _sync(path)
        fingerprints[path.name] = _fingerprint(path)
    return fingerprints


def complete(aside: Path, state: State, fingerprints: dict[str, dict]) -> Path:
    """Make a checkpoint of the parts: state, manifest, rename. Call on one rank, when all parts are written."""
    final = aside.with_name(_name(state.images))
    write_aside(aside / "state.json", state.model_dump_json(indent=1).encode())
    manifest = {**fingerprints, "state.json": _fingerprint(aside / "state.json")}
    write_aside(aside / "manifest.json", json.dumps(manifest, indent=1).encode())
    if final.exists():  # the same images again, after a resume from an earlier one
        remove(final)
    aside.rename(final)
    sync_directory(final.parent)
    return final


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first. UserError when the folder cannot be read."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(directory, error) from None
    found = [directory / name for name in names if re.fullmatch(r"img-\d{12,}", name)]
    return sorted((path for path in found if _has_manifest(path)), key=images_of)


def _has_manifest(path: Path) -> bool:
    try:
        return (path / "manifest.json").exists()
    except PermissionError:
        return True  # something is there, and who reads it is told


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises DamagedError that names the damaged file, UserError without permission."""
    files = verify(path)
    state = _parse(path / "state.json", TypeAdapter(State))
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in sorted(files):
        try:
            with utf8_name(path / name) as file:
                loaded = load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{path}/{name} is no safetensors file ({error})") from None
        for key, value in loaded.items():
            kind, _, parameter = key.partition("/")
            if not parameter or _file_of(kind) != _TENSOR_FILE.fullmatch(name)[1]:
                raise DamagedError(f"{path}/{name} holds {key!r}")
            tensors.setdefault(kind, {})[parameter] = value
    return Checkpoint(tensors, state)


def verify(path: Path) -> set[str]:
    """The names of the tensor files of a checkpoint, each of which is what was written. Raises as `load_checkpoint`."""
    manifest = _parse(path / "manifest.json", _MANIFEST)
    files = {name for name in manifest if name != "state.json"}
    if files != _expected(files) or "state.json" not in manifest:
        raise DamagedError(f"{path}/manifest.json does not name the files of a checkpoint")
    for name, expected in manifest.items():
        try:  # the size first: what is longer is not read
            size = (path / name).stat().st_size
            if size != expected.bytes or _fingerprint(path / name) != expected.model_dump():
                raise DamagedError(f"{path}/{name} is damaged (size or SHA-256 differs)")
        except OSError as error:
            raise _unreadable(path / name, error) from None
    return files


def newest_whole(directory: Path, before_step: int | None = None) -> tuple[Path | None, Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, its path, and the faults of newer ones.

    before_step: only those of at most so many steps. (None, None, []) when there is none. Raises UserError when
    there are some and none is whole, and at one that this user may not read: it may be whole.
    """
    faults = []
    for path in reversed(list_checkpoints(directory)):
        state = state_or_none(path)
        if state and before_step is not None and state.step > before_step:
            continue
        try:
            return path, load_checkpoint(path), faults
        except DamagedError as error:
            faults.append(str(error))
    if faults:
        raise UserError(
            f"no checkpoint in {directory} is whole ({faults[0]}): copy a whole one there, or begin anew with another"
            " run_dir=..."
        )
    return None, None, []


def checkpoint_path(directory: Path, images: int) -> Path:
    """Where the checkpoint after so many images lies."""
    return directory / _name(images)


def _file_of(kind: str) -> str:
    return kind if kind in FILES[:2] else FILES[2]


def _name(images: int) -> str:
    return f"img-{images:012d}"


def images_of(path: Path) -> int:
    """By its name."""
    return int(path.name.removeprefix("img-"))


def _expected(files: Iterable[str]) -> set[str]:
    """All names of tensor files, given that some of them are `files`: plain ones or equally many parts of each."""
    matches = [_TENSOR_FILE.fullmatch(name) for name in files]
    counts = {int(match[3] or 1) for match in matches if match}
    if len(counts) != 1 or not 0 < (parts := counts.pop()) <= 99_999 or parts > len(matches):
        return set()
    suffixes = [f"-{part + 1:05d}-of-{parts:05d}" for part in range(parts)] if parts > 1 else [""]
    return {f"{name}{suffix}.safetensors" for name in FILES for suffix in suffixes}


def _parse(path: Path, kind: TypeAdapter):
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise DamagedError(f"{path} is larger than any of ours")
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise DamagedError(f"{path} is damaged ({where + ': ' if where else ''}{fault['msg']})") from None


def _unreadable(path: Path, error: OSError) -> UserError:
    """What is not there, or on a broken disk, is damaged; what another user keeps for himself is not."""
    if isinstance(error, PermissionError):
        return UserError(f"{path} cannot be read ({error.strerror}): ask its owner to let you read it (chmod a+rX)")
    kind = DamagedError if isinstance(error, FileNotFoundError) else UnreadableError
    return kind(f"{path} cannot be read ({error.strerror})")


def state_or_none(path: Path) -> State | None:
    """Where the run was, without a look at the tensors; None where it cannot be read."""
    try:
        return _parse(path / "state.json", TypeAdapter(State))
    except UserError:
        return None


def remove(path: Path) -> None:
    """Renamed first: a checkpoint that is half removed is no checkpoint."""
    gone = path.with_name(f".removing-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _fingerprint(path: Path) -> dict:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
