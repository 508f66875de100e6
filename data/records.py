"""One record of a shard: arrays as .npy members of a tar, written and read without pickle."""

import io
from typing import BinaryIO

import numpy as np

from data.index import HEADER_BYTES, Index, Member, Record

_LABEL = np.dtype("<i8")
_PIXEL = np.dtype("u1")


def encode(array: np.ndarray) -> bytes:
    """The array as a version 1.0 .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _payload_offset(file: BinaryIO, member: Member, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Where in the tar the array's first value is.

    Raises ValueError unless the member's header promises exactly `dtype` and `shape`: nothing is allocated or
    mapped on the word of a file.
    """
    file.seek(member.offset)
    head = io.BytesIO(file.read(min(member.bytes, HEADER_BYTES)))
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("another version")
        found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(head)
    except Exception as error:  # numpy parses with ast and tokenize, whose errors are many
        raise ValueError("no version 1.0 npy file") from error
    if (found_shape, fortran, found_dtype) != (shape, False, dtype):
        raise ValueError(f"holds {found_dtype} {found_shape} where the index says {dtype} {shape}")
    if head.tell() + dtype.itemsize * int(np.prod(shape)) != member.bytes:
        raise ValueError(f"{member.bytes} bytes do not fit {dtype} {shape}")
    return member.offset + head.tell()


def _read(file: BinaryIO, member: Member, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    file.seek(_payload_offset(file, member, dtype, shape))
    array = np.empty(shape, dtype)
    if file.readinto(memoryview(array).cast("B")) != array.nbytes:
        raise ValueError("cut short")
    return array


def read_labels(file: BinaryIO, record: Record) -> np.ndarray:
    """(count,) int64; ValueError if the file holds anything else, as below."""
    return _read(file, record.labels, _LABEL, (record.count,))


def read_images(file: BinaryIO, record: Record, index: Index) -> np.ndarray:
    """(count, H, W, C) uint8."""
    return _read(file, record.images, _PIXEL, (record.count, *index.image_shape))


def map_images(file: BinaryIO, record: Record, index: Index) -> np.ndarray:
    """(count, H, W, C) uint8, read from the file when it is touched."""
    shape = (record.count, *index.image_shape)
    offset = _payload_offset(file, record.images, _PIXEL, shape)
    return np.asarray(np.memmap(file, _PIXEL, "r", offset, shape))  # a plain view: a memmap is slow to index
