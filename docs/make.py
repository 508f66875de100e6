"""What is generated in docs/: the reference of the configuration's keys, and the table of metrics.

python docs/make.py
"""

import inspect
import io
import re
import tokenize
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trainer.config import Config
from trainer.metrics.registry import FAMILIES

FOLDER = Path(__file__).parent
_BEGIN, _END = "<!-- made by docs/make.py -->\n", "<!-- end of it -->\n"
_HEAD = """\
# Every key of a configuration

Made of the schema by `python docs/make.py`. A configuration is a YAML file that may extend another one
(`extends: FILE`); every key can be overridden behind a command, as `train.batch_size=64`. What a shipped configuration
sets stands in its file in [configs/](../configs/). How values are written, and what a resumed run must keep, is in
[running.md](running.md).

"""
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_BOUNDS = (("gt", "above {}"), ("ge", "at least {}"), ("lt", "below {}"), ("le", "at most {}"))


def pages() -> dict[Path, str]:
    """The pages with what is generated in them, as they should be."""
    monitoring = FOLDER / "monitoring.md"
    before, _, rest = monitoring.read_text().partition(_BEGIN)
    table = before + _BEGIN + _metrics() + _END + rest.partition(_END)[2]
    return {FOLDER / "configuration.md": _HEAD + "\n".join(_sections(Config)), monitoring: table}


def _metrics() -> str:
    rows = ["| metric | kind | labels | ranks | in the logs | |", "|---|---|---|---|---|---|"]
    for family in FAMILIES:
        values: dict[str, list[str]] = {label: [] for label in family.labels}
        for of_number in family.of.values():
            for label, value in zip(family.labels, of_number, strict=True):
                values[label].append(value)
        labels = "; ".join(f"`{label}`: {', '.join(of_label)}" for label, of_label in values.items())
        ranks = "each" if family.each_rank else "first"
        numbers = ", ".join(f"`{number}`" for number in family.of)
        rows.append(f"| `{family.full_name}` | {family.kind} | {labels} | {ranks} | {numbers} | {family.help} |")
    return "\n".join(rows) + "\n"


def _sections(section: type[BaseModel], prefix: str = "") -> list[str]:
    """A heading, the words of its docstring and a table for each section, the outer ones first."""
    meanings, inner = meanings_of(section), []
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner += _sections(field.annotation, f"{prefix}{name}.")
        else:
            meaning = meanings[name].replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {meaning} |")
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## A run"
    return [title, "", inspect.cleandoc(section.__doc__), "", *rows, "", *inner]


def meanings_of(section: type[BaseModel]) -> dict[str, str]:
    """What the comment behind each key, or in the lines above it, says."""
    source = inspect.cleandoc(inspect.getsource(section))
    comments: dict[int, str] = {}
    own_lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                own_lines.add(token.start[0])
    meanings = {}
    for number, line in enumerate(source.splitlines(), 1):
        if (found := re.match(r" *(\w+): ", line)) and found[1] in section.model_fields:
            first = number
            while first - 1 in own_lines:
                first -= 1
            above = [comments[n] for n in range(first, number)]
            meanings[found[1]] = " ".join([*above, *([comments[number]] if number in comments else [])])
    return {name: meanings.get(name, "") for name in section.model_fields}


def _type(field: FieldInfo) -> str:
    kind = _kind(field.annotation)
    bounds = [
        words.format("2^63" if getattr(rule, name) == 2**63 else f"{getattr(rule, name):g}")
        for rule in field.metadata
        for name, words in _BOUNDS
        if hasattr(rule, name)
    ]
    return ", ".join([kind, *bounds])


def _kind(annotation) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if kind is NoneType else _kind(kind) for kind in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list of: {_kind(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} of: {_kind(arguments[0])}"
    return _WORDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.default_factory:
        return f"`{field.default_factory({'source': 'SOURCE', 'shards': 'SHARDS'})}`"
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:_}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{list(value)}`" if isinstance(value, tuple) else f"{value}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path)
