"""The configuration: YAML files that may extend one another, checked key by key, and overrides."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from biglearn_vae.before import add_values_of_before
from data.errors import UserError
from data.read.config import DataConfig
from data.section import Section
from data.values import Plain, checked, is_null, override, read_mapping
from model.biglearn import ModelConfig
from model.method import METHODS
from model.objective import ObjectiveConfig
from model.packed.plan import kernel_misfit
from model.patch_autoencoder.network import PatchAEConfig, PatchAutoencoder
from trainer.checkpoints.retention import CheckpointConfig
from trainer.engines.engine import EngineConfig
from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.schedule import ScheduleConfig
from trainer.evaluation import EvaluateConfig
from trainer.metrics.registry import MetricsConfig


class TrainConfig(Section):
    """How long and in what portions. Lengths and intervals are in images; 0 switches an interval off."""

    batch_size: int = Field(128, gt=0)  # global: of all ranks and accumulation steps together
    accumulation_steps: int = Field(1, gt=0)  # so many forwards and backwards of each rank make a step
    total_images: int = Field(gt=0)  # the length of the run; an image counts each time that it comes
    max_steps: int | None = Field(None, gt=0)  # stop earlier, after so many optimizer steps
    max_grad_norm: float | None = Field(None, gt=0)  # a longer gradient is shortened to it; null: none is
    max_skipped_steps: int = Field(5, gt=0)  # so many in a row that are not finite end the run


class Config(Section):
    """One experiment. Each section is owned, and documented, by the module that uses it."""

    method: Literal[(*METHODS, "patch_ae")] = "biglearn_u"  # the joint VAE, two models, one model; stage 1
    seed: int = Field(0, ge=0, lt=2**63)  # of the first weights, the order of the images, the masks and the noise
    run_dir: str = "runs/{config}-{method}"  # its folder; {config} in it is the name of the file, {method} the method
    stage_1: str | None = None  # the configuration of its PatchAE, a file relative to this one
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    patch_ae: PatchAEConfig = PatchAEConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _sound(self):
        if self.run_dir in ("", "~"):
            raise ValueError("run_dir is empty: give a folder")
        if self.method == "patch_ae" and (self.data.patch_size != 16 or self.data.code_dim):
            raise ValueError("patch_ae codes the pixels of patches of 16: set data.patch_size=16 and no data.code_dim")
        if self.method == "patch_ae" and self.engine.activation_checkpointing:
            raise ValueError("patch_ae has no blocks to compute again: set engine.activation_checkpointing=false")
        coded = (PatchAutoencoder.patch_size, PatchAutoencoder.code_dim)
        if self.data.code_dim and (self.data.patch_size, self.data.code_dim) != coded:
            raise ValueError(
                f"codes are {coded[1]} values of patches of {coded[0]}: set data.code_dim={coded[1]}"
                f" data.patch_size={coded[0]}, or data.code_dim=null to learn pixels"
            )
        warmup, decay, total = self.schedule.warmup_images, self.schedule.decay_images, self.train.total_images
        if decay and warmup + decay > total:
            raise ValueError(
                f"schedule.warmup_images={warmup} and schedule.decay_images={decay} are more than"
                f" train.total_images={total}: shorten them"
            )
        if self.engine.attention == "triton" and (misfit := self.kernel_misfit):
            raise ValueError(f"engine.attention=triton {misfit}: set engine.attention=auto or sdpa")
        return self

    @property
    def kernel_misfit(self) -> str | None:
        """Why attention in one launch cannot serve this model; None where it can."""
        if self.method not in METHODS:
            return f"serves transformers, not method={self.method}"
        return kernel_misfit(self.model.mask_tokens, self.model.embed_dim // self.model.num_heads)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = max(1, self.train.total_images // self.train.batch_size)
        return min(steps, self.train.max_steps or steps)

    @property
    def total_images(self) -> int:
        """Images the whole run sees."""
        return self.steps * self.train.batch_size

    def flat(self) -> dict:
        """Every value by its dotted key."""
        return _flat(self.model_dump(mode="json"))

    def of_model(self) -> dict:
        """What decides which model is trained, and on what objective, by dotted keys: what a resumed run must keep."""
        kept = ("method", "seed", "model.", "objective.", "optimizer.name")
        kept += ("data.patch_size", "data.holdout", "data.flip", "data.crop")
        return {key: value for key, value in self.flat().items() if key.startswith(kept)}

    def micro_batch_size(self, world_size: int) -> int:
        """Images of one forward on one rank; refuses a batch that does not split equally."""
        method = METHODS.get(self.method)
        groups = len(method.plans(self.objective, self.data.patches, self.seed)[0].groups) if method else 1
        batch, shares = self.train.batch_size, world_size * self.train.accumulation_steps
        if batch % (shares * groups):
            unit = shares * groups
            fitting = max(unit, round(batch / unit) * unit)
            raise UserError(
                f"train.batch_size {batch} is not divisible by {world_size} ranks x "
                f"{self.train.accumulation_steps} accumulation steps x {groups} mask groups = {unit}; "
                f"set train.batch_size={fitting} or another multiple of {unit}"
            )
        return batch // shares


def _joined(overrides: Sequence[str]) -> list[str]:
    """A shell makes several words of one with braces: names of tar files that follow one another are one value."""
    joined: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in ("data.shards", "data.test_shards") and value.endswith(".tar") and joined:
            before, _, other = joined[-1].partition("=")
            if before == key and other.endswith(".tar"):
                joined[-1] += f"::{value}"
                continue
        joined.append(text)
    return joined


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """The checked configuration of a YAML file; overrides are "section.key=value".

    How values are written: see `data.values`. Raises UserError, one line with the cause and the remedy, for anything
    that is not right.
    """
    values = _read(Path(path), seen=())
    if (Path(path).parent / "run.json").exists():  # a run wrote it down, with every key that there was
        add_values_of_before(values)
    for text in _joined(overrides):
        override(values, text, Config)
    stage_1, data = values.get("stage_1"), values.get("data")
    has_stage_1 = isinstance(stage_1, str) and not is_null(stage_1)
    stage_1 = os.path.expanduser(stage_1) if has_stage_1 else None
    if has_stage_1 and Path(stage_1).resolve() == Path(path).resolve():
        raise UserError(f"{path} names itself as stage_1: name the configuration of its PatchAE")
    if has_stage_1 and isinstance(data, dict) and "patch_autoencoder" not in data:
        if not is_null(_read(Path(stage_1), seen=()).get("stage_1", Plain())):
            raise UserError(f"{path}: stage_1 is {stage_1}, which has a stage_1 itself: name that of a PatchAE")
        data["patch_autoencoder"] = load_config(stage_1).run_dir
    run_dir, method = (values.get(key, Config.model_fields[key].default) for key in ("run_dir", "method"))
    if isinstance(run_dir, str) and not is_null(run_dir):
        values["run_dir"] = run_dir.replace("{config}", Path(path).stem).replace("{method}", str(method))
    return checked(values, Config, path)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, readable by load_config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself; remove one of the extends lines")
    values = read_mapping(path, "a configuration", "configs/")
    if isinstance(stage_1 := values.get("stage_1"), str) and not is_null(stage_1):
        values["stage_1"] = str((path.parent / Path(stage_1).expanduser()).resolve())
    parent = values.pop("extends", None)
    if parent is None or is_null(parent):
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends names one YAML file, relative to this one")
    return _merge(_read(path.parent / Path(parent).expanduser(), (*seen, path.resolve())), values)


def _merge(base: dict, changes: dict) -> dict:
    """A section whose every key is commented out changes nothing."""
    merged = dict(base)
    for key, value in changes.items():
        is_section = isinstance(merged.get(key), dict)
        if is_section and isinstance(value, dict):
            merged[key] = _merge(merged[key], value)
        elif not (is_section and is_null(value)):
            merged[key] = value
    return merged
