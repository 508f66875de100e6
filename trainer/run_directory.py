"""The folder of one run: what it was asked, what it measured, what it learned.

config.yaml  run.json  lock  metrics.jsonl  evaluations.jsonl  checkpoints/  samples/  reports/
where the model learns codes, codec.safetensors, and what trackers of experiments write, trackers/
"""

import logging
import os
import re
import socket
import uuid
from pathlib import Path

from biglearn_vae.checkpoint import list_checkpoints, remove_leftovers
from biglearn_vae.run_paths import RunPaths, RunRecord
from data.errors import UserError, printable
from data.files import lock, make_folder, write_aside
from model.patch_autoencoder.codec import PatchCodec
from trainer.config import Config, dump_config
from trainer.metrics.json_lines import read_lines

log = logging.getLogger(__name__)


class RunDirectory(RunPaths):
    """The folder of a run that is made, written and read."""

    def refuse_present(self) -> None:
        """A run is never written over, nor is anything that stands where one would write."""
        if there := self._find():
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume auto, or choose another run_dir=..."
                f" ({there.relative_to(self.path)} is there)"
            )

    def _find(self) -> Path | None:
        """The first of all that a run writes."""
        folders = (self.checkpoints, self.samples, self.reports, self.trackers)
        files = (self.run_json, self.config, self.metrics, self.evaluations, self.codec)
        files += tuple(folder for folder in folders if not folder.is_dir())
        inside = (next(iter(sorted(folder.iterdir())), None) for folder in folders if folder.is_dir())
        return next((path for path in (*files, *inside) if path and os.path.lexists(path)), None)

    def acquire(self, resume: bool) -> None:
        """Make the folder and keep every other run out of it until this process ends. Call on one rank.

        Raises UserError when another run is at work here, when there is one and `resume` is not set, and when what is
        here is no run: there is neither its run.json nor a checkpoint.
        """
        try:
            make_folder(self.path)
        except OSError as error:
            fault = f"{self.path} cannot be made ({error.filename}: {error.strerror})"
            raise UserError(f"{fault}: choose another run_dir=...") from None
        try:
            self._lock = (self.path / "lock").open("a+", errors="replace")
        except OSError as error:
            fault = f"{self.path / 'lock'} cannot be opened ({error.strerror})"
            raise UserError(f"{fault}: choose another run_dir=..., or move it away") from None
        try:
            if not lock(self._lock, wait=False):
                log.warning("%s lies where files cannot be locked: see to it that no two runs use it", self.path)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read(200).strip() or "another process"
            raise UserError(
                f"{self.path} is in use by {owner}: wait for it, stop it, or choose another run_dir=..."
            ) from None
        if not resume:
            self.refuse_present()
        elif not self.record().id and not list_checkpoints(self.checkpoints) and (there := self._find()):
            raise UserError(
                f"{self.path} holds {there.relative_to(self.path)}, but no run (neither run.json nor a checkpoint):"
                " choose another run_dir=..., or move it away"
            )
        self._lock.seek(0)
        if not re.fullmatch(r"(process \d+ on .*)?", self._lock.read(1000)):
            raise UserError(f"{self._lock.name} is no lock of a run: choose another run_dir=..., or move it away")
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()
        remove_leftovers(self.checkpoints)

    def create(self, config: Config, images: int, codec: PatchCodec | None, ways: dict[str, str | bool]) -> None:
        """Make the folders, store the resolved configuration and the codec; count this start. Call on one rank.

        images: where the run goes on; a configuration that differed until there stays beside the new one. ways: how
        its steps are computed.
        """
        for folder in (self.checkpoints, self.samples, self.reports):
            folder.mkdir(exist_ok=True)
        content = dump_config(config).encode()
        known = self.record()
        name, started_in = known.id or uuid.uuid4().hex, os.getcwd()
        record = RunRecord(id=name, starts=known.starts + 1, started_in=started_in, ways=ways)
        write_aside(self.run_json, record.model_dump_json().encode())
        if self.config.exists() and (before := self.config.read_bytes()) != content:
            write_aside(self.path / f"config-until-{images:012d}.yaml", before)
        if codec:
            write_aside(self.codec, codec.to_bytes())
        write_aside(self.config, content)

    @property
    def name(self) -> str:
        """By which monitoring knows this run: the same whenever it is started again."""
        return f"{printable(self.path.resolve().name)}-{self.record().id[:6]}"

    def newest_checkpoint(self) -> Path | None:
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def picture(self, images: int) -> Path:
        return self.samples / f"img-{images:012d}.png"

    def lines(self) -> list[dict]:
        """What was measured in each step."""
        return read_lines(self.metrics)

    def evaluation(self, images: int | None = None) -> dict | None:
        """What was measured at this point, or before the first step; None if nothing was."""
        lines = read_lines(self.evaluations)
        if images is None:
            return lines[0] if lines else None
        return next((line for line in reversed(lines) if line["images"] == images), None)
