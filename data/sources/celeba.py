"""CelebA from its official files or Kaggle's, whole or cut down to a part of the images."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.errors import UserError, printable
from data.sources.samples import ImageFiles, Samples

PARTITION = "list_eval_partition.txt"  # or .csv, as Kaggle has it
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
        partition_path, attributes_path, images = _find(folder)
        partition = _read_partition(partition_path)
        label_of, attributes = _read_attributes(attributes_path)
        _refuse_lacking(partition_path, set(partition), attributes_path, set(label_of))
        _refuse_lacking(attributes_path, set(label_of), partition_path, set(partition))
        _refuse_absent(images, partition_path, partition)
        loaded = {}
        for split, number in _SPLITS.items():
            names = tuple(name for name, part in partition.items() if part == number)
            if names:
                labels_N = np.array([label_of[name] for name in names], np.int64)
                files = ImageFiles(images, names, _CROP)
                loaded[split] = Samples.from_files(files, labels_N, 2**attributes, progress)
        return loaded


def _find(folder: Path) -> tuple[Path, Path, Path]:
    """The partition file, the attribute file and the folder of the images."""
    for place in (folder, folder / "celeba", folder / "CelebA"):
        partition, attributes = _find_list(place, "Eval", PARTITION), _find_list(place, "Anno", ATTRIBUTES)
        below = (f"{IMAGES}/{IMAGES}", IMAGES, f"Img/{IMAGES}/{IMAGES}", f"Img/{IMAGES}")
        images = next((place / name for name in below if (place / name).is_dir()), None)
        if partition and attributes and images:
            return partition, attributes, images
    raise UserError(
        f"{folder} does not hold the folder {IMAGES} and the files {PARTITION} and {ATTRIBUTES} (or .csv; nor do celeba"
        " or CelebA in it): unpack what is packed, and give the folder that does with --source"
    )


def _find_list(place: Path, official: str, name: str) -> Path | None:
    """A list, in the folder of the official drive as well; as .csv when there is no .txt."""
    names = (name, Path(name).with_suffix(".csv"))
    return next((path for name in names for path in (place / name, place / official / name) if path.is_file()), None)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line that is not blank. Commas part those of a .csv, else white space."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _LIST_BYTES:
        raise UserError(f"{path} has more than {_LIST_BYTES:,} bytes: it is no list of CelebA, fetch it again")
    separator = "," if path.suffix == ".csv" else None
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        if text := line.decode(errors="surrogateescape").strip():
            yield number, [field.strip() for field in text.split(separator)]


def _header(path: Path, rows: Iterator[tuple[int, list[str]]]) -> tuple[int, list[str]]:
    """The number and the fields of the first line of a .csv, without the name of its first column."""
    number, fields = next(rows, (1, []))
    if fields[:1] != ["image_id"]:
        raise _malformed(path, number, "should be the names of the columns, the first of them image_id")
    return number, fields[1:]


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
    rows = _rows(path)
    if path.suffix == ".csv":
        _header(path, rows)
    for number, fields in rows:
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
    count = None  # of the images; a .csv does not say
    if path.suffix == ".csv":
        named_in, attributes = _header(path, rows)
    else:
        first, count = next(rows, (1, []))
        if len(count) != 1:
            raise _malformed(path, first, "should be the number of images")
        named_in, attributes = next(rows, (2, []))
    if not 1 <= len(attributes) <= _MAX_ATTRIBUTES:
        raise _malformed(path, named_in, f"should name 1 to {_MAX_ATTRIBUTES} attributes, not {len(attributes)}")
    label_of: dict[str, int] = {}
    for number, (name, *values) in rows:
        if len(values) != len(attributes) or not {*values} <= {"1", "-1"}:
            raise _malformed(path, number, f"should be a file name and {len(attributes)} times 1 or -1")
        _check_name(path, number, name, label_of)
        label_of[name] = sum(1 << bit for bit, value in enumerate(values) if value == "1")
    if count and count != [str(len(label_of))]:
        raise _malformed(path, first, f"should be {len(label_of)}, the number of images that follow")
    return label_of, len(attributes)


def _refuse_lacking(here: Path, names: set[str], there: Path, others: set[str]) -> None:
    if lacking := names - others:
        raise UserError(
            f"{there} lacks {len(lacking):,} images that {here.name} names, first {printable(min(lacking))}: both must"
            " be of the same data set"
        )


def _refuse_absent(images: Path, partition_path: Path, partition: dict[str, str]) -> None:
    try:
        there = {path.name for path in images.iterdir()}
    except OSError as error:
        raise UserError(f"{images} cannot be read: {error.strerror}") from None
    absent = [name for name in partition if name not in there]
    if absent:
        raise UserError(
            f"{images} lacks {len(absent):,} of the {len(partition):,} images that {partition_path.name} names, first"
            f" {printable(absent[0])}: unpack them all, or cut both lists down to the images that are there"
        )
