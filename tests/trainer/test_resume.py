"""What a run goes on from, and what it refuses to go on from."""

import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from biglearn_vae.checkpoint import State
from data.batch import Batch
from data.errors import NonFiniteError, UserError
from tests.biglearn_vae.test_checkpoint import forge
from trainer.build import build_parts
from trainer.checkpoints.writer import CheckpointWriter
from trainer.engines.engine import EngineConfig
from trainer.engines.schedule import Rates
from trainer.resume import identity, restore, whole_identity

RATES = Rates(learning=1.0, ema_decay=0.5, beta=0.01)


@pytest.fixture
def saved(tiny, world, tmp_path):
    """A configuration, its parts after a step, and a folder with their checkpoint."""
    config = tiny()
    parts = build_parts(config, world)
    batch = parts.train_stream.read(torch.arange(16))
    parts.engine.step([batch], parts.copy.plans[0], RATES)
    writer = CheckpointWriter(tmp_path, config.checkpoint, parts.engine, parts.shapes)
    writer.start(State(images=16, step=1, identity=identity(config, parts.index, parts.codec)))
    writer.finish()
    assert writer.error is None
    return config, parts, tmp_path


def test_a_checkpoint_that_is_complete_is_told(saved, tmp_path):
    config, parts, _ = saved
    told = []
    writer = CheckpointWriter(tmp_path / "told", config.checkpoint, parts.engine, parts.shapes, [told.append])
    writer.start(State(images=32, step=2, identity={}))
    assert not told
    writer.finish()
    files = list((tmp_path / "told/img-000000000032").iterdir())
    assert told[0]["checkpoint_bytes"] == sum(path.stat().st_size for path in files) > 1000
    assert 0 < told[0]["checkpoint_seconds"] < 60
    assert abs(told[0]["checkpoint_time"] - time.time()) < 60


def test_all_tensors_come_back(saved, world):
    config, parts, folder = saved
    fresh = build_parts(config, world)
    state = restore(fresh, folder, identity(config, fresh.index, fresh.codec))
    assert (state.images, state.step) == (16, 1)
    before, after = parts.engine.full_state(*parts.engine.kinds), fresh.engine.full_state(*fresh.engine.kinds)
    assert before.keys() == after.keys() == {"weights", "exp_avg", "exp_avg_sq", "ema"}
    for kind in before:
        assert all(torch.equal(before[kind][name], after[kind][name]) for name in parts.engine.kinds[kind])
        assert any(value.any() for value in after[kind].values())


def test_a_step_that_was_skipped_counts_for_no_optimizer(saved, world, tmp_path):
    config, parts, _ = saved
    batch = parts.train_stream.read(torch.arange(16))
    broken = Batch(batch.x_BLD * float("nan"), batch.index_B)
    parts.engine.step([broken], parts.copy.plans[1], RATES)
    writer = CheckpointWriter(tmp_path / "on", config.checkpoint, parts.engine, parts.shapes)
    shared = identity(config, parts.index, parts.codec)
    writer.start(State(images=32, step=2, skipped_steps=1, identity=shared))
    writer.finish()
    fresh = build_parts(config, world)
    restore(fresh, tmp_path / "on", shared)
    weights = []
    for engine in (parts.engine, fresh.engine):
        engine.step([batch], parts.copy.plans[2], RATES)
        weights.append(engine.full_state("weights")["weights"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.mlp_ratio=3", "model.mlp_ratio 2.0 there, 3.0 here"),
        ("method=biglearn_t", "method biglearn_u there, biglearn_t here"),
        ("objective.beta=0.5", "objective.beta 0.01 there, 0.5 here"),
        ("seed=3", "seed 0 there, 3 here"),
        ("optimizer.name=adamw", "optimizer.name muon there, adamw here"),
        ("data.flip=true", "data.flip False there, True here"),
    ],
)
def test_another_run_is_refused_and_the_fields_named(saved, tiny, world, override, named):
    _, parts, folder = saved
    other = tiny(override)
    with pytest.raises(UserError, match="is of another run") as refusal:
        restore(build_parts(other, world), folder, identity(other, parts.index, parts.codec))
    assert named in str(refusal.value)


def test_a_key_that_a_checkpoint_lacks_counts_as_its_value_of_before_or_its_default():
    lacking = whole_identity(State(identity={"seed": 7}))
    assert (lacking["seed"], lacking["optimizer.name"], lacking["model.embed_dim"]) == (7, "adamw", 128)


def test_how_a_step_is_computed_may_change(saved):
    config, parts, _ = saved
    engine = EngineConfig(name="accelerate", attention="triton", precision="bf16")
    other = config.model_copy(update={"engine": engine})
    assert identity(other, parts.index, parts.codec) == identity(config, parts.index, parts.codec)


def test_other_data_is_refused(saved):
    config, parts, folder = saved
    shared = identity(config, parts.index, parts.codec) | {"data_checksum": "0" * 64}
    with pytest.raises(UserError, match="data_checksum .* there, 0000.* here"):
        restore(parts, folder, shared)


@pytest.mark.parametrize("change", ["shape", "dtype", "absent", "extra"])
def test_tensors_that_do_not_fit_are_named_even_if_everything_else_agrees(saved, change):
    config, parts, folder = saved
    path = folder / "img-000000000016"
    tensors = load_file(path / "ema.safetensors")
    name = "model.embed.z_query"
    value = tensors.pop(f"ema/{name}")
    if change != "absent":
        changed = {"shape": value[..., :-1].contiguous(), "dtype": value.half(), "extra": value}[change]
        tensors[f"ema/{name}" + ("x" if change == "extra" else "")] = changed
    save_file(tensors, path / "other.safetensors")
    forge(path, "ema.safetensors", (path / "other.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"ema of {name}"):
        restore(parts, folder, identity(config, parts.index, parts.codec))


def test_a_state_that_is_not_finite_is_never_written(saved, tmp_path):
    config, parts, _ = saved
    with torch.no_grad():
        next(iter(parts.engine.parameters.values()))[0] = torch.inf
    writer = CheckpointWriter(tmp_path / "bad", config.checkpoint, parts.engine, parts.shapes)
    with pytest.raises(NonFiniteError, match="at step 1"):
        writer.start(State(images=16, step=1, identity={}))
    assert not (tmp_path / "bad").exists()


def test_what_is_written_is_the_state_at_the_start(saved, tmp_path, monkeypatch):
    """Training goes on while the thread writes; the checkpoint does not see it."""
    import threading

    from trainer.checkpoints import writer as checkpoint_writer

    config, parts, _ = saved
    held = threading.Event()
    original = checkpoint_writer.write_part
    monkeypatch.setattr(checkpoint_writer, "write_part", lambda *a: held.wait(60) and original(*a))
    before = {name: value.clone() for name, value in parts.engine.full_state("weights")["weights"].items()}
    writer = CheckpointWriter(tmp_path / "later", config.checkpoint, parts.engine, parts.shapes)
    writer.start(State(images=16, step=1, identity={}))
    assert writer.is_writing
    parts.engine.step([parts.train_stream.read(torch.arange(16))], parts.copy.plans[1], RATES)
    held.set()
    writer.finish()
    written = load_file(tmp_path / "later/img-000000000016/weights.safetensors")
    assert all(torch.equal(written[f"weights/{name}"], value) for name, value in before.items())
