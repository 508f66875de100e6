"""One record of a shard: arrays as .npy members of a tar, written and read without pickle."""

import io
import zlib

import numpy as np

from data.read.index import HEADER_BYTES, Index, Member, Record
from data.storage.storage import StoredFile

_LABEL = np.dtype("<i8")
_CRC32 = np.dtype("<u4")


def encode(array: np.ndarray) -> bytes:
    """The array as a version 1.0 .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _payload_offset(file: StoredFile, member: Member, dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Where in the tar the array's first value is.

    Raises ValueError unless the member's header promises exactly `dtype` and `shape`: nothing is allocated on
    the word of a file.
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


def _read(file: StoredFile, member: Member, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    file.seek(_payload_offset(file, member, dtype, shape))
    array = np.empty(shape, dtype)
    if file.readinto(memoryview(array).cast("B")) != array.nbytes:
        raise ValueError("cut short")
    return array


def read_labels(file: StoredFile, record: Record) -> np.ndarray:
    """(count,) int64; ValueError if the file holds anything else, as below."""
    return _read(file, record.labels, _LABEL, (record.count,))


def read_content(file: StoredFile, record: Record, index: Index) -> np.ndarray:
    """(count, H, W, C) uint8, or (count, L, D) or (count, 2, L, D) float16 for codes."""
    return _read(file, record.content, index.content_dtype, (record.count, *index.content_shape))


def read_checksums(file: StoredFile, record: Record) -> np.ndarray:
    """(count,) uint32, what `checksums` gave when the record was written."""
    return _read(file, record.crc32, _CRC32, (record.count,))


def first_content(file: StoredFile, record: Record, index: Index) -> int:
    """Where in the tar the first byte of the first image, or of its codes, is; the others follow without a gap."""
    return _payload_offset(file, record.content, index.content_dtype, (record.count, *index.content_shape))


def checksums(content_BN: np.ndarray, label_B: np.ndarray) -> np.ndarray:
    """(B,) uint32: of each image the CRC-32 of its pixels, or codes, and then of its label as 8 bytes, least first."""
    content_BN = np.ascontiguousarray(content_BN).reshape(len(label_B), -1)
    label_B8 = label_B.astype(_LABEL).reshape(-1, 1).view(np.uint8)
    rows = zip(content_BN, label_B8, strict=True)
    return np.fromiter((zlib.crc32(label, zlib.crc32(content)) for content, label in rows), _CRC32, len(label_B))
