"""The `optimizer` section of a configuration."""

from typing import Literal

from pydantic import Field

from data.section import Section


class MuonConfig(Section):
    """Of the matrices of the trunk, where `optimizer.name` is muon."""

    learning_rate: float = Field(0.02, gt=0)  # times sqrt(rows / columns) for a matrix with more rows than columns
    momentum: float = Field(0.95, ge=0, lt=1)  # Nesterov's
    weight_decay: float = Field(0.0, ge=0)  # times the learning rate


class OptimizerConfig(Section):
    """How the weights follow from the gradients, and the average of the weights that evaluation uses."""

    name: Literal["muon", "adamw"] = "muon"  # of the matrices of the trunk; all else takes AdamW
    learning_rate: float = Field(1e-3, gt=0)  # AdamW's
    beta1: float = Field(0.9, ge=0, lt=1)  # AdamW's, of the mean of gradients
    beta2: float = Field(0.95, ge=0, lt=1)  # AdamW's, of the mean of their squares
    eps: float = Field(1e-8, gt=0)  # AdamW's
    weight_decay: float = Field(0.01, ge=0)  # AdamW's, on matrices only
    muon: MuonConfig = MuonConfig()
    ema_halflife_images: int = Field(500_000, ge=0)  # 0: evaluation uses the weights themselves
    ema_rampup: float = Field(0.05, gt=0)  # the half-life is at most this share of the images seen so far
