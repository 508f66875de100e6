"""Any folder of images as a data set."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from data.errors import UserError, printable
from data.sources.images import SUFFIXES
from data.sources.layout import Split, find_classes, find_splits
from data.sources.samples import ImageFiles, Samples
from data.sources.walk import ARCHIVE, find_files

log = logging.getLogger(__name__)

_NAMED = 5  # classes that the log names


class Folder:
    """The images in a folder and below it, in the order of their paths."""

    name = "folder"
    splits: ClassVar = {}
    channels = 3
    image_size = 64
    embedded = False
    image_files = True

    def load(self, folder: Path | None, progress: bool = False) -> dict[str, Samples]:
        """The splits are the folders that are named so (`find_splits`); without any for testing, a tenth of train is.

        The label of an image is the number of its class, a folder below the split (`find_classes`), in the order of
        names. The log says what became of the folders.
        """
        if folder is None:
            raise UserError("which folder? Give the folder of the images with --source DIR")
        names = _find_images(folder)
        splits = find_splits(folder, names)
        outside = set(names).difference(*splits.values())
        _tell(logging.WARNING, "images left over, which lie in none of the splits", sorted(outside))
        class_of, loose = find_classes(splits)  # before a tenth is taken, which may lie in one folder by chance
        if "test" not in splits:
            splits = _hashed_splits(folder, splits["train"])
        _tell_classes(splits, class_of, loose)
        number_of = {name: number for number, name in enumerate(sorted(set(class_of.values())))}
        return {
            split: Samples.from_files(
                ImageFiles(folder, tuple(inner_of)),
                np.array([number_of[class_of[name]] if class_of else 0 for name in inner_of], np.int64),
                len(number_of) or 1,
                progress,
            )
            for split, inner_of in splits.items()
        }


def _find_images(folder: Path) -> list[str]:
    """The names of the images, sorted, relative to the folder. The log says what else there is."""
    found = find_files(folder)
    images = [name for name in found.names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    others = sorted(set(found.names).difference(images, found.broken))
    _tell(logging.INFO, "files that are no images, left out", others)
    _tell(logging.WARNING, "links that lead to nothing", sorted(set(found.broken).difference(images)))
    _tell(
        logging.WARNING, "links not followed, because they lead back or to a folder that is read already", found.circles
    )
    if not images:
        packed = next((name for name in others if ARCHIVE.search(name)), None)
        remedy = f"unpack {printable(packed)}" if packed else "give another folder with --source"
        if "index.json" in others:
            remedy = "it is prepared already, set data.shards to it"
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): {remedy}")
    return images


def _tell(level: int, what: str, names: Sequence[str]) -> None:
    if names:
        log.log(level, "%s: %s, first %s", what, f"{len(names):,}", printable(names[0]))


def _hashed_splits(folder: Path, inner_of: Split) -> dict[str, Split]:
    """A tenth of the images for testing, by their names: more images leave the split of the others as it was."""
    if len(inner_of) < 2:
        raise UserError(f"{folder} holds one image, two are needed, for training and for testing: add some")
    hash_of = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) for name in inner_of}
    test = {name for name in inner_of if hash_of[name] % 10 == 0} or {min(inner_of, key=hash_of.get)}
    if len(test) == len(inner_of):
        test.remove(max(inner_of, key=hash_of.get))
    return {
        "train": {name: inner for name, inner in inner_of.items() if name not in test},
        "test": {name: inner for name, inner in inner_of.items() if name in test},
    }


def _tell_classes(splits: dict[str, Split], class_of: dict[str, str], loose: str | None) -> None:
    """Which folders are the classes. loose: an image that lies beside folders but in none."""
    images_of = Counter(class_of.values())
    if len(images_of) < 2:
        why = "the images lie in no folders of classes"
        if loose:
            why = f"{printable(loose)} lies in no folder that could be its class, as others do"
        elif images_of:
            why = f"all images lie in the folder {printable(min(images_of))}"
        log.warning("one class: %s", why)
        return
    names = sorted(images_of)
    shown = [
        f"{number} is {printable(name)} ({images_of[name]:,} images)" for number, name in enumerate(names[:_NAMED])
    ]
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    log.info("%s classes, by their folders: %s%s", f"{len(names):,}", ", ".join(shown), more)
    learned = {class_of[name] for name in splits["train"]}
    _tell(logging.WARNING, "classes without training images", [name for name in names if name not in learned])
