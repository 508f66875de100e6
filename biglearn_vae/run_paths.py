"""Where what belongs to a run lies in its folder, and which run it is."""

from pathlib import Path

from pydantic import BaseModel, Field

from model.patch_autoencoder.codec import CODEC


class RunRecord(BaseModel):
    """run.json.

    id: what tells this run from every other. starts: how often it was started, or went on. started_in: the working
    folder of the last start, from which the relative paths of the configuration are meant. ways: how its steps are
    computed: the device and, for it, what the configuration asks for or leaves to be chosen.
    """

    id: str | None = None
    starts: int = Field(0, ge=0)
    started_in: str | None = None
    ways: dict[str, str | bool] = {}


class RunPaths:
    """Paths of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.run_json = self.path / "config.yaml", self.path / "run.json"
        self.metrics, self.evaluations = self.path / "metrics.jsonl", self.path / "evaluations.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.codec = self.path / CODEC
        self.samples, self.reports = self.path / "samples", self.path / "reports"
        self.trackers = self.path / "trackers"

    def record(self) -> RunRecord:
        """What run.json holds; an empty one where it cannot be read."""
        try:
            return RunRecord.model_validate_json(self.run_json.read_bytes())
        except (OSError, ValueError):
            return RunRecord()
