"""The configuration: files, inheritance, overrides, and one plain line for each mistake."""

import pytest

from data.errors import UserError
from trainer.config import dump_config, load_config


def test_every_committed_configuration_loads(root):
    paths = sorted((root / "configs").glob("*.yaml"))
    assert {f"{name}_case{k}" for name in ("mnist", "fashion") for k in range(1, 5)} <= {p.stem for p in paths}
    for path in paths:
        load_config(path)


def test_what_is_stored_with_a_run_loads_to_the_same(tiny, tmp_path):
    config = tiny("method=vae", "train.max_grad_norm=2")
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_config(config))
    assert load_config(stored) == config


def test_extends_changes_only_what_it_names(root):
    base, extended = (load_config(root / f"configs/mnist_case{k}.yaml") for k in (1, 2))
    assert extended.model.embed_dim == 256
    assert extended.model.latent_dim == base.model.latent_dim
    assert extended.train == base.train


def test_a_section_is_merged_key_by_key(tiny, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {tiny.path.name}\nmodel: {{latent_dim: 8}}\n")
    config = load_config(child)
    assert config.model.latent_dim == 8
    assert config.model.embed_dim == 16


def test_the_length_of_a_case_is_the_same_for_all_methods(root):
    steps = {
        load_config(root / "configs/mnist_case1.yaml", [f"method={method}"]).steps
        for method in ("vae", "biglearn_t", "biglearn_u")
    }
    assert len(steps) == 1


def test_overrides_are_yaml_values(tiny):
    config = tiny("train.batch_size=64", "objective.s_beta=[1, 2]", "train.max_steps=null", "method=vae")
    assert config.train.batch_size == 64
    assert config.objective.s_beta == (1.0, 2.0)
    assert config.train.max_steps is None


def test_default_run_directory_names_configuration_and_method(root):
    assert load_config(root / "configs/digits.yaml", ["method=vae"]).run_dir == "runs/digits_8x8-vae"


@pytest.mark.parametrize(
    ("override", "cause_and_remedy"),
    [
        ("train.batchsize=64", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("enginename=deepspeed", "unknown key enginename; did you mean engine.name?"),
        ("engine.zero_stage=4", "engine.zero_stage: Input should be less than or equal to 3 (it is 4)"),
        ("method=gan", "method: Input should be 'vae', 'biglearn_t', 'biglearn_u' or 'patch_ae' (it is 'gan')"),
        ("data.patch_size=5", "image_size 32 is no multiple of patch_size 5"),
        ("model.num_heads=3", "embed_dim 16 must be divisible by num_heads 3"),
        ("train.batch_size=many", "train.batch_size: Input should be a valid integer"),
        ("data.source=mnits", "mnist"),
        ("train", "write section.key=value"),
        ("train.batch_size.x=1", "batch_size is a value, not a section"),
        ("objective.s_beta=[1", "not valid YAML"),
        ("metrics.trackers=mlflow", "metrics.trackers: Input should be a list, as [a, b]"),
        ("metrics.trackers=[mlflw]", "Input should be 'tensorboard', 'wandb', 'mlflow' or 'trackio' (it is 'mlflw')"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("optimizer.name=sgd", "optimizer.name: Input should be 'muon' or 'adamw' (it is 'sgd')"),
        ("optimizer.muon.learning_rate=0", "optimizer.muon.learning_rate: Input should be greater than 0"),
        ("optimizer.muon.learning_rate=fast", "optimizer.muon.learning_rate: Input should be a valid number"),
        ("optimizer.muon.rate=1", "unknown key optimizer.muon.rate; did you mean optimizer.muon?"),
        ("schedule.name=wsd", "give both or neither"),
        ("objective.beta_start=0", "objective.beta_start: Input should be greater than 0"),
    ],
)
def test_mistakes_are_one_plain_line(tiny, override, cause_and_remedy):
    with pytest.raises(UserError) as mistake:
        tiny(override)
    assert cause_and_remedy in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_compiling_stops_at_stage_2(tiny):
    assert tiny("engine.compile=true", "engine.name=deepspeed", "engine.zero_stage=2").engine.compile
    with pytest.raises(UserError, match="set engine.zero_stage to 0, 1 or 2"):
        tiny("engine.compile=true", "engine.name=deepspeed", "engine.zero_stage=3")


def test_cuda_graphs_stop_at_stage_1(tiny):
    assert tiny("engine.cuda_graphs=true", "engine.name=deepspeed", "engine.zero_stage=1").engine.cuda_graphs
    with pytest.raises(UserError, match=r"set engine\.zero_stage to 0 or 1, engine\.name=accelerate, or"):
        tiny("engine.cuda_graphs=true", "engine.name=deepspeed", "engine.zero_stage=2")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: [", "not valid YAML in line 1"),
        ("- a", "a configuration is a mapping"),
        ("extends: itself.yaml", "extends itself"),
        ("extends: absent.yaml", "absent.yaml cannot be read"),
        ("train: {total_images: 1}", "the key data is missing; add it"),
        ("x: !!python/object/apply:os.system ['touch /tmp/never']", "not valid YAML"),
    ],
)
def test_bad_files_are_one_plain_line(tmp_path, text, cause):
    path = tmp_path / "itself.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=cause) as mistake:
        load_config(path)
    assert "\n" not in str(mistake.value)


def test_a_batch_that_does_not_split_names_one_that_does(tiny):
    config = tiny("train.batch_size=20", "train.accumulation_steps=2")
    with pytest.raises(
        UserError, match=r"2 ranks x 2 accumulation steps x 4 mask groups = 16; set train.batch_size=16"
    ):
        config.micro_batch_size(world_size=2)
    assert tiny("train.accumulation_steps=2").micro_batch_size(world_size=2) == 4


def test_length_in_images_and_in_steps(tiny):
    assert tiny().steps == 6
    assert tiny("train.max_steps=2").total_images == 32
    assert tiny("train.max_steps=200").steps == 6


def test_attention_in_one_launch_needs_a_gpu_and_fitting_heads(tiny, world):
    from trainer.build import build_parts

    with pytest.raises(UserError, match=r"a multiple of 8 up to 128, and .* is 12: set"):
        tiny("engine.attention=triton", "model.num_heads=4", "model.embed_dim=48")
    fitting = ("engine.attention=triton", "model.num_heads=4", "model.embed_dim=64")
    with pytest.raises(UserError, match=r"needs a GPU: set engine\.attention=auto"):
        build_parts(tiny(*fitting), world)


def test_a_decay_longer_than_the_run_is_refused(tiny):
    with pytest.raises(UserError, match="schedule.decay_images=97 are more than train.total_images=96"):
        tiny("schedule.name=wsd", "schedule.decay_images=97")


def test_tar_files_that_a_shell_made_of_braces_are_one_value():
    of_shell = [f"data.shards=s3://b/{number}.tar" for number in range(3)]
    config = load_config("configs/digits.yaml", ["data.source=webdataset", *of_shell, "seed=3"])
    assert config.data.shards == "s3://b/0.tar::s3://b/1.tar::s3://b/2.tar"
    config = load_config("configs/digits.yaml", [of_shell[0], "data.source=webdataset", of_shell[1]])
    assert config.data.shards == "s3://b/1.tar"  # a later word of a person replaces an earlier one
