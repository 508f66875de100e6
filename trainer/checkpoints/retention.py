"""Which checkpoints stay."""

from collections.abc import Iterable
from itertools import groupby, islice
from pathlib import Path

from pydantic import Field

from biglearn_vae.checkpoint import (
    DamagedError,
    UnreadableError,
    checkpoint_path,
    images_of,
    list_checkpoints,
    remove,
    state_or_none,
    verify,
)
from data.errors import UserError
from data.section import Section


class CheckpointConfig(Section):
    """When a checkpoint is written, and which ones stay. There is always one at the end."""

    every_images: int = Field(0, ge=0)  # 0: only at the end
    keep_last: int = Field(2, gt=0)  # so many of the newest
    keep_every_images: int = Field(0, ge=0)  # beside these, the first one after each multiple; 0: none
    keep_best: int = Field(1, ge=0)  # and so many of the best evaluations
    part_bytes: int = Field(2**28, gt=0)  # a larger state is written by several ranks at once


def remove_others(directory: Path, config: CheckpointConfig, images: int, whole: dict[Path, bool]) -> None:
    """Remove the checkpoints that the policy does not keep. Call on one rank, when one at `images` was just written.

    Damaged ones do not count, nor do those beyond `images`, which are left alone. whole: what is known of each; what
    must be known is found out and added.
    """
    found = [path for path in list_checkpoints(directory) if images_of(path) <= images]
    whole[checkpoint_path(directory, images)] = True

    def is_whole(path: Path) -> bool:
        if path not in whole:
            try:
                verify(path)
            except UserError as error:
                whole[path] = False
                if not isinstance(error, DamagedError) or isinstance(error, UnreadableError):
                    kept.add(path)  # it may be whole
            else:
                whole[path] = True
        return whole[path]

    def first(paths: Iterable[Path], count: int) -> list[Path]:
        """So many whole ones. Where there are no more, nothing depends on whether they are whole."""
        paths = [*paths]
        return paths if len(paths) <= count else [*islice(filter(is_whole, paths), count)]

    kept = {checkpoint_path(directory, images)}
    kept.update(first(reversed(found), config.keep_last))
    if config.keep_every_images:
        for multiple, paths in groupby(found, lambda path: images_of(path) // config.keep_every_images):
            kept.update(first(paths, 1) if multiple else ())
    scores = {path: state.score for path in found if (state := state_or_none(path)) and state.score is not None}
    kept.update(first(sorted(scores, key=scores.get)[::-1], config.keep_best))
    for path in found:
        if path not in kept:
            remove(path)
