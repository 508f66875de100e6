"""Many runs from one file: every configuration with every combination of values, part after part."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from data.errors import UserError
from data.section import Section
from data.values import checked, read_mapping
from trainer.config import Config, load_config


class Part(Section):
    """Configurations, each with every combination of values.

    configs: files, relative to the grid's. values: of each key; they name the runs. settings: that all runs of the part
    have, and that name none.
    """

    configs: tuple[str, ...] = Field(min_length=1)
    values: dict[str, tuple[str, ...]] = {}
    settings: dict[str, str] = {}


class Grid(Section):
    """run_dir: below it the directory of each run. settings: that all runs have, before those of their part."""

    run_dir: str
    settings: dict[str, str] = {}
    parts: tuple[Part, ...] = Field(min_length=1)


def load_grid(path: Path, overrides: Sequence[str]) -> tuple[Path, list[Config]]:
    """The directory of the grid and the configurations of its runs, in the order of the file.

    A file without `parts` is one part. overrides: of every run; run_dir= moves the grid. Raises UserError.
    """
    values = read_mapping(path, "a grid", "configs/reproduction/")
    if "parts" not in values:
        whole = {key: values.pop(key) for key in ("configs", "values") if key in values}
        values["parts"] = [whole]
    grid = checked(values, Grid, path)
    moved = [text.partition("=")[2] for text in overrides if text.startswith("run_dir=")]
    base = Path(moved[-1] if moved else grid.run_dir).expanduser()
    of_all = [text for text in overrides if not text.startswith("run_dir=")]
    configs = []
    for part in grid.parts:
        if not all(part.values.values()):
            raise UserError(f"{path}: it has a part without runs: give each key of `values` one value at least")
        if named := {text.partition("=")[0] for text in of_all} & part.values.keys():
            raise UserError(f"{path}: {named.pop()} differs from run to run there: leave it out of the command")
        fixed = [f"{key}={value}" for key, value in (grid.settings | part.settings).items()]
        for file, *chosen in itertools.product(part.configs, *part.values.values()):
            pairs = [f"{key}={value}" for key, value in zip(part.values, chosen, strict=True)]
            name = re.sub(r"[^\w.=,+-]", "", "-".join([Path(file).stem, *pairs]).replace("/", "_"))
            configs.append(load_config(path.parent / file, [*fixed, *pairs, *of_all, f"run_dir={base / name}"]))
    places = [config.run_dir for config in configs]
    if len({*places}) < len(places):
        raise UserError(f"{path}: two of its runs have one directory: name each configuration and value once")
    return base, configs
