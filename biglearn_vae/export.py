"""A trained model in files that need no training code: config.json, model.safetensors and, of codes, codec.safetensors.

Nothing in them is ever unpickled or executed; what does not fit is refused in one line.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError
from data.files import make_folder, utf8_name, write_aside
from data.read.config import DataConfig
from model.biglearn import BigLearnModel, ModelConfig
from model.method import MethodName
from model.objective import ObjectiveConfig
from model.patch_autoencoder.codec import CODEC, PatchCodec, read_codec, to_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
EXPORTED = (CONFIG, WEIGHTS, CODEC)
_CHECKSUM_OF = {WEIGHTS: "weights_sha256", CODEC: "codec_sha256"}
_CONFIG_BYTES = 2**20
_MAX_PATCHES = 2**16  # which the weights do not tell


class Description(BaseModel, extra="forbid", frozen=True):
    """What a model is, beside its weights."""

    format: Literal[1] = 1
    method: MethodName
    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    seed: int
    images: int = Field(ge=0)  # it was trained on so many
    data_checksum: str | None = None  # of the index of these images, where it is known

    @classmethod
    def of(cls, config, images: int, data_checksum: str | None = None) -> "Description":
        """What a model of a run's configuration is after so many images, those of an index of this checksum."""
        of_model = {key: getattr(config, key) for key in ("method", "data", "model", "objective", "seed")}
        return cls(**of_model, images=images, data_checksum=data_checksum)

    def build(self, weights: dict[str, Tensor]) -> BigLearnModel:
        """The model with these weights, on the CPU, not to be trained. UserError that names what does not fit."""
        if self.model.encoder_depth + self.model.decoder_depth > len(weights) or self.data.patches > _MAX_PATCHES:
            raise UserError(f"the configuration has more layers than the weights, or over {_MAX_PATCHES:,} patches")
        with torch.device("meta"):
            model = BigLearnModel(self.model, self.method, self.data.token_dim, self.data.patches)
        wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(f"{name} has the shape {found.get(name)}, the configuration says {wanted.get(name)}")
        # Anew, because the positions, which are no parameters, need a real device.
        model = BigLearnModel(self.model, self.method, self.data.token_dim, self.data.patches)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        return model.requires_grad_(False).eval()


def write_export(folder: Path, description: Description, weights: dict[str, Tensor], codec: PatchCodec | None) -> None:
    """Write the files; the configuration, which has the checksums of the others, comes first.

    UserError, and nothing is written, where files of these names are there that no configuration of ours names.
    """
    make_folder(folder)
    theirs = [name for name in EXPORTED if (folder / name).exists()]
    if theirs and not _is_ours(folder / CONFIG):
        raise UserError(f"{folder / theirs[0]} is of no export of this program: choose another --out, or move it away")
    values = description.model_dump(mode="json")
    contents = {WEIGHTS: to_safetensors(weights, {})}
    if codec:
        contents[CODEC] = codec.to_bytes()
    values |= {_CHECKSUM_OF[name]: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_aside(folder / CONFIG, (json.dumps(values, indent=1) + "\n").encode())
    for name, content in contents.items():
        write_aside(folder / name, content)


def _is_ours(config: Path) -> bool:
    """Whether a configuration is that of an export, of whatever version."""
    try:
        values = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and {"format", "method", _CHECKSUM_OF[WEIGHTS]} <= values.keys()


def read_export(folder: Path) -> tuple[Description, dict[str, Tensor], PatchCodec | None]:
    """What `write_export` wrote. UserError for anything else."""
    try:
        if (folder / CONFIG).stat().st_size > _CONFIG_BYTES:
            raise UserError(f"{folder / CONFIG} is larger than any of ours")
        values = json.loads((folder / CONFIG).read_bytes())
        checksums = {name: values.pop(key) for name, key in _CHECKSUM_OF.items() if key in values}
        description = Description.model_validate(values)
        for name in (WEIGHTS, CODEC) if description.data.code_dim else (WEIGHTS,):
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksums[name]:
                    raise UserError(f"{folder / name} is damaged (its SHA-256 differs): export the model again")
        codec = read_codec(folder / CODEC) if description.data.code_dim else None
        with utf8_name(folder / WEIGHTS) as file:
            return description, load_file(file), codec
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"{folder} holds no export of this version ({cause}): export the model again") from None
