"""The commands that this project shows: in its pages, above its configurations, in the help of its programs."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launch.commands.sampling import COMMANDS
from tests.programs import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]

_PROGRAM = r"(?:python3?|deepspeed|torchrun|accelerate|srun|sbatch|make|pytest|sudo|docker|tar|\.|\.ci/run)"
_ASSIGNMENTS = r"(?:[A-Z_]+=(?:\"[^\"]*\"|\S+) )*"
_BEGINS = re.compile(rf"{_ASSIGNMENTS}{_PROGRAM}(?: |$)")
_OF_A_LINE = re.compile(rf"(?:^|  |: )({_ASSIGNMENTS}(?:python|deepspeed|torchrun|docker|sudo) \S.*)")
_INLINE = re.compile(r"`([^`]+)`")
_WHOLE = re.compile(rf"{_ASSIGNMENTS}(?:make \S|{_PROGRAM} (?!\S+\.py$).*(?:\.py|-m |/))")


@dataclass(frozen=True)
class Shown:
    """place: the file, and what in it; line: the command, or several with && between, as it is read there."""

    place: str
    line: str

    def __str__(self) -> str:
        return f"{self.place}: {self.line}"

    def meant(self) -> list[str]:
        """The line without its brackets: [key=a|b] is the one, then the other; of [key=value ...] nothing is left.

        A list, key=[a, b], stays.
        """
        outside, inside = (re.split(r"(?<!=)\[(.*?)\]", self.line)[first::2] for first in (0, 1))
        lines = []
        for chosen in itertools.product(*map(_choices, inside)):
            parts = itertools.zip_longest(outside, chosen, fillvalue="")
            lines.append("".join(itertools.chain(*parts)).strip())
        return lines


def _choices(of_brackets: str) -> list[str]:
    key, equals, values = of_brackets.rpartition("=")
    return [""] if values.endswith("...") else [key + equals + value for value in values.split("|")]


@cache
def shown_commands() -> list[Shown]:
    """All of them, each once for each place."""
    return [*dict.fromkeys(itertools.starmap(Shown, _everywhere()))]


def scripts() -> list[str]:
    """Programs with a command line, relative to the root."""
    paths = [path for room in ("launch", "benchmarks", "docs", "tests") for path in sorted((ROOT / room).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if '\nif __name__ == "__main__":\n' in path.read_text()]


def _everywhere() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for line in of_page((ROOT / page).read_text()):
            yield page, line
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        comments = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        for line in _of_lines(comments):
            yield str(path.relative_to(ROOT)), line
    for script in scripts():
        for text in _texts(ROOT / script):
            for line in [*_of_lines(_joined(text).splitlines()), *_of_prose(text)]:
                yield script, line
    for name, command in COMMANDS.items():
        shown = f"python launch/sample.py {name} --model runs/digits_8x8-biglearn_u {command.example}"
        yield f"launch/sample.py {name}", shown


def of_page(text: str) -> Iterator[str]:
    """Every line of the blocks that hold a command, and what stands between backticks elsewhere."""
    prose, block, is_fenced = [], [], False
    for line in [*_joined(text).splitlines(), ""]:
        if line.startswith("```"):
            is_fenced = not is_fenced
            continue
        if is_fenced or line.startswith("    "):
            block.append(line.strip())
            continue
        if any(_BEGINS.match(of_block) for of_block in block):
            yield from (_without_remark(of_block) for of_block in block if of_block)
        else:  # code, or a list in a list
            prose += block
        block = []
        prose.append(line)
    yield from _of_prose("\n".join(prose))


def _of_prose(text: str) -> Iterator[str]:
    """Commands between backticks; a program alone, as `torchrun` or `python launch/train.py`, is but its name."""
    for paragraph in text.split("\n\n"):
        inline = (" ".join(code.split()) for code in _INLINE.findall(paragraph))
        yield from (line for line in inline if _WHOLE.match(line))


def _of_lines(lines: Iterable[str]) -> list[str]:
    return [_without_remark(found[1]) for line in lines if (found := _OF_A_LINE.search(line))]


def _without_remark(line: str) -> str:
    """A remark stands behind #, or apart."""
    return re.split(r" # |  ", line)[0].rstrip()


def _joined(text: str) -> str:
    """With each command on one line."""
    return re.sub(r" \\\n\s*", " ", text)


def _texts(path: Path) -> list[str]:
    """The docstring of a script, and its EXAMPLES."""
    tree = ast.parse(path.read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    examples = [node.value.value for node in assigned if getattr(node.targets[0], "id", "") == "EXAMPLES"]
    return [ast.get_docstring(tree) or "", *examples]
