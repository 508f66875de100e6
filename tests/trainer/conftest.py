"""A configuration small enough to train in a test."""

import pytest
import yaml

from trainer.config import Config, load_config

TINY = {
    "data": {"source": "digits", "image_size": 32, "patch_size": 8},
    "model": {
        "embed_dim": 16,
        "encoder_depth": 1,
        "decoder_depth": 1,
        "num_heads": 2,
        "latent_dim": 4,
        "residual_init": "xavier",  # each token sees the others from the first step on
    },
    "objective": {"groups": 4, "plans": 4},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_size": 16, "total_images": 96},
    "evaluate": {"images": 24, "batch_size": 12},
    "engine": {"name": "accelerate"},
    "metrics": {"port": None},
}


@pytest.fixture
def tiny(tmp_path, digits_shards):
    """tiny(*overrides): a checked configuration of a run in tmp_path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))

    def load(*overrides: str) -> Config:
        return load_config(path, [f"data.shards={digits_shards}", f"run_dir={tmp_path / 'run'}", *overrides])

    load.path = path
    return load
