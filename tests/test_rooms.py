"""The house: each room knows those before it and none after it, and none is too full to look through."""

import ast
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.programs import ROOT

# From the ground up. Rooms of one line do not know one another, but for trainer/, which puts its own together.
FLOORS = (
    ("data",),
    ("data.sources", "data.storage", "data.order"),
    ("data.read",),
    ("data.tars",),
    ("data.prepare",),
    ("model",),
    ("model.packed", "model.patch_autoencoder"),
    ("biglearn_vae",),
    ("biglearn_vae.hub",),
    ("trainer.ranks", "trainer.tasks"),
    ("trainer.engines.optimizers",),
    ("trainer.engines", "trainer.metrics"),
    ("trainer.checkpoints",),
    ("trainer",),
    ("evaluation", "serving"),
    ("reproduction",),
    ("launch.commands",),
    ("launch", "launch.slurm", "launch.monitoring"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOVED = {"data/shards.py", "data/index.py", "data/samples.py", "data/stream.py"}  # for one version
MOST = 13


def _room(module: str) -> str:
    """The innermost room that a module, or a room itself, is of."""
    parts = module.split(".")
    while ".".join(parts) not in FLOOR:
        parts.pop()
    return ".".join(parts)


def _imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {module for module in found if module.partition(".")[0] in FLOOR}


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_knows_only_those_below(room):
    for path in (ROOT / room.replace(".", "/")).glob("*.py"):
        above = {other for other in map(_room, _imported(path)) if other != room and FLOOR[other] >= FLOOR[room]}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_has_few_files_and_says_what_it_is_for(room):
    folder = ROOT / room.replace(".", "/")
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    files = [path for path in folder.glob("*.py") if str(path.relative_to(ROOT)) not in MOVED]
    assert len(files) <= MOST


def test_every_folder_of_code_is_a_room():
    rooms = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in ROOT.glob("*/**/__init__.py")}
    assert {room for room in rooms if room.partition(".")[0] in FLOOR} == set(FLOOR)


def test_every_room_is_in_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert [room for room in FLOOR if not any(fnmatch(room, pattern) for pattern in settings["include"])] == []
