"""What a person writes behind a key, in YAML files and in overrides: text, whose meaning the type of the key decides.

So a folder may be called 2024-05-01 or 010, `method: no` is no truth value, and 1e-3 is a number. Whole numbers may be
written as 1_000, 1e5 and 010, which is ten.
"""

import difflib
import os
import re
from decimal import Decimal
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from data.errors import UserError, printable

Model = TypeVar("Model", bound=BaseModel)
_FILE_BYTES = 2**20
_NULL = {"", "~", "null", "Null", "NULL"}
_NUMBER = re.compile(r"[+-]?(\d{1,3}(_\d{3})+|\d+|(?=\.\d))(\.\d*)?(e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)


class Plain(str):
    """A scalar that stands without quotes: only such a one can be a null."""


class _Loader(yaml.SafeLoader):
    """Every scalar is text, and no key stands twice in a mapping. `<<` merges, as ever."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in of_first if tag == "tag:yaml.org,2002:merge"]
        for first, of_first in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    name = printable(key.value)
                    raise UserError(
                        f"the key {name} stands in line {lines[key.value]} and again in line {line}: keep one"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:str", lambda loader, node: node.value if node.style else Plain(node.value))


def read_mapping(path: Path, what: str, examples: str) -> dict:
    """The keys and values of a YAML file. what, examples: for the UserError when it is none."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; {what} is one of YAML, see {examples} for examples")
        if path.stat().st_size > _FILE_BYTES:
            raise UserError(f"{path} has more than {_FILE_BYTES:,} bytes; {what} is a short YAML file")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        fault = f"{path} cannot be read ({error.strerror})"
        raise UserError(f"{fault}: {what} is a YAML file, see {examples} for examples") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: not a text file in UTF-8 (line {line}); {what} is YAML") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: {what} is a mapping; see {examples} for examples")
    return _nested(values, path)


def _parse(text: str, where: str):
    """UserError that names `where` when the text is no YAML, or a mapping has a key twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" in line {mark.line + 1}" if mark else ""
        why = f" ({printable(problem)})" if problem else ""
        remedy = "check the indentation and the colons, and quote text with special characters"
        raise UserError(f"{where}: not valid YAML{line}{why}; {remedy}") from None


def _nested(values: dict, path: Path) -> dict:
    """`train.batch_size: 64` is what `train:` with `batch_size: 64` below it is."""
    is_dotted = {key: isinstance(key, str) and "." in key for key in values}
    nested = {key: value for key, value in values.items() if not is_dotted[key]}
    for dotted in filter(is_dotted.get, values):
        *sections, last = dotted.split(".")
        place = _section(nested, sections, f"{path}: {printable(dotted)}")
        if last in place:
            raise UserError(f"{path}: the key {printable(dotted)} stands there twice, with a dot and below: keep one")
        place[last] = values[dotted]
    return nested


def _section(values: dict, sections: list[str], where: str) -> dict:
    """The mapping at a place, which is made where there is none."""
    for section in sections:
        inner = values.get(section, Plain())
        if not (is_null(inner) or isinstance(inner, dict)):
            raise UserError(f"{where}: {printable(section)} is a value, not a section")
        values[section] = {} if is_null(inner) else dict(inner)  # a copy: an alias may stand elsewhere, too
        values = values[section]
    return values


def is_null(value) -> bool:
    """Whether a value is written as none: an empty place, ~ or null."""
    return isinstance(value, Plain) and value in _NULL


def override(values: dict, text: str, model: type[BaseModel], prefix: str = "") -> None:
    """Put "section.key=value" into nested values. prefix: of the key, for messages. UserError for what is none."""
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise UserError(f"{text!r} is no override; write section.key=value, as train.batch_size=64")
    kind: Any = model
    for key in (keys := dotted.split(".")):
        kind = _annotation(kind, key)
    is_scalar = all(get_origin(member) in (None, Literal) and not _is_section(member) for member in _members(kind))
    value = Plain(value) if is_scalar or not value else _parse(value, f"override {prefix}{dotted}")
    _section(values, keys[:-1], repr(text))[keys[-1]] = value


def checked(values: dict, model: type[Model], path: str | Path) -> Model:
    """Values that were read from a file as a model of them; UserError that names the file and the first fault."""
    try:
        return model.model_validate(typed(values, model))
    except ValidationError as error:
        raise UserError(f"{path}: {_first_fault(error, model)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def typed(values: dict, model: type[BaseModel], where: str = "") -> dict:
    """Values as the types of a model's fields want them; what does not fit otherwise is left to the model to refuse.

    A section without any key has its defaults. where: of these values, for the UserError of what is no number.
    """
    return {key: _typed(value, _annotation(model, key), f"{where}{key}") for key, value in values.items()}


def _typed(value, annotation, where: str):
    members = _members(annotation)
    if is_null(value) and any(_is_section(member) or get_origin(member) is dict for member in members):
        return {}
    if is_null(value) and any(get_origin(member) in (tuple, list) for member in members):
        return []
    if isinstance(value, dict):
        for member in members:
            if _is_section(member):
                return typed(value, member, f"{where}.")
            if get_origin(member) is dict:
                return {key: _typed(inner, get_args(member)[1], f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        for member in members:
            if get_origin(member) in (tuple, list):
                kinds = [kind for kind in get_args(member) if kind is not Ellipsis]
                return [_typed(inner, kinds[min(n, len(kinds) - 1)], f"{where}.{n}") for n, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    if NoneType in members and is_null(value):
        return None
    if all(get_origin(member) in (tuple, list) for member in members):
        raise UserError(f"{where}: Input should be a list, as [a, b] (it is {printable(value)!r})")
    if str in members:
        return os.path.expanduser(value) if value.startswith("~") and value != "~" else str(value)
    for kind in (int, float):
        if kind in members:
            return _number(value.strip(), kind, where)
    return value.strip()


def _number(text: str, kind: type[int] | type[float], where: str) -> int | float:
    number = Decimal(text.replace("_", "")) if _NUMBER.fullmatch(text) else None
    if number is None or (kind is int and number != number.to_integral_value()):
        of_kind = "integer, as 64, 1e5 or 1_000" if kind is int else "number, as 0.1 or 1e-3"
        raise UserError(f"{where}: Input should be a valid {of_kind} (it is {printable(text)!r})")
    if not isfinite(float(number)):
        raise UserError(f"{where}: Input should be a finite number (it is {printable(text)!r})")
    return kind(number)


def _annotation(model, key: str) -> Any:
    """The type of a field; Any where there is none of this name."""
    return model.model_fields[key].annotation if _is_section(model) and key in model.model_fields else Any


def _members(annotation) -> tuple:
    """The types of a union."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_section(annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    fault = error.errors()[0]
    where = [str(part) for part in fault["loc"]]
    dotted = ".".join(where)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(dotted, _known_keys(model), n=1, cutoff=0.0)
        return f"unknown key {dotted}; did you mean {near[0]}?"
    if fault["type"] == "missing":
        return f"the key {dotted} is missing; add it"
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict | BaseModel) else f" (it is {fault['input']!r})"
    return f"{dotted}: {message}{given}" if dotted else message


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
