"""What a person writes behind a key means what the type of the key says, in files and in overrides alike."""

import math
import os
from pathlib import Path

import pytest
import yaml

from data.errors import UserError
from launch.slurm.cluster import load_profile
from reproduction.grid import load_grid
from trainer.config import dump_config, load_config

BASE = "data: {source: digits}\ntrain: {total_images: 960}\n"


def of_file(tmp_path, text: str):
    (tmp_path / "file.yaml").write_text(text)
    return load_config(tmp_path / "file.yaml")


def of_override(tmp_path, *overrides: str):
    (tmp_path / "file.yaml").write_text(BASE)
    return load_config(tmp_path / "file.yaml", [*overrides])


TEXTS = [
    "2024-05-01",
    "2024_05_01",
    "010",
    "0x10",
    "1:30",
    "no",
    "true",
    "null",
    "1e3",
    "a b",
    "@x",
    "%x",
    "[1",
    "x: y",
    "o #1",
]


@pytest.mark.parametrize("text", [*TEXTS, "{}", "'quoted'", "tab\there", "\udcff", "- x", "&a"])
def test_an_override_of_text_is_taken_as_it_stands(tmp_path, text):
    config = of_override(tmp_path, f"run_dir={text}", f"data.shards={text}")
    assert (config.run_dir, config.data.shards) == (text, text)
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize(
    "text", [text for text in TEXTS if text[0] not in "@%[" and not {":", "#"} & {*text} or ":3" in text]
)
def test_text_in_a_file_is_taken_as_it_stands(tmp_path, text):
    assert of_file(tmp_path, f"{BASE}run_dir: {text}\n").run_dir == text
    assert of_file(tmp_path, f"{BASE}run_dir: '{text}'\n").run_dir == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("1e3", 1000),
        ("1.0e+3", 1000),
        ("1_000", 1000),
        ("010000", 10_000),
        ("1_000_000", 10**6),
        (" 7 ", 7),
    ],
)
def test_whole_numbers_as_a_person_writes_them(tmp_path, text, value):
    assert of_override(tmp_path, f"train.total_images={text}").train.total_images == value
    assert of_file(tmp_path, f"data: {{source: digits}}\ntrain:\n  total_images: {text}\n").train.total_images == value


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E-3", 1e-3), (".5", 0.5), ("5.", 5.0), ("+1", 1.0), ("1_000.5", 1000.5)]
)
def test_numbers_as_a_person_writes_them(tmp_path, text, value):
    assert of_override(tmp_path, f"optimizer.learning_rate={text}").optimizer.learning_rate == value
    assert of_file(tmp_path, f"{BASE}optimizer:\n  learning_rate: {text}\n").optimizer.learning_rate == value


@pytest.mark.parametrize(
    "override",
    [
        *(
            f"train.total_images={text}"
            for text in ("1.5", "0x10", "1:30", "2024-05-01", "2024_05_01", "true", "", "1e-3")
        ),
        *(
            f"train.total_images={text}"
            for text in ("inf", "1e400", "1e999999999", "nan", "١٢", "null", "~", "64 images")
        ),
        *(
            f"optimizer.learning_rate={text}"
            for text in ("1e400", "inf", "-inf", ".nan", "nan", "1,5", "", "1e-3e", "--1")
        ),
        *(f"engine.compile={text}" for text in ("maybe", "2", "", "null")),
        "objective.s_beta=[0.5, inf]",
        "objective.s_beta=0.5",
        "data.shards=",
        "engine.zero_stage=one",
    ],
)
def test_everything_else_is_refused_with_key_and_value(tmp_path, override):
    key, _, text = override.partition("=")
    with pytest.raises(UserError, match=f"file.yaml: {key}.*: Input should be") as caught:
        of_override(tmp_path, override)
    assert "\n" not in str(caught.value)
    assert "inf" in override or f"(it is {text!r})" in str(caught.value)


def test_a_run_has_a_folder(tmp_path):
    with pytest.raises(UserError, match="run_dir is empty"):
        of_override(tmp_path, "run_dir=")


def test_numbers_of_code_are_finite_too():
    from trainer.engines.optimizers.config import OptimizerConfig

    for value in (math.inf, math.nan):
        with pytest.raises(ValueError, match="finite"):
            OptimizerConfig(learning_rate=value)


def test_what_may_be_none(tmp_path):
    for text in ("null", "~", "", "Null"):
        config = of_override(tmp_path, f"train.max_steps={text}", f"data.patch_autoencoder={text}", f"stage_1={text}")
        assert (config.train.max_steps, config.data.patch_autoencoder, config.stage_1) == (None, None, None)
    config = of_file(tmp_path, f"{BASE}stage_1:\nmetrics: {{pushgateway: 'null', port: null}}\n")
    assert (config.stage_1, config.metrics.pushgateway, config.metrics.port) == (None, "null", None)


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/person")
    assert of_override(tmp_path, "run_dir=~/runs/x").run_dir == "/home/person/runs/x"
    assert of_file(tmp_path, f"{BASE}run_dir: ~/runs/x\n").run_dir == "/home/person/runs/x"
    assert of_override(tmp_path, "run_dir=a~b").run_dir == "a~b"
    with pytest.raises(UserError, match="run_dir is empty|Input should be a folder"):
        of_override(tmp_path, "run_dir=~")
    assert load_profile(None, ["python=~/venv/bin/python"]).python == "/home/person/venv/bin/python"


