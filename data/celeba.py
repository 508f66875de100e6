"""CelebA from its official files, whole or cut down to a part of the images."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.errors import UserError, printable
from data.samples import ImageFiles, Samples

PARTITION = "list_eval_partition.txt"
ATTRIBUTES = "list_attr_celeba.txt"
IMAGES = "img_align_celeba"

_SPLITS = {"train": "0", "val": "1", "test": "2"}
_CROP = 148  # pixels of the 178x218 images: the usual centre crop
_LIST_BYTES = 2**28  # ten times the official lists
_MAX_ATTRIBUTES = 62  # their labels are bits of an int64


class CelebA:
    """202,599 aligned faces, 178x218 RGB; bit a of a label is set when attribute a of the list is +1."""

    name = "celeba"
    splits: ClassVar = {"train": 162_770, "val": 19_867, "test": 19_962}
    channels = 3
    image_size = 128
    embedded = False
    image_files = True

    def load(self, folder: Path | None, progress: bool = False) -> dict[str, Samples]:
        """The images of the partition file, in its order; a split without images is left out."""
        if folder is None:
            raise UserError(
                "CelebA is not downloaded, because its terms want to be accepted by a person: fetch"
                f" {IMAGES}.zip, {PARTITION} and {ATTRIBUTES} from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html,"
                f" unpack the images into DIR/{IMAGES} beside the lists, and give --source DIR"
            )
        place = _find(folder)
        partition = _read_partition(place / PARTITION)
        label_of, attributes = _read_attributes(place / ATTRIBUTES)
        _refuse_differing(place, set(partition), set(label_of))
        images = place / IMAGES / IMAGES if (place / IMAGES / IMAGES).is_dir() else place / IMAGES
        _refuse_absent(images, partition)
        loaded = {}
        for split, number in _SPLITS.items():
            names = tuple(name for name, part in partition.items() if part == number)
            if names:
                labels_N = np.array([label_of[name] for name in names], np.int64)
                files = ImageFiles(images, names, _CROP)
                loaded[split] = Samples.from_files(files, labels_N, 2**attributes, progress)
        return loaded


def _find(folder: Path) -> Path:
    for place in (folder, folder / "celeba", folder / "CelebA"):
        if (place / IMAGES).is_dir() and all((place / name).is_file() for name in (PARTITION, ATTRIBUTES)):
            return place
    raise UserError(
        f"{folder} does not hold the folder {IMAGES} and the files {PARTITION} and {ATTRIBUTES}"
        " (nor do celeba or CelebA in it): give the folder that does with --source"
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _LIST_BYTES:
        raise UserError(f"{path} has more than {_LIST_BYTES:,} bytes: it is no list of CelebA, fetch it again")
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.decode(errors="surrogateescape").split()
        if fields:
            yield number, fields


def _malformed(path: Path, number: int, fault: str) -> UserError:
    return UserError(f"{path}, line {number}: {printable(fault)}; fetch the file again")


def _check_name(path: Path, number: int, name: str, known: dict) -> None:
    if "/" in name or "\0" in name or name in (".", ".."):
        raise _malformed(path, number, f"{name!r} is no plain file name")
    if name in known:
        raise _malformed(path, number, f"{name} is there twice")


def _read_partition(path: Path) -> dict[str, str]:
    """The partition, "0", "1" or "2", of each image, in the order of the file."""
    partition = {}
    for number, fields in _rows(path):
        if len(fields) != 2 or fields[1] not in _SPLITS.values():
            raise _malformed(path, number, "should be a file name and 0, 1 or 2")
        _check_name(path, number, fields[0], partition)
        partition[fields[0]] = fields[1]
    if not partition:
        raise UserError(f"{path} names no images: fetch the file again")
    return partition


def _read_attributes(path: Path) -> tuple[dict[str, int], int]:
    """The label of each image, and the number of attributes."""
    rows = _rows(path)
    first, count = next(rows, (1, []))
    if len(count) != 1:
        raise _malformed(path, first, "should be the number of images")
    second, attributes = next(rows, (2, []))
    if not 1 <= len(attributes) <= _MAX_ATTRIBUTES:
        raise _malformed(path, second, f"should name 1 to {_MAX_ATTRIBUTES} attributes, not {len(attributes)}")
    label_of: dict[str, int] = {}
    for number, (name, *values) in rows:
        if len(values) != len(attributes) or not {*values} <= {"1", "-1"}:
            raise _malformed(path, number, f"should be a file name and {len(attributes)} times 1 or -1")
        _check_name(path, number, name, label_of)
        label_of[name] = sum(1 << bit for bit, value in enumerate(values) if value == "1")
    if count != [str(len(label_of))]:
        raise _malformed(path, first, f"should be {len(label_of)}, the number of images that follow")
    return label_of, len(attributes)


def _refuse_differing(place: Path, partition: set[str], attributes: set[str]) -> None:
    for here, there, lacking in (
        (PARTITION, ATTRIBUTES, partition - attributes),
        (ATTRIBUTES, PARTITION, attributes - partition),
    ):
        if lacking:
            raise UserError(
                f"{place / there} lacks {len(lacking):,} images that {here} names, first {printable(min(lacking))}:"
                " both must be of the same data set"
            )


def _refuse_absent(images: Path, partition: dict[str, str]) -> None:
    try:
        there = {path.name for path in images.iterdir()}
    except OSError as error:
        raise UserError(f"{images} cannot be read: {error.strerror}") from None
    absent = [name for name in partition if name not in there]
    if absent:
        raise UserError(
            f"{images} lacks {len(absent):,} of the {len(partition):,} images that {PARTITION} names, first"
            f" {printable(absent[0])}: unpack them all, or cut both lists down to the images that are there"
        )
