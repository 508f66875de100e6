"""Where the tar files of a data set lie, as a person writes it: addresses and paths with braces and stars."""

import fnmatch
import os
import re
from itertools import islice

from braceexpand import UnbalancedBracesError, braceexpand

from data.errors import UserError, printable
from data.storage.storage import STORAGES, scheme_of, storage_of

TARS = "webdataset"  # as the source of a data set
MOST_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)")
_STARS = re.compile(r"[*?\[]")
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)


def split_address(address: str) -> tuple[str, str]:
    """The folder and the name of a file."""
    folder, slash, name = address.rpartition("/")
    return (folder or slash or "."), name


def names_tars(text: str) -> bool:
    """Whether a text names tar files, rather than a folder."""
    return text.endswith(".tar") and not os.path.isdir(text)


def require_addresses(text: str) -> None:
    """UserError if this names no tar files that can be read, as far as the text alone tells."""
    for pattern in text.split("::"):
        shown, scheme = printable(pattern), scheme_of(pattern)
        if scheme == "pipe":
            raise UserError(
                f"{shown} would run a program: give the address of the files, s3://, gs://, https:// or a path"
            )
        if scheme and scheme not in STORAGES:
            raise UserError(f"{shown}: {scheme}:// cannot be read; {', '.join(f'{each}://' for each in STORAGES)} can")
        if scheme and re.match(r"[^/]*://[^/]*@", pattern):
            raise UserError(f"{scheme}://… holds a name or password: give them in the environment, not in the address")
        if scheme in ("http", "https") and "?" in pattern:
            raise UserError(
                f"{scheme}://… holds a query, as signed addresses do: where credentials are needed, give s3:// or gs://"
                " and the credentials in the environment"
            )
        if _COMPRESSED.search(pattern):
            raise UserError(
                f"{shown} is compressed, so that no image can be read without all before it: unpack to .tar"
            )
        if not pattern.endswith(".tar"):
            raise UserError(f"{shown} is no name of .tar files, as train-{{00000..00099}}.tar or train-*.tar")


def expand(text: str) -> list[str]:
    """The addresses that a text names, each once, in its order: `{000..123}`, `{a,b}`, stars in names, `::` between.

    What stars find is sorted. UserError when one of the patterns names nothing, or a file stands twice.
    """
    require_addresses(text)
    found: list[str] = []
    for pattern in text.split("::"):
        for first, last in _RANGE.findall(pattern):
            if abs(int(last) - int(first)) >= MOST_SHARDS:  # braceexpand would hold them all
                raise UserError(f"{printable(pattern)} names more than {MOST_SHARDS:,} files")
        try:
            named = list(islice(braceexpand(pattern), MOST_SHARDS + 1))
        except UnbalancedBracesError:
            raise UserError(f"{printable(pattern)}: a brace is not closed") from None
        if len(named) > MOST_SHARDS:
            raise UserError(f"{printable(pattern)} names more than {MOST_SHARDS:,} files")
        if named == [pattern] and re.search(r"[{}]", pattern):
            raise UserError(f"{printable(pattern)}: the brace is empty or no range, as {{00000..00099}} is")
        for address in named:
            if scheme_of(address) is None:  # wherever it is read from later
                address = os.path.abspath(address)
            found += _with_stars(address) if _STARS.search(address) else [address]
    twice = next(
        (one for one, next_one in zip(sorted(found), sorted(found)[1:], strict=False) if one == next_one), None
    )
    if twice:
        raise UserError(f"{printable(twice)} is named twice in {printable(text)}")
    return found


def _with_stars(address: str) -> list[str]:
    folder, pattern = split_address(address)
    if _STARS.search(folder):
        raise UserError(f"{printable(address)}: stars can stand in the names of files, not of folders")
    try:
        names = storage_of(folder).names()
    except OSError as error:
        raise UserError(
            f"{printable(folder)} cannot be listed ({error.strerror}): name the files with braces"
        ) from None
    found = sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))
    if not found:
        raise UserError(f"no file in {printable(folder)} is called {printable(pattern)}")
    return [f"{folder}/{name}" for name in found]
