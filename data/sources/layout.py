"""What the folders of a person's images mean: splits, classes, or neither."""

import logging
import os
import re
from pathlib import Path

from data.errors import UserError, printable

log = logging.getLogger(__name__)

# The images of a split, by their names below the source: their paths below the folder of the split.
Split = dict[str, str]

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _NAMES.items() for word in words}
_NEUTRAL = {"set", "data", "image", "images", "img", "imgs"}


def split_of(folder_name: str) -> str | None:
    """The split that a name means, in any case, as Train, valid, test_set, val2017; None for all other names."""
    words = [word for word in _words(folder_name) if word not in _NEUTRAL]
    return _SPLIT_OF.get(words[0]) if len(words) == 1 else None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())


def find_splits(folder: Path, names: list[str]) -> dict[str, Split]:
    """The splits train, val and test by the folders that are named so, in `folder` or in single folders below it.

    Without such folders all images are train, and there is no test; so it is with a train alone. Without a test, val
    is the test. UserError for what could be meant in two ways, and for a split without images.
    """
    place, inner_of = "", {name: name for name in names}
    while True:
        folders = sorted({inner.partition("/")[0] for inner in inner_of.values() if "/" in inner})
        found = [name for name in folders if split_of(name)]
        if found or len(folders) != 1 or not all("/" in inner for inner in inner_of.values()):
            break
        place += f"{folders[0]}/"
        inner_of = _below(inner_of)
    if not found:
        _warn_of_hidden_splits(names)
        return {"train": {name: name for name in names}}
    folder_of = _name_splits(folder / place, found, beside=[name for name in folders if name not in found])
    split_at = {name: split for split, name in folder_of.items()}
    splits: dict[str, Split] = {split: {} for split in folder_of}
    for name, inner in inner_of.items():
        first, slash, rest = inner.partition("/")
        if slash and first in split_at:
            splits[split_at[first]][name] = rest
    return splits


def _name_splits(place: Path, found: list[str], beside: list[str]) -> dict[str, str]:
    """The folder of each split, in the order train, val, test. beside: the other folders with images."""
    folder_of: dict[str, str] = {}
    for name in found:
        split = split_of(name)
        if split in folder_of:
            both = f"{printable(folder_of[split])} and {printable(name)}"
            raise UserError(f"{place} has two folders for {split}, {both}: make them one, or rename one")
        folder_of[split] = name
    for name in sorted(os.listdir(place)):
        if split_of(name) and split_of(name) not in folder_of and (place / name).is_dir():
            raise UserError(
                f"{place / name} holds no images: add some, remove it, or give another folder with --source"
            )
    if "train" not in folder_of:
        raise UserError(
            f"{place} has {' and '.join(map(printable, found))} but no folder of training images: name one train; give"
            f" --source {place / found[0]} for its images alone; or rename {printable(found[0])} if it is a class"
        )
    if len(folder_of) == 1 and beside:
        raise UserError(
            f"{place / found[0]} may be the training split or, like {printable(beside[0])} beside it, a class: rename"
            " it if it is a class, else move the others away"
        )
    held_out = ""
    if folder_of.keys() == {"train", "val"}:
        folder_of["test"] = folder_of.pop("val")
        held_out = " (no other is for testing)"
    folder_of = {split: folder_of[split] for split in _NAMES if split in folder_of}
    if len(folder_of) == 1:
        log.info("%s has no folder for testing: a tenth of %s is", place, printable(folder_of["train"]))
    elif any(name != split for split, name in folder_of.items()):
        taken = ", ".join(f"{printable(name)} as {split}" for split, name in folder_of.items())
        log.info("took the folders %s%s", taken, held_out)
    return folder_of


def _warn_of_hidden_splits(names: list[str]) -> None:
    """Of folders that lie too deep, or whose names say more than that of a split."""
    folders = sorted({name.rpartition("/")[0] for name in names})
    like_splits = [folder for folder in folders if not _SPLIT_OF.keys().isdisjoint(_words(folder))]
    if like_splits:
        log.warning(
            "folders that are not taken as splits, but may be meant so: %s, first %s; name them train, val and test,"
            " side by side",
            f"{len(like_splits):,}",
            printable(like_splits[0]),
        )


def find_classes(splits: dict[str, Split]) -> tuple[dict[str, str], str | None]:
    """The class of each image, by its name, and an image that lies beside folders but in none, or None.

    The class is the folder at the first level below the split that has several, or that other splits have as well:
    what all images of a split share is none. There are no classes when any split has images in no folder at all.
    UserError when a class has the name of a split.
    """
    levels, loose = {}, None
    for split, inner_of in splits.items():
        levels[split], found = _levels(inner_of)
        loose = loose or found
    without = [split for split in splits if not levels[split]]
    if without:
        if any(levels.values()):
            loose = loose or min(splits[without[0]])
        return {}, loose
    classes = _class_names(list(levels.values()))
    class_of = {}
    for split, inner_of in splits.items():
        depth = next((d for d, names in levels[split].items() if names & classes), max(levels[split]))
        if like_split := next(filter(split_of, sorted(levels[split][depth])), None):
            raise UserError(
                f"the folder {printable(like_split)} among the classes of {split} is named like a split: move it beside"
                " the other splits, or rename it if it is a class"
            )
        class_of |= {name: inner.split("/", depth + 1)[depth] for name, inner in inner_of.items()}
    return class_of, loose


def _levels(inner_of: Split) -> tuple[dict[int, set[str]], str | None]:
    """The folders of a split by their depth, down to the first level that has several; and an image beside folders.

    Single folders that are named like a split are left out: they can be no class.
    """
    levels: dict[int, set[str]] = {}
    depth = 0
    while folders := {inner.partition("/")[0] for inner in inner_of.values() if "/" in inner}:
        if loose := next((name for name, inner in inner_of.items() if "/" not in inner), None):
            return levels, loose
        if len(folders) > 1 or not split_of(*folders):
            levels[depth] = folders
        if len(folders) > 1:
            break
        inner_of = _below(inner_of)
        depth += 1
    return levels, None


def _class_names(levels: list[dict[int, set[str]]]) -> set[str]:
    """The folders that are classes in the first split whose images lie in several, or in the first of all."""
    for of_split in levels:
        if len(deepest := of_split[max(of_split)]) > 1:
            return deepest
    first, *others = levels
    shared = [
        names for names in first.values() if all(any(names & those for those in other.values()) for other in others)
    ]
    return (shared or list(first.values()))[-1]


def _below(inner_of: Split) -> Split:
    return {name: inner.partition("/")[2] for name, inner in inner_of.items()}