def test_truth_values_and_lists(tmp_path):
    config = of_override(tmp_path, "engine.compile=True", "objective.s_beta=[1, 2e0]", "optimizer={beta1: .5}")
    assert config.engine.compile
    assert config.objective.s_beta == (1.0, 2.0)
    assert config.optimizer.beta1 == 0.5


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("data: {source: digits}\ntrain:\n  total_images: 1\ntrain:\n  batch_size: 2\n", "train", (2, 4)),
        (f"{BASE}optimizer:\n  learning_rate: 1\n  beta1: 0\n  learning_rate: 2\n", "learning_rate", (4, 6)),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, key, lines):
    with pytest.raises(UserError, match=f"key {key} stands in line {lines[0]} and again in line {lines[1]}: keep one"):
        of_file(tmp_path, text)


def test_a_key_that_stands_twice_is_refused_in_profiles_and_sweeps(tmp_path):
    (tmp_path / "p.yaml").write_text("partition: a\npartition: b\n")
    with pytest.raises(UserError, match="key partition stands in line 1 and again in line 2"):
        load_profile(str(tmp_path / "p.yaml"))
    (tmp_path / "s.yaml").write_text("run_dir: x\nconfigs: [a.yaml]\nvalues:\n  seed: [1]\n  seed: [2]\n")
    with pytest.raises(UserError, match="key seed stands in line 4 and again in line 5"):
        load_grid(tmp_path / "s.yaml", [])


def test_dotted_keys_in_a_file_are_those_of_the_section(tmp_path):
    config = of_file(tmp_path, f"{BASE}train.batch_size: 64\noptimizer.beta1: 0.5\n")
    assert (config.train.batch_size, config.train.total_images, config.optimizer.beta1) == (64, 960, 0.5)
    with pytest.raises(UserError, match="key train.total_images stands there twice"):
        of_file(tmp_path, f"{BASE}train.total_images: 64\n")
    with pytest.raises(UserError, match=r"seed\.x: seed is a value, not a section"):
        of_file(tmp_path, f"{BASE}seed: 1\nseed.x: 64\n")
    with pytest.raises(UserError, match=r"unknown key train.batchsize; did you mean train.batch_size\?"):
        of_file(tmp_path, f"{BASE}train.batchsize: 64\n")


def test_a_section_without_keys_has_its_defaults_or_its_parents(tmp_path):
    config = of_file(tmp_path, f"{BASE}optimizer:\n  # learning_rate: 1\nschedule: null\n")
    assert config == of_file(tmp_path, BASE)
    (tmp_path / "parent.yaml").write_text(f"{BASE}optimizer: {{beta1: 0.5}}\nrun_dir: x\n")
    assert of_file(tmp_path, "extends: parent.yaml\noptimizer:\n").optimizer.beta1 == 0.5
    with pytest.raises(UserError, match="the key train.total_images is missing"):
        of_file(tmp_path, "data: {source: digits}\ntrain:\n")
    assert of_override(tmp_path, "metrics=", "optimizer=~") == of_file(tmp_path, BASE)
    (tmp_path / "p.yaml").write_text("environment:\nmodules:\nsetup: # none\n")
    assert load_profile(str(tmp_path / "p.yaml")) == load_profile(None)


def test_merge_keys_and_aliases_mean_what_yaml_says(tmp_path):
    text = f"{BASE}optimizer: &o\n  beta1: 0.5\nevaluate: {{}}\nschedule: {{}}\noptimizer.beta2: 0.5\n"
    assert of_file(tmp_path, text).optimizer.beta1 == 0.5
    text = "data: &d {source: digits}\ntrain: {total_images: 960}\ndata.shards: x\n"
    assert of_file(tmp_path, text).data.shards == "x"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"run_dir: @x\n", "line 1 .*cannot start any token.*quote"),
        (b"a: 1\nrun_dir: caf\xe9\n", r"UTF-8 \(line 2\)"),
        (b"a: b: c\n", "line 1 .*mapping values"),
        (b"a: !!bool xx\n", "not valid YAML"),
        (b"a: !!timestamp xx\n", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_says_where_and_why(tmp_path, content, what):
    (tmp_path / "file.yaml").write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        load_config(tmp_path / "file.yaml")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "file.yaml").write_text(BASE, encoding="utf-8-sig")
    assert load_config(tmp_path / "file.yaml").train.total_images == 960


def test_configurations_of_older_runs_mean_the_same(root, tmp_path):
    """They were written with numbers and nulls as YAML's own."""
    for path in sorted((root / "configs").glob("*.yaml")):
        config = load_config(path)
        (tmp_path / "old.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        assert load_config(tmp_path / "old.yaml") == config


def test_bytes_that_are_no_text_name_a_folder(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(name).mkdir()
    assert Path(of_override(tmp_path, f"run_dir={name}").run_dir).is_dir()


def test_two_files_that_are_stage_1_of_each_other_are_refused(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"{BASE}stage_1: {other}.yaml\n")
    with pytest.raises(UserError, match="b.yaml, which has a stage_1 itself"):
        load_config(tmp_path / "a.yaml")
