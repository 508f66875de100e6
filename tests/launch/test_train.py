"""launch/train.py as a person starts it: engines, launchers, resume, exit codes."""

import json
import os

import pytest
import yaml

from tests.launch.conftest import losses


def test_a_run_leaves_what_it_promises(reference):
    assert {"config.yaml", "run.json", "metrics.jsonl", "evaluations.jsonl"} <= {p.name for p in reference.iterdir()}
    assert (reference / "samples/img-000000000096.png").exists()
    assert (reference / "checkpoints/img-000000000096/manifest.json").exists()
    lines = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["images"] for line in lines] == [16, 32, 48, 64, 80, 96]
    assert all({"loss", "elbo", "reconstruction", "kl", "gradient_norm"} <= line.keys() for line in lines)
    summary = json.loads((reference / "reports/summary.json").read_text())
    assert summary["after"]["biglearn_elbo"] > summary["before"]["biglearn_elbo"]


@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
def test_a_resumed_run_goes_on_bit_for_bit(start, tiny_file, tmp_path, engine):
    """Stopped in the middle of an accumulation of epochs and started again: the same losses, each once."""
    schedule = ["schedule.name=cosine", "schedule.warmup_images=32", "evaluate.every_images=32"]
    common = ["--config", tiny_file, f"engine.name={engine}", *schedule]
    command = ["python", "launch/train.py", *common]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(*command, f"run_dir={whole}").returncode == 0
    for steps in (2, 5, 6):
        assert start(*command, f"run_dir={parts}", f"train.max_steps={steps}", "--resume", "auto").returncode == 0
    assert losses(parts) == losses(whole)
    evaluated = [[json.loads(line) for line in (r / "evaluations.jsonl").open()] for r in (whole, parts)]
    assert evaluated[0][-1] == evaluated[1][-1]
    assert [line["images"] for line in evaluated[1]] == [0, 32, 64, 80, 96]  # each once; 80 is a start of its own


def test_dry_run_counts_and_touches_nothing(start, tmp_path):
    command = ["python", "launch/train.py", "--config", "configs/mnist_case1.yaml", "--dry-run"]
    done = start(*command, f"run_dir={tmp_path / 'run'}", "data.shards=nowhere")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts == counts | {
        "method": "biglearn_u", "mask_tokens": "query_only", "parameters": 1_269_104,
        "parameters_millions_2_20": 1.2103, "tokens_per_image": 115.9453125, "token_layers_per_image": 861.3359375,
        "images_per_epoch": 60_000, "steps": 4_687, "world_size": 1,
    }  # fmt: skip
    assert 6e8 < counts["flops_per_image"] < 7e8
    assert "# GB that a rank needs: weights 0.0102, gradients 0.00508, " in done.stdout
    assert yaml.safe_load(done.stdout.rpartition("\n{")[0])["train"]["batch_size"] == 128
    assert not any(tmp_path.iterdir())


SHALLOW = ("model.encoder_depth=1", "model.decoder_depth=1")  # sooner counted


def test_dry_run_counts_what_is_trained_on(start):
    command = ["python", "launch/train.py", "--config", "configs/mnist_case1.yaml", "--dry-run", "data.shards=nowhere"]
    done = start(*command, *SHALLOW, "data.holdout=5000")
    assert json.loads(done.stdout.splitlines()[-1])["images_per_epoch"] == 55_000
    done = start(*command, "data.holdout=60000")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "data.holdout=60000 leaves none of the 60,000 training images" in done.stderr


def test_dry_run_says_how_steps_would_be_computed_and_counts_for_another_machine(start):
    command = ["python", "launch/train.py", "--config", "configs/mnist_case1.yaml", "--dry-run", "engine.device=cpu"]
    here = json.loads(start(*command, *SHALLOW).stdout.splitlines()[-1])
    assert here["ways"] == {"device": "cpu", "attention": "sdpa", "cuda_graphs": False, "compile": False}
    done = start(*command, *SHALLOW, "engine.attention=triton")  # on a login node, for instance
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert (counts["parameters"], [*counts["ways"]]) == (here["parameters"], ["not_here"])


def test_dry_run_says_what_memory_a_rank_of_several_needs(start):
    """ZeRO 1 leaves each of four ranks a quarter of the optimizer's state, ZeRO 3 also a part of the rest."""
    command = ["python", "launch/train.py", "--config", "configs/mnist_case1.yaml", "--dry-run", "method=vae"]
    ranks = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    alone, *shared = (
        json.loads(start(*command, f"engine.zero_stage={stage}", **environment).stdout.splitlines()[-1])["memory"]
        for stage, environment in ((1, {}), (1, ranks), (3, ranks))
    )
    copies = 4 * 1_269_104
    assert [*alone] == ["weights", "gradients", "optimizer", "activations", "total"]
    assert (alone["weights"], alone["gradients"]) == (2 * copies, copies)
    assert 3 * copies < alone["optimizer"] < 4 * copies
    for memory in shared:
        assert memory["optimizer"] == pytest.approx(alone["optimizer"] / 4, rel=1e-3)
        assert memory["activations"] < alone["activations"] / 2
    assert shared[1]["gradients"] == copies + copies / 4
    for memory in (alone, *shared):
        assert memory["total"] == sum(size for name, size in memory.items() if name != "total")


def test_dry_run_finds_a_damaged_index(start, tmp_path):
    (tmp_path / "index.json").write_text("{")
    command = ["python", "launch/train.py", "--config", "configs/mnist_case1.yaml", "--dry-run"]
    done = start(*command, f"data.shards={tmp_path}")
    assert done.returncode == 2
    assert "index.json is damaged" in done.stderr


