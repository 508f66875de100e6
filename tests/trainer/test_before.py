"""A run and an export that were written before there were Muon, shapes of S and a schedule of beta.

tests/before/run: 32 of 64 images of the digits at 16x16, AdamW along a cosine. LOSSES: of its next two steps, then.
tests/before/generated.npy: two images, drawn with seed 3, of its average.
"""

import json
import shutil

import numpy as np
import pytest

from biglearn_vae.capabilities import BigLearnVAE

LOSSES = [74.61697387695312, 75.42179107666016]


def test_a_run_goes_on_as_it_would_have(root, start, tmp_path):
    run = shutil.copytree(root / "tests" / "before" / "run", tmp_path / "run")
    overrides = [f"run_dir={run}", f"data.shards={tmp_path / 'digits'}", "train.max_steps=null"]
    ended = start("python", "launch/train.py", "--config", run / "config.yaml", "--resume", "auto", *overrides)
    assert ended.returncode == 0
    assert "learning rate" not in ended.stderr  # of a jump
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 4]
    assert [row["loss"] for row in rows] == pytest.approx(LOSSES, rel=1e-6)


@pytest.mark.parametrize("kind", ["run", "export"])
def test_what_was_trained_draws_what_it_drew(root, kind):
    found = BigLearnVAE.load(root / "tests" / "before" / kind).generate(2, seed=3)
    np.testing.assert_allclose(found, np.load(root / "tests" / "before" / "generated.npy"), atol=1e-6)


def test_another_length_of_a_schedule_that_ends_is_said(root, start, tmp_path):
    run = shutil.copytree(root / "tests" / "before" / "run", tmp_path / "run")
    overrides = [f"run_dir={run}", f"data.shards={tmp_path / 'digits'}", "train.total_images=128", "train.max_steps=3"]
    ended = start("python", "launch/train.py", "--config", run / "config.yaml", "--resume", "auto", *overrides)
    assert ended.returncode == 0
    assert (
        "goes on at 0.00095 and beta at 0.01, where the run had them at 0.00075 and 0.01 (train.total" in ended.stderr
    )
