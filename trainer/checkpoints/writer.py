"""Writing checkpoints while training goes on: all ranks copy their part, threads write it, rank 0 completes it."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

from torch import Tensor

from biglearn_vae.checkpoint import State, checkpoint_path, complete, start_writing, write_part
from data.errors import NonFiniteError, UserError
from trainer.checkpoints.retention import CheckpointConfig, remove_others
from trainer.engines.engine import Engine

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes one checkpoint at a time. `start` and `finish` are collective; between them training goes on.

    A disk that refuses costs a warning and this checkpoint: earlier ones stay whole. `error` then says why.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        engine: Engine,
        shapes: dict[str, tuple[int, ...]],
        sinks: Sequence[Callable[[dict], None]] = (),
        resumed: int = 0,
    ):
        """shapes: of each parameter, by name, in one order on all ranks. sinks: are told of each that is complete.

        resumed: the images of the checkpoint that the run goes on from, which is known to be whole.
        """
        self._sinks, self._began = sinks, 0.0
        self._whole = {checkpoint_path(directory, resumed): True}
        self.directory, self.config, self.engine, self.world = directory, config, engine, engine.world
        self.error: str | None = None  # of the last checkpoint
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total = sum(sizes.values())
        self._parts = min(self.world.size, -(-total * 4 * len(engine.kinds) // config.part_bytes))
        ends, end = {}, 0
        for name, size in sizes.items():
            end += size
            ends[name] = end
        stride = self.world.size // self._parts  # the writers are spread over the nodes
        self._part = self.world.rank // stride if self.world.rank % stride == 0 else self._parts
        self._mine = {name for name, end in ends.items() if (end - 1) * self._parts // total == self._part}
        self._thread: Thread | None = None
        self._fingerprints: dict[str, dict] = {}
        self._aside: Path | None = None
        self._state: State | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Complete what is pending, unless this rank alone has failed: the others could not take part."""
        if error is None or isinstance(error, NonFiniteError | UserError):
            self.finish()

    def refuse_failure(self) -> None:
        """UserError when the last checkpoint could not be written."""
        if self.error:
            remedy = "free space and go on with --resume auto, which makes the steps since then again"
            raise UserError(f"the last checkpoint could not be written ({self.error}): {remedy}")

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint was started and not finished: the same on all ranks."""
        return self._thread is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's part is not on the disk yet."""
        return self.is_pending and self._thread.is_alive()

    def start(self, state: State) -> None:
        """Copy the whole state to the CPU, each rank its part, and begin to write it.

        Raises NonFiniteError, on all ranks, when a tensor holds anything but finite numbers.
        """
        self.finish()
        self._began = time.monotonic()
        tensors, invalid = {}, 0
        for kind in self.engine.kinds:
            tensors[kind] = {
                name: value.to("cpu", copy=True) for name, value in self.engine.named_state(kind) if name in self._mine
            }
            invalid |= not all(value.isfinite().all() for value in tensors[kind].values())
        if self.world.max_over_ranks(invalid)[0]:
            raise NonFiniteError(f"the weights or their moments are not finite at step {state.step}")
        aside, error = None, None
        if self.world.is_main:
            try:
                aside = start_writing(self.directory, state.images)
            except OSError as refused:
                error = _reason(refused)
        self._aside, self.error = self.world.broadcast((aside, error))
        if self.error:
            self._warn()
            return
        self._state, self._fingerprints = state, {}
        self._thread = Thread(target=self._write, args=(tensors,), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait for all parts and complete the checkpoint, if one is pending."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        outcomes = self.world.gather((self._fingerprints, self.error))
        error = next((error for _, error in outcomes if error), None)
        if self.world.is_main and not error:
            try:
                path = complete(self._aside, self._state, {k: v for written, _ in outcomes for k, v in written.items()})
            except OSError as refused:
                error = _reason(refused)
            else:
                self._tell(path)
        self.error = self.world.broadcast(error)
        if self.error:
            self._warn()
            if self.world.is_main:
                shutil.rmtree(self._aside, ignore_errors=True)
        elif self.world.is_main:
            try:
                remove_others(self.directory, self.config, self._state.images, self._whole)
            except OSError as refused:
                log.warning("an old checkpoint could not be removed (%s)", _reason(refused))

    def _write(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if self._part == self._parts:  # this rank writes nothing
            return
        try:
            self._fingerprints = write_part(self._aside, tensors, self._part, self._parts)
        except OSError as refused:
            self.error = _reason(refused)

    def _tell(self, path: Path) -> None:
        written = {"checkpoint_time": time.time(), "checkpoint_seconds": time.monotonic() - self._began}
        with suppress(OSError):  # complete it is
            written["checkpoint_bytes"] = sum(file.stat().st_size for file in path.iterdir())
        for sink in self._sinks:
            sink(written)

    def _warn(self) -> None:
        if self.world.is_main:
            log.warning("a checkpoint could not be written (%s); training goes on, earlier ones are whole", self.error)


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