@pytest.mark.parametrize(
    ("name", "parameters", "images_per_epoch"),
    [
        ("celeba_patchae", 2_432_003, 162_770),
        ("celeba_base", 94_311_168, 162_770),
        pytest.param("celeba_1b", 1_054_569_472, 162_770, marks=pytest.mark.exhaustive),  # half a minute of counting
    ],
)
def test_dry_run_counts_the_configurations_of_faces(start, name, parameters, images_per_epoch):
    done = start("python", "launch/train.py", "--config", f"configs/{name}.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert (counts["parameters"], counts["images_per_epoch"]) == (parameters, images_per_epoch)


def test_dry_run_of_a_folder_leaves_the_epoch_open(start):
    """Only its shards know how many images it has."""
    done = start("python", "launch/train.py", "--config", "configs/celeba_256.yaml", "--dry-run", *SHALLOW)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images_per_epoch"] is None


@pytest.mark.parametrize(
    ("arguments", "cause_and_remedy"),
    [
        (["train.batchsize=64"], "did you mean train.batch_size?"),
        (["data.patch_size=5"], "image_size 32 is no multiple of patch_size 5"),
        (["train.batch_size=18"], "set train.batch_size=16 or another multiple of 4"),
        (["data.source=mnist", "data.shards=nowhere"], "python launch/prepare.py mnist"),
        (["data.image_size=64"], "--image-size 64"),
        (["engine.device=cuda"], "set engine.device=cpu"),
        (["method=patch_ae"], "set data.patch_size=16"),
        (["data.code_dim=512"], "set data.code_dim=512 data.patch_size=16, or data.code_dim=null"),
        (["data.code_dim=512", "data.patch_size=16"], "python launch/encode.py --images"),
        (["objective.s_beta=[0,3]"], "objective.s_beta.0: Input should be greater than 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(start, tiny_file, tmp_path, arguments, cause_and_remedy):
    command = ["python", "launch/train.py", "--config", tiny_file, f"run_dir={tmp_path / 'run'}", *arguments]
    done = start(*command)
    assert done.returncode == 2
    assert cause_and_remedy in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" in start(*command, "--debug").stderr
    assert not (tmp_path / "run").exists()


def test_the_deepspeed_launcher_hands_on_the_exit_code(start, tiny_file):
    assert start("deepspeed", "launch/train.py", "--config", tiny_file, "nokey=1").returncode == 2


def test_a_damaged_index_is_named(start, tiny_file, tmp_path, digits_shards):
    (tmp_path / "index.json").write_text((digits_shards / "index.json").read_text()[:-9])
    done = start("python", "launch/train.py", "--config", tiny_file, f"data.shards={tmp_path}")
    assert done.returncode == 2
    assert str(tmp_path / "index.json") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_is_never_written_over(start, tiny_file, reference):
    before = (reference / "metrics.jsonl").read_text()
    done = start("python", "launch/train.py", "--config", tiny_file, f"run_dir={reference}")
    assert done.returncode == 2
    assert "--resume auto" in done.stderr
    assert (reference / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_run_is_refused_and_the_differences_named(start, tiny_file, reference):
    command = ["python", "launch/train.py", "--config", tiny_file, f"run_dir={reference}", "--resume", "auto"]
    before = (reference / "config.yaml").read_text()
    done = start(*command, "seed=1", "model.mask_tokens=dense")
    assert done.returncode == 2
    assert "model.mask_tokens query_only there, dense here; seed 0 there, 1 here" in done.stderr
    assert (reference / "config.yaml").read_text() == before


def test_a_finished_run_is_left_as_it_is(start, tiny_file, reference):
    names = ("reports/summary.json", "evaluations.jsonl", "metrics.jsonl", "config.yaml")
    before = [(reference / name).read_text() for name in names]
    command = ["python", "launch/train.py", "--config", tiny_file, f"run_dir={reference}", "--resume", "auto"]
    done = start(*command)
    assert done.returncode == 0, done.stderr
    assert "test BigLearnELBO" in done.stdout
    assert [(reference / name).read_text() for name in names] == before


@pytest.mark.parametrize("steps", [1, 2, 20])  # the weights alone; the last losses; losses that are still pending
def test_numbers_that_are_not_finite_end_with_exit_code_3(start, tiny_file, tmp_path, steps):
    command = ["python", "launch/train.py", "--config", tiny_file, f"run_dir={tmp_path / 'run'}"]
    done = start(*command, "optimizer.learning_rate=1e30", f"train.total_images={16 * steps}")
    assert done.returncode == 3
    assert "at step" in done.stderr or "the first is step 2" in done.stderr
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert "NaN" not in (tmp_path / "run/evaluations.jsonl").read_text()


def test_the_embedded_data_set_is_written_when_absent(start, tiny_file, tmp_path):
    command = ["python", "launch/train.py", "--config", tiny_file, f"run_dir={tmp_path / 'run'}"]
    done = start(*command, f"data.shards={tmp_path / 'digits'}", "train.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits/index.json").exists()


def test_a_run_goes_on_in_a_folder_whose_name_is_no_text(start, tiny_file, tmp_path):
    run = tmp_path / os.fsdecode(b"caf\xe9 #1")
    command = ["python", "launch/train.py", "--config", tiny_file, f"run_dir={run}", "--resume", "auto"]
    for images in (32, 64):
        done = start(*command, f"train.total_images={images}", PYTHONIOENCODING="utf-8:strict", cold=True)
        assert done.returncode == 0, done.stderr
        assert rf"caf\udce9 #1/checkpoints/img-{images:012d}" in done.stdout
