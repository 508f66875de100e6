"""The index of a data set of tar files: each is looked through once, by several processes or jobs, and kept in mind."""

import hashlib
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError
from tqdm import tqdm

from data.errors import UserError, printable
from data.order.weave import Weave
from data.processes import spread
from data.storage.addresses import expand, split_address
from data.storage.storage import names_in, storage_of
from data.tars.headers import DamagedTarError
from data.tars.manifest import MANIFEST_NAME, SPLITS, Manifest, Tar
from data.tars.sidecar import encode_sidecar, read_tar, rows_sha256, summary_of

log = logging.getLogger(__name__)

_HEAD_BYTES = 2**13
_MANIFEST_HEAD = b'{\n "version": 1,\n "shards": "'  # as it is written


@dataclass(frozen=True)
class _Job:
    """One tar to look through."""

    address: str
    folder: str
    label_field: str | None
    keeps_back: bool

    @property
    def sidecar(self) -> str:
        """Its name: of what is looked for in which file."""
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", split_address(self.address)[1].removesuffix(".tar"))[:100]
        digest = hashlib.sha256(f"{self.label_field}\0{self.keeps_back}\0{self.address}".encode()).hexdigest()
        return f"{stem}-{digest[:12]}.safetensors"


@dataclass(frozen=True)
class _Looked:
    """What came of it: the tar with all its images, or why it cannot be used. classes, left_out: as in the manifest."""

    tar: Tar | None
    classes: int = 1
    left_out: int = 0
    fault: str = ""


def index_tars(
    shards: str,
    folder: str,
    *,
    test_shards: str | None = None,
    label_field: str | None = None,
    weave: Weave | None = None,
    workers: int = 1,
    share: tuple[int, int] | None = None,
    max_damaged: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Manifest | None:
    """Index the tar files that `shards` and `test_shards` name (`expand`), and write the manifest.

    Each file gets a sidecar in `folder` when it has been looked through: the same call goes on after an interruption.
    Without test_shards one image of 50 is for testing, by its key.

    share: (i, n): only every n-th file from the i-th on, and no manifest, for jobs that share the work; a call without
    it completes the folder. max_damaged: files that may be left out, because they are no tar of images. overwrite: look
    through all files again.

    Raises UserError when a file cannot be read, more are damaged, or other people's files are in the way.
    """
    began = time.monotonic()
    of_train, of_test = expand(shards), expand(test_shards) if test_shards else []
    if both := set(of_train).intersection(of_test):
        raise UserError(f"{printable(min(both))} is named both for training and for testing: keep one")
    jobs = [_Job(address, folder, label_field, keeps_back=not of_test) for address in of_train + of_test]
    names = _make_folder(folder)
    there = {job.sidecar for job in jobs} & names
    _refuse_theirs(folder, there | ({MANIFEST_NAME} & names))
    if overwrite:
        there = set()
    mine = jobs[share[0] :: share[1]] if share else jobs
    work = partial(_look, there=frozenset(there))
    looked: dict[str, _Looked] = {}
    shown = None if progress else True  # None: on a terminal
    with tqdm(total=len(mine), desc="index", unit=" shards", delay=2, disable=shown) as bar:
        for job, each in spread(work, mine, workers):
            looked[job.address] = each
            bar.update()
    in_order = [looked[job.address] for job in mine]
    _tell(in_order, max_damaged)
    if share:
        log.info("%s of %s files are indexed, the share %d/%d", f"{len(mine):,}", f"{len(jobs):,}", *share)
        return None
    tars = []
    for number, each in enumerate(in_order):
        if each.tar and test_shards:  # each file is for one of both
            part = {"test": 0} if number < len(of_train) else {"train": 0}
            tars.append(each.tar.model_copy(update=dict.fromkeys(SPLITS, each.tar.train + each.tar.test) | part))
        elif each.tar:
            tars.append(each.tar)
    try:
        manifest = Manifest(
            shards=shards,
            test_shards=test_shards,
            label_field=label_field,
            classes=max(each.classes for each in in_order),
            left_out=sum(each.left_out for each in in_order),
            weave=weave or Weave(),
            tars=tuple(tars),
        )
    except ValidationError:
        raise UserError(f"{printable(shards)} has too few images to train on and to test with") from None
    _write(folder, MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    counts = " and ".join(f"{sum(getattr(tar, split) for tar in tars):,} {split}" for split in SPLITS)
    log.info(
        "indexed %s files with %s images in %.1f seconds: %s",
        f"{len(tars):,}",
        counts,
        time.monotonic() - began,
        folder,
    )
    return manifest


def _look(job: _Job, there: frozenset[str]) -> _Looked:
    """Look through a tar, unless it has been, and keep what was found."""
    folder, name = split_address(job.address)
    try:
        if job.sidecar in there:
            content = bytes(storage_of(job.folder).fetch(job.sidecar, 0, None).content)
        else:
            content = encode_sidecar(read_tar(storage_of(folder), name, job.label_field, job.keeps_back))
            _write(job.folder, job.sidecar, content)
        known = summary_of(content)
    except DamagedTarError as error:
        return _Looked(None, fault=f"{printable(job.address)}: {error}")
    except ValueError as error:
        raise UserError(f"{job.folder}/{job.sidecar} is damaged ({error}): index again, with --overwrite") from None
    except OSError as error:
        raise UserError(f"{printable(job.address)} cannot be read ({error.strerror})") from None
    tar = Tar(
        address=job.address,
        bytes=known["tar_bytes"],
        tag=known["tag"],
        gives_parts=bool(known["gives_parts"]),
        train=known["train"],
        test=known["images"] - known["train"],
        sidecar=job.sidecar,
        rows_sha256=rows_sha256(content),
    )
    left_out = f"{printable(job.address)}: {known['first_left_out']}" if known["left_out"] else ""
    return _Looked(tar, known["classes"], known["left_out"], left_out)


def _tell(looked: Iterable[_Looked], max_damaged: int) -> None:
    """What could not be used, with the first case; UserError when that are too many files."""
    damaged = [each.fault for each in looked if not each.tar]
    if len(damaged) > max_damaged:
        raise UserError(
            f"files that cannot be used: {len(damaged)}, more than --max-damaged {max_damaged} (first {damaged[0]}):"
            " mend them, name others, or accept more; what was found in the others is kept"
        )
    if damaged:
        log.warning("files left out: %d, first %s", len(damaged), damaged[0])
    incomplete = [each for each in looked if each.tar and each.left_out]
    if incomplete:
        count = sum(each.left_out for each in incomplete)
        log.warning("samples left out: %s, first %s", f"{count:,}", incomplete[0].fault)


def _make_folder(folder: str) -> set[str]:
    """The names of the files in the folder of the index, which is there then."""
    storage = storage_of(folder)
    try:
        storage.make()
        return names_in(storage)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another --out") from None


def _refuse_theirs(folder: str, names: Iterable[str]) -> None:
    """UserError when one of these files is not what this program writes there."""
    for name in sorted(names):
        head = bytes(storage_of(folder).fetch(name, 0, _HEAD_BYTES).content)
        try:
            is_ours = head.startswith(_MANIFEST_HEAD) if name == MANIFEST_NAME else bool(summary_of(head))
        except ValueError:
            is_ours = False
        if not is_ours:
            raise UserError(f"{folder}/{name} is not an index of ours: choose another --out, or move it away")


def _write(folder: str, name: str, content: bytes) -> None:
    try:
        storage_of(folder).write(name, content)
    except OSError as error:
        raise UserError(f"{folder}/{name} cannot be written ({error.strerror}): choose another --out") from None
