"""The cells of a grid: which are made, how long the others take, and making them."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from biglearn_vae.images import open_codec, open_index
from data.errors import UserError
from data.files import lock, make_folder
from data.prepare.at_once import prepare_at_once
from model.biglearn import BigLearnModel, ModelConfig
from reproduction.cell import Cell, name_of, path_of, read_cell, write_cell
from reproduction.grid import load_grid
from trainer.config import Config
from trainer.ranks.stop import StopRequest
from trainer.ranks.world import World

_COPIES = 4  # of the weights, in a checkpoint: themselves, their averages and two moments
_CORE_FLOPS = 4e10  # a second, that a small model reaches, its measurements included


@dataclass(frozen=True)
class Work:
    """configs: of the runs, in the order in which they are made. cells: the folder of the cells."""

    path: Path
    configs: tuple[Config, ...]
    cells: Path

    @classmethod
    def of(cls, path: Path, cells: Path, overrides: Sequence[str]) -> "Work":
        """Of a file of configs/reproduction/. UserError for what is none, and for cells that are not its own."""
        _, configs = load_grid(path, overrides)
        work = cls(path, tuple(configs), cells)
        work.found()
        return work

    def found(self) -> dict[str, Cell]:
        """The cells that are there, by name, in the order of the grid."""
        names = {name_of(config): config for config in self.configs}
        there = {file.stem for file in self.cells.glob("*.json")} if self.cells.is_dir() else set()
        if unknown := sorted(there - names.keys()):
            raise UserError(f"{self.cells / unknown[0]}.json is of no run of {self.path}: move it away")
        return {name: read_cell(path_of(self.cells, config), config) for name, config in names.items() if name in there}

    def left(self) -> int:
        return len(self.configs) - len(self.found())

    def add(self, folder: Path) -> list[str]:
        """Copy cells of another folder that are not here, all or none; their names."""
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give the one that holds the cells, as another machine wrote them")
        absent = [config for config in self.configs if not path_of(self.cells, config).exists()]
        others = [(config, path_of(folder, config)) for config in absent if path_of(folder, config).exists()]
        taken = [(path_of(self.cells, config), read_cell(path, config)) for config, path in others]
        for path, cell in taken:
            write_cell(path, cell)
        return [cell.name for _, cell in taken]

    def status(self) -> str:
        """What is made, what is left, and time and disk that the rest takes, by the cells that there are."""
        found = self.found()
        absent = [config for config in self.configs if name_of(config) not in found]
        lines = [f"{self.path}: {len(found)} of {len(self.configs)} cells are in {self.cells}"]
        lines += [f"  failed: {name}: {cell.failed}" for name, cell in found.items() if cell.failed]
        lines += [f"  left: {name_of(config)}" for config in absent]
        if absent:
            place, size = Path(absent[0].run_dir).parent, sum(map(_disk, absent)) / 1e9
            lines.append(
                f"  the rest takes about {_hours(absent, [*found.values()])}, and up to {size:.1f} GB in {place}"
            )
        return "\n".join(lines)

    def make(self, world: World, stop: StopRequest, machine: dict) -> Iterator[tuple[str, Cell | None]]:
        """Make each cell that is absent and that no other process is at work on; None in its place when stopped."""
        from reproduction.measures import make_cell

        if world.size > 1:
            raise UserError("a cell is made by one process: start several, each takes cells of its own")
        _require_writable(self.cells)
        for config in self.configs:
            _require_images(config)
        judges: dict = {}
        for config in self.configs:
            path = path_of(self.cells, config)
            if path.exists():
                continue
            with _alone(Path(config.run_dir)) as is_free:
                if not is_free or path.exists():
                    continue
                cell = make_cell(config, world, stop, machine, judges)
                if cell:
                    write_cell(path, cell)
            yield name_of(config), cell
            if not cell:
                return


def _hours(absent: Sequence[Config], made: Sequence[Cell]) -> str:
    """How long cells take, by the speed of those that are made, their measurements included."""
    work = sum(_work(c.method, _parameters(c), c.data.patches, c.total_images) for c in absent)
    patches = absent[0].data.patches
    speeds = [_work(c.method, c.parameters, patches, c.images) / sum(c.seconds.values()) for c in made if not c.failed]
    if speeds:
        return f"{work / statistics.median(speeds) / 3600:.1f} hours by the cells that are made"
    return f"{work / _CORE_FLOPS / 3600:.1f} hours of one CPU core (a guess; the first cells tell better)"


def _work(method: str, parameters: int, patches: int, images: int) -> float:
    """FLOP of a training, roughly: six for each parameter and token, twice in the one trunk of U."""
    return 6.0 * parameters * patches * images * (2 if method == "biglearn_u" else 1)


def _parameters(config: Config) -> int:
    return _count(config.method, config.model, config.data.token_dim, config.data.patches)


@cache
def _count(method: str, model: ModelConfig, token_dim: int, patches: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in BigLearnModel(model, method, token_dim, patches).parameters())


def _disk(config: Config) -> int:
    """Bytes of the checkpoints of a run, one more than it keeps."""
    return 4 * _COPIES * _parameters(config) * (1 + config.checkpoint.keep_last + config.checkpoint.keep_best)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is at work on this cell; until the end none will be."""
    try:
        make_folder(folder)
        file = (folder / "cell.lock").open("a")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}: choose another run_dir=...") from None
    with file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            yield False
        else:
            yield True


def _require_writable(folder: Path) -> None:
    """UserError now, not when the first cell has been made."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --cells DIR") from None


def _require_images(config: Config) -> None:
    """UserError now for what would end a cell when its turn has come; images that come with a package are written."""
    prepare_at_once(config.data)
    open_index(config.data, open_codec(config.data))
