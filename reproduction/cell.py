"""A cell of the grid: one run, what it measured, and where and with what; a small JSON that is whole or absent."""

import hashlib
import json
from pathlib import Path

from pydantic import JsonValue, ValidationError

from data.errors import UserError
from data.files import make_folder, write_aside
from data.section import Section
from trainer.config import Config

FORMAT = 1
RECIPE_VERSION = 1  # raised when the same configuration comes to other figures: older cells are then refused
_BYTES = 2**22
# What decides where and how fast a run is made, but not what comes out of it; of the data a cell has the checksums.
_INDIFFERENT = (
    *(
        "run_dir",
        "stage_1",
        "engine.",
        "checkpoint.",
        "metrics.",
        "evaluate.batch_size",
        "evaluate.picture_every_images",
    ),
    *("data.shards", "data.latents", "data.patch_autoencoder", "data.memory_bytes", "data.encode", "data.workers"),
    *("data.max_damaged", "data.cache", "data.index"),
)
_DEFAULT = Config.model_validate({"data": {"source": "digits"}, "train": {"total_images": 1}}).flat()


class Cell(Section):
    """What a file holds beside its checksum.

    config_checksum: see `config_checksum`. data_checksum, codec_checksum: of the images, and of what made codes of
    them. hardware: of the training. ways: device, threads, precision, engine and how a step was computed. seconds: of
    training and of the measurements. flops_per_image: of one training image, forward and backward. failed: why there
    are no figures. figures: see reproduction/measures.py.
    """

    format: int = FORMAT
    name: str
    config_checksum: str
    recipe_version: int
    data_checksum: str
    codec_checksum: str | None = None
    source: str
    size: tuple[int, int, int]  # layers, embed_dim, latent_dim
    method: str
    mask_tokens: str
    seed: int
    images: int
    images_per_epoch: int
    batch_size: int
    parameters: int
    flops_per_image: float
    hardware: str
    versions: dict[str, str]
    revision: str | None
    ways: dict[str, str | bool | int]
    seconds: dict[str, float]
    failed: str | None = None
    figures: dict[str, JsonValue] = {}


def name_of(config: Config) -> str:
    """Of the cell of a run: that of its folder."""
    return Path(config.run_dir).name


def config_checksum(config: Config) -> str:
    """The SHA-256 of all that decides what a run learns and that is not as ever: a new key changes none."""
    flat = config.flat()
    kept = {key: flat[key] for key in flat if not key.startswith(_INDIFFERENT) or key == "engine.precision"}
    kept = {key: value for key, value in kept.items() if key not in _DEFAULT or value != _DEFAULT[key]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def path_of(folder: Path, config: Config) -> Path:
    return folder / f"{name_of(config)}.json"


def write_cell(path: Path, cell: Cell) -> None:
    """UserError where the disk refuses it."""
    content = _dump(cell.model_dump(mode="json"))
    try:
        make_folder(path.parent)
        write_aside(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make room, and start this again") from None


def _dump(values: dict) -> bytes:
    content = json.dumps(values, indent=1, sort_keys=True, allow_nan=False)
    return (json.dumps({"sha256": _sha256(content), "cell": values}, indent=1, sort_keys=True) + "\n").encode()


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def read_cell(path: Path, config: Config) -> Cell:
    """The cell of a run of this configuration. UserError that names a file which is damaged, or of another run."""
    remedy = "move it away, and it is made again"
    try:
        if path.stat().st_size > _BYTES:
            raise ValueError
        content = json.loads(path.read_bytes())
        values = content["cell"]
        whole = content["sha256"] == _sha256(json.dumps(values, indent=1, sort_keys=True))
        cell = Cell.model_validate(values) if whole else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        cell = None
    if cell is None or cell.format != FORMAT:
        raise UserError(f"{path} is damaged, or no cell of this version: {remedy}")
    if cell.recipe_version != RECIPE_VERSION:
        asked = f"it has recipe version {cell.recipe_version}, this is {RECIPE_VERSION}"
        raise UserError(f"{path} is of training that has changed since ({asked}): {remedy}")
    if (cell.name, cell.config_checksum) != (name_of(config), config_checksum(config)):
        raise UserError(f"{path} is of another configuration than the grid now has for {name_of(config)}: {remedy}")
    return cell
