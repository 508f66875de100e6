"""Many runs from one file: every configuration with every combination of values."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from data.errors import UserError
from data.values import read_mapping, typed
from trainer.config import Config, load_config


class Sweep(BaseModel, extra="forbid", frozen=True):
    """run_dir: below it the directory of each run. configs: files, relative to this one. values: of each key."""

    run_dir: str
    configs: tuple[str, ...] = Field(min_length=1)
    values: dict[str, tuple[str, ...]] = {}


def load_sweep(path: Path, overrides: Sequence[str]) -> tuple[Path, list[Config]]:
    """The directory of the sweep and the configurations of its runs, in the order of the file.

    overrides: of every run; run_dir= moves the sweep. Raises UserError.
    """
    try:
        sweep = Sweep.model_validate(typed(read_mapping(path, "a sweep", "configs/sweeps/"), Sweep))
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    moved = [text.partition("=")[2] for text in overrides if text.startswith("run_dir=")]
    base = Path(moved[-1] if moved else sweep.run_dir).expanduser()
    of_all = [text for text in overrides if not text.startswith("run_dir=")]
    configs = []
    for file, *chosen in itertools.product(sweep.configs, *sweep.values.values()):
        pairs = [f"{key}={value}" for key, value in zip(sweep.values, chosen, strict=True)]
        name = "-".join([Path(file).stem, *pairs]).replace("/", "_")
        configs.append(load_config(path.parent / file, [*pairs, *of_all, f"run_dir={base / name}"]))
    places = [config.run_dir for config in configs]
    if len({*places}) < len(places):
        raise UserError(f"{path}: two of its runs have one directory: name each configuration and value once")
    return base, configs
