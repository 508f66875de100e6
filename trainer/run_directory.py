"""The folder of one run: what it was asked, what it measured, what it learned.

config.yaml  run.json  metrics.jsonl  evaluations.jsonl  checkpoints/  samples/  reports/
"""

import json
import uuid
from pathlib import Path

from data.errors import UserError
from trainer.checkpoint import list_checkpoints
from trainer.config import Config, dump_config
from trainer.files import write_aside


class RunDirectory:
    """Paths of a run. `id` survives resumes."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.metrics, self.evaluations = self.path / "metrics.jsonl", self.path / "evaluations.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples, self.reports = self.path / "samples", self.path / "reports"

    def refuse_unless_new(self) -> None:
        """A run is never written over."""
        if (self.path / "run.json").exists():
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume auto, or choose another run_dir=..."
            )

    def newest_checkpoint(self) -> Path | None:
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def create(self, config: Config) -> None:
        """Make the folders, store the resolved configuration and, once, the run's id. Call on one rank."""
        for folder in (self.checkpoints, self.samples, self.reports):
            folder.mkdir(parents=True, exist_ok=True)
        write_aside(self.path / "config.yaml", dump_config(config).encode())
        if not (self.path / "run.json").exists():
            write_aside(self.path / "run.json", json.dumps({"id": uuid.uuid4().hex}).encode())

    def picture(self, images: int) -> Path:
        return self.samples / f"img-{images:012d}.png"

    def first_evaluation(self) -> dict:
        """The evaluation before the first step."""
        with self.evaluations.open(encoding="utf-8") as file:
            return json.loads(file.readline())
