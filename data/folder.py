"""Any folder of images as a data set."""

import hashlib
import logging
import os
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from data.errors import UserError, printable
from data.images import SUFFIXES
from data.samples import ImageFiles, Samples

log = logging.getLogger(__name__)


class Folder:
    """The images in a folder and below it, in the order of their paths."""

    name = "folder"
    splits: ClassVar = {}
    channels = 3
    image_size = 64
    embedded = False
    image_files = True

    def load(self, folder: Path | None, progress: bool = False) -> dict[str, Samples]:
        """The splits are the sub-folders train, test and, if there, val; without them a tenth is for testing.

        The label of an image is the number of its class, a folder right below the split, in the order of names;
        it is 0 for all when any image lies in no such folder.
        """
        if folder is None:
            raise UserError("which folder? Give the folder of the images with --source DIR")
        names, ignored = _walk(folder)
        if all((folder / split).is_dir() for split in ("train", "test")):
            splits, outside = _named_splits(folder, names)
            ignored += outside
        else:
            splits = _hashed_splits(folder, names)
        if ignored:
            log.info(
                "ignored what is no image or in no split: %d files or links, first %s",
                len(ignored),
                printable(min(ignored)),
            )
        labels, classes = _labels({name: inner for split in splits.values() for name, inner in split.items()})
        return {
            split: Samples.from_files(
                ImageFiles(folder, tuple(inner_of)),
                np.array([labels[name] for name in inner_of], np.int64),
                classes,
                progress,
            )
            for split, inner_of in splits.items()
        }


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The images and the other files below a folder, sorted, relative to it. Hidden ones are left out.

    Links to folders are not followed: they could lead out or around in circles.
    """
    images, others, pending = [], [], [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    name = below + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{name}/")
                    elif PurePosixPath(entry.name).suffix.lower() in SUFFIXES and not os.path.isdir(entry.path):
                        images.append(name)
                    else:
                        others.append(name)
        except OSError as error:
            raise UserError(f"{folder / below} cannot be read: {error.strerror}") from None
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): give another folder with --source")
    return sorted(images), sorted(others)


# A split maps the name of each image to its path below the folder of the split.
_Split = dict[str, str]


def _named_splits(folder: Path, names: list[str]) -> tuple[dict[str, _Split], list[str]]:
    """The splits train, val and test, and the images that lie outside of them."""
    splits: dict[str, _Split] = {split: {} for split in ("train", "val", "test") if (folder / split).is_dir()}
    outside = []
    for name in names:
        first, _, inner = name.partition("/")
        if first in splits and inner:
            splits[first][name] = inner
        else:
            outside.append(name)
    for split, members in splits.items():
        if not members:
            raise UserError(f"{folder / split} holds no images: add some, or give another folder with --source")
    return splits, outside


def _hashed_splits(folder: Path, names: list[str]) -> dict[str, _Split]:
    """A tenth of the images for testing, by their names: more images leave the split of the others as it was."""
    if len(names) < 2:
        raise UserError(f"{folder} holds one image, two are needed, for training and for testing: add some")
    hash_of = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) for name in names}
    test = {name for name in names if hash_of[name] % 10 == 0} or {min(names, key=hash_of.get)}
    if len(test) == len(names):
        test.remove(max(names, key=hash_of.get))
    return {
        "train": {name: name for name in names if name not in test},
        "test": {name: name for name in names if name in test},
    }


def _labels(inner_of: _Split) -> tuple[dict[str, int], int]:
    """The label of each image, and the number of classes."""
    if not all("/" in inner for inner in inner_of.values()):
        return dict.fromkeys(inner_of, 0), 1
    class_of = {name: inner.partition("/")[0] for name, inner in inner_of.items()}
    number_of = {name: number for number, name in enumerate(sorted(set(class_of.values())))}
    return {name: number_of[class_of[name]] for name in inner_of}, len(number_of)
