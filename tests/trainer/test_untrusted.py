"""Configurations, checkpoints and run directories that somebody else made: a clear error or right data, never
a traceback, and nothing is ever executed.
"""

import copy
import json
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biglearn_vae.checkpoint import Checkpoint, load_checkpoint, newest_whole
from data.errors import UserError
from tests.biglearn_vae.test_checkpoint import checkpoint, forge, save
from tests.tiny import TINY
from trainer.config import Config, load_config
from trainer.metrics.json_lines import read_lines
from trainer.run_directory import RunDirectory

fuzz = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.just(10**400),
    st.just(-1),
    st.just(""),
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


def is_clear(error: UserError) -> bool:
    text = str(error)
    return bool(text) and "\n" not in text and len(text) < 2000


@contextmanager
def clear_refusals(named: str = ""):
    """What happens inside may be refused, if the refusal is a clear one that names the file."""
    try:
        yield
    except UserError as error:
        if not is_clear(error) or named not in str(error):
            pytest.fail(f"not clear: {error}")


def loads_or_is_refused(path: Path, overrides: list[str] = ()) -> None:
    with clear_refusals():
        assert isinstance(load_config(path, overrides), Config)


@fuzz
@given(data=st.binary(max_size=300))
def test_bytes_as_a_configuration(tmp_path, data):
    (tmp_path / "config.yaml").write_bytes(data)
    loads_or_is_refused(tmp_path / "config.yaml")


@fuzz
@given(data=st.data())
def test_other_values_in_a_configuration(tmp_path, data):
    values = copy.deepcopy(TINY)
    sections = [values, *(value for value in values.values() if isinstance(value, dict))]
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(sections))
        keys = [*section, "extends", "run_dir", "method", "seed", "schedule"]
        section[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    loads_or_is_refused(tmp_path / "config.yaml")


@fuzz
@given(
    key=st.text(max_size=20) | st.sampled_from(["train.batch_size", "model.num_heads", "data", "engine.name", "a.b"]),
    value=st.text(max_size=30),
)
def test_overrides(tmp_path, key, value):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY))
    loads_or_is_refused(tmp_path / "config.yaml", [f"{key}={value}"])


CRAFTED = {
    "a python object": "run_dir: !!python/object/apply:os.system ['touch executed']",
    "nested without end": "data: " + "[" * 20_000,
    "nested in flow": "{a: " * 5_000,
    "aliases that multiply": "a0: &a0 [x, x]\n"
    + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)),
    "an alias of itself": "data: &d\n  source: *d",
    "a merge of itself": "data: &d\n  <<: *d",
    "extends itself": "extends: config.yaml",
    "extends a device": "extends: /dev/zero",
    "extends a folder": "extends: .",
    "extends a list": "extends: [a]",
    "a number of many digits": "seed: " + "9" * 5_000,
    "dates": "seed: 2001-01-01",
    "a null byte": "run_dir: \0",
    "keys that are no names": "? [a, b]\n: 1",
    "keys that are numbers": "1: 2",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_configurations(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CRAFTED[name])
    with pytest.raises(UserError) as refusal:
        load_config(tmp_path / "config.yaml")
    assert is_clear(refusal.value)
    assert not (tmp_path / "executed").exists()


def test_a_configuration_is_not_read_beyond_its_size(tmp_path):
    with (tmp_path / "config.yaml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="a short YAML file"):
        load_config(tmp_path / "config.yaml")


def mutated(data, content: bytes) -> bytes:
    """The content with a few bytes flipped, cut, repeated or put in."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 40))
        new = data.draw(st.binary(max_size=12) | st.just(content[at : at + 30] * 2))
        content = content[:at] + new + content[at + length :]
    return content


@fuzz
@given(data=st.data())
def test_a_mutated_checkpoint(tmp_path, data):
    """With the old manifest the change is found by its hash; with one that agrees, by the reader of the file."""
    path = save(tmp_path, checkpoint(8))
    name = data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    content = mutated(data, (path / name).read_bytes())
    changed = content != (path / name).read_bytes()
    if name != "manifest.json" and data.draw(st.booleans()):
        forge(path, name, content)
        changed = None
    else:
        (path / name).write_bytes(content)
    with clear_refusals(str(path)):
        loaded = load_checkpoint(path)
        assert isinstance(loaded, Checkpoint)
        assert changed is not True or name == "manifest.json"
        assert all(isinstance(value, torch.Tensor) for kind in loaded.tensors.values() for value in kind.values())
    shutil.rmtree(path)


@fuzz
@given(values=VALUES)
def test_any_json_as_state_or_manifest(tmp_path, values):
    path = save(tmp_path, checkpoint(8))
    try:
        content = json.dumps(values).encode()
        forge(path, "state.json", content)
        with pytest.raises(UserError):
            load_checkpoint(path)
        (path / "manifest.json").write_bytes(content)
        with pytest.raises(UserError):
            load_checkpoint(path)
    finally:
        shutil.rmtree(path)


class Executed(Exception):
    pass


def explode():
    raise Executed


class Bomb:
    def __reduce__(self):
        return explode, ()


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", [pickle.dumps, "torch"])
def test_a_pickle_is_never_loaded(tmp_path, name, how):
    path = save(tmp_path, checkpoint(8))
    if how == "torch":
        torch.save({"weights": Bomb()}, tmp_path / "pickle")
        forge(path, name, (tmp_path / "pickle").read_bytes())
    else:
        forge(path, name, pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="img-000000000008"):
        load_checkpoint(path)


HEADERS = {
    "longer than the file": (2**62).to_bytes(8, "little") + b"{}",
    "negative offsets": b'{"weights/a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    "a huge shape": b'{"weights/a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
    "overlapping": b'{"weights/a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"weights/b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "nested": b'{"a":' * 50_000,
    "another type": b'{"weights/a":{"dtype":"PYTHON","shape":[1],"data_offsets":[0,4]}}',
    "another kind": b'{"ema/a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_crafted_tensor_files(tmp_path, name):
    path = save(tmp_path, checkpoint(8))
    header = HEADERS[name]
    content = header if name == "longer than the file" else len(header).to_bytes(8, "little") + header + bytes(4)
    forge(path, "weights.safetensors", content)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_checkpoint(path)


def test_links_and_devices_in_a_checkpoint(tmp_path):
    path = save(tmp_path, checkpoint(8))
    (path / "ema.safetensors").unlink()
    (path / "ema.safetensors").symlink_to("/dev/zero")  # would be read for ever
    with pytest.raises(UserError, match=r"ema\.safetensors"):
        load_checkpoint(path)


def test_names_that_are_no_checkpoints(tmp_path):
    for name in ("img-", "img-x", "img-12", "img-000000000008 copy", "img-00000000000²"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert newest_whole(tmp_path) == (None, None, [])


@fuzz
@given(content=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_logs_and_run_ids(tmp_path, content):
    run = RunDirectory(str(tmp_path))
    for name in ("metrics.jsonl", "evaluations.jsonl", "run.json"):
        (tmp_path / name).write_bytes(content)
    assert all(isinstance(line["images"], int) for line in read_lines(run.metrics))
    assert run.evaluation(8) is None or run.evaluation(8)["images"] == 8
    run.record()
