"""Both stages by one command, from a small CelebA in the official layout to completed faces; stopped and gone on."""

import fcntl
import json
import shutil
import signal
import time

import pytest
import yaml
from PIL import Image

from data.prepare.verify import verify
from data.read.index import INDEX_NAME
from model.patch_autoencoder.codec import CODEC
from tests.data.sources.test_celeba import write
from tests.data.tars.conftest import write_tars
from tests.launch.conftest import assert_same_run
from tests.servers import s3_of

pytestmark = pytest.mark.cluster

PIPELINE = ("python", "launch/pipeline.py", "--config", "configs/celeba_tiny.yaml")
SMALL = (
    "stage_1.train.batch_size=4", "stage_1.train.total_images=64", "stage_1.patch_ae.patches_per_image=2",
    "stage_1.checkpoint.every_images=8", "stage_1.evaluate.every_images=0", "stage_1.schedule.warmup_images=0",
    "stage_1.optimizer.learning_rate=1e-4",
    "train.batch_size=16", "train.total_images=256", "checkpoint.every_images=16", "evaluate.every_images=0",
    "model.embed_dim=32", "model.num_heads=2", "model.encoder_depth=1", "model.decoder_depth=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("celeba"))


@pytest.fixture(scope="module")
def finished(start, source, tmp_path_factory):
    """The run that nobody disturbed."""
    run = tmp_path_factory.mktemp("pipeline") / "run"
    done = start(*PIPELINE, "--source", source, f"run_dir={run}", *SMALL)
    assert done.returncode == 0, done.stderr
    return run


def test_every_step_leaves_what_it_should(finished, start, tmp_path):
    assert verify(finished / "images") == verify(finished / "latents") == []
    assert (finished / CODEC).read_bytes() == (finished / "latents" / CODEC).read_bytes()
    for run, measure, images in ((finished / "patch_ae", "psnr", 64), (finished, "biglearn_elbo", 256)):
        values = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        assert (values[0]["images"], values[-1]["images"]) == (0, images)
        assert values[-1][measure] > values[0][measure]
        for seen in (0, images):
            assert Image.open(run / f"samples/img-{seen:012d}.png").size[0] > 400
    incomplete = Image.open(write(tmp_path / "more") / "img_align_celeba/000003.jpg").convert("RGBA")
    incomplete.putalpha(Image.linear_gradient("L").resize(incomplete.size).point(lambda value: 255 * (value > 128)))
    incomplete.save(tmp_path / "incomplete.png")
    command = ("python", "launch/sample.py", "inpaint", "--model", finished, "--out", tmp_path / "out")
    done = start(*command, "--images", tmp_path / "incomplete.png", "--draws", 2)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out/inpaint.png").size[0] > 128


def test_a_second_start_skips_what_is_whole_and_says_why(finished, start, source):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    done = start(*PIPELINE, "--source", source, f"run_dir={finished}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is whole, nothing to do") == 2  # the images and their codes
    for images in (64, 256):
        assert f"skipped: it has learned from {images} images, and {images} are asked for" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    without = start(*PIPELINE, f"run_dir={finished}", *SMALL, "--dry-run")
    assert "skipped: they are there, and without --source there is nothing to compare them with" in without.stdout


@pytest.mark.parametrize("stage", ["patch_ae", "."])
def test_a_stopped_pipeline_goes_on_to_the_same_end(finished, start, source, tmp_path, stage):
    run = tmp_path / "run"
    command = (*PIPELINE, "--source", source, f"run_dir={run}", *SMALL)
    process = start.background(*command)
    metrics = run / stage / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "the same command goes on there" in err
    assert len(metrics.read_text().splitlines()) < 16
    done = start(*command)
    assert done.returncode == 0, done.stderr
    for part in ("patch_ae", "."):
        assert_same_run(run / part, finished / part)
    assert (run / CODEC).read_bytes() == (finished / CODEC).read_bytes()


def test_two_processes_are_stopped_together(finished, start, source, tmp_path):
    run = tmp_path / "run"
    where = [f"data.shards={finished / 'images'}", f"data.patch_autoencoder={run / 'patch_ae'}"]
    command = (*PIPELINE, "--processes", "2", f"run_dir={run}", *where, *SMALL, "stage_1.train.total_images=4000")
    process = start.background(*command)
    metrics = run / "patch_ae/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "stopped by SIGUSR1 after" in err  # the training itself said so before the pipeline ended
    assert "Traceback" not in err
    with (run / "patch_ae/lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody trains on
    assert [*(run / "patch_ae/checkpoints").glob("img-*")]


def test_both_stages_from_tar_files_to_codes_in_s3(start, tmp_path):
    """The pictures are read where they are, and the codes are written there."""
    with s3_of(write_tars(tmp_path / "tars", images=150, per_tar=50, suffix="jpg", size=160)) as environment:
        shards, run = "s3://bucket/set/{00000..00002}.tar", tmp_path / "run"
        images = ["data.source=webdataset", f"data.shards={shards}", f"data.cache={tmp_path / 'cache'}"]
        command = (*PIPELINE, f"run_dir={run}", *images, "data.latents=s3://bucket/latents", *SMALL)
        done = start(*command, **environment)
        assert done.returncode == 0, done.stderr
        again = start(*command, **environment)
        assert again.returncode == 0, again.stderr
    assert "1 of 4: find the images of s3://bucket/set/" in done.stdout
    assert "skipped: " + f"{run / 'images'} is there" in again.stdout
    assert "s3://bucket/latents is whole, nothing to do" in again.stdout
    assert again.stdout.count("skipped: it has learned from") == 2
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert evaluations[-1]["biglearn_elbo"] > evaluations[0]["biglearn_elbo"]
    refused = start(*command, "--source", tmp_path)
    assert refused.returncode == 2
    assert "names the images of source webdataset already: leave --source out" in refused.stderr


def test_codes_of_another_patchae_do_not_pass_for_what_was_learned(finished, start, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    command = (*PIPELINE, f"run_dir={run}", *SMALL, "stage_1.train.total_images=72")
    refused = start(*command)
    assert refused.returncode == 2
    assert "holds other data (codes of another PatchAE)" in refused.stderr
    assert "goes on there" not in refused.stderr
    encode = ["--images", run / "images", "--patch-autoencoder", run / "patch_ae", "--out", run / "latents"]
    assert start("python", "launch/encode.py", *encode, "--flip", "--overwrite").returncode == 0
    refused = start(*command)
    assert refused.returncode == 2
    assert "is of another run (codec" in refused.stderr
    shutil.copy(run / "latents" / CODEC, run / CODEC)
    refused = start("python", "launch/sample.py", "generate", "--model", run, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "is not the codec that this run was trained with: copy it" in refused.stderr


def test_verify_looks_at_the_codec_of_latent_shards(finished, start, tmp_path):
    latents = shutil.copytree(finished / "latents", tmp_path / "latents")
    content = bytearray((latents / CODEC).read_bytes())
    content[-100] ^= 1
    (latents / CODEC).write_bytes(content)
    done = start("python", "launch/prepare.py", "verify", latents)
    assert done.returncode == 1
    assert f"{CODEC} is damaged" in done.stdout


def test_two_processes_complete_what_a_killed_encoding_left(finished, start, root, tmp_path):
    command = ["--images", finished / "images", "--patch-autoencoder", finished / "patch_ae", "--out", tmp_path / "out"]
    command.append("--flip")
    fault = {"COMMAND": "encode.py", "FAULT": "kill trainer.encoding:write_shard 2"}
    assert start("python", "tests/faults.py", *command, **fault).returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / INDEX_NAME).exists()
    assert len([*(tmp_path / "out").glob("*.tar.json")]) == 1
    done = start("torchrun", "--nproc-per-node", "2", "--", "launch/encode.py", *command)
    assert done.returncode == 0, done.stderr
    assert "(1 were there already)" in done.stdout
    whole = {path.name: path.read_bytes() for path in (finished / "latents").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole


def test_both_ways_to_the_codes_train_alike(finished, start, tmp_path):
    losses = {}
    for how, options in (("ahead", []), ("on_the_fly", ["--processes", "2"])):
        run = tmp_path / how
        below = {"shards": finished / "images", "latents": tmp_path / f"latents-{how}"}
        where = [f"data.{key}={path}" for key, path in below.items()] + [
            f"data.patch_autoencoder={finished / 'patch_ae'}"
        ]
        done = start(*PIPELINE, *options, f"run_dir={run}", f"data.encode={how}", *where, *SMALL)
        assert done.returncode == 0, done.stderr
        losses[how] = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not [*(tmp_path / "latents-on_the_fly").glob("*.tar")]
    assert losses["on_the_fly"] == pytest.approx(losses["ahead"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((), "has no images: give the folder of the original files with --source DIR"),
        (("--source", "nowhere"), "nowhere does not hold the folder img_align_celeba"),
        (("stage_1.data.image_size=64",), "both stages need images of one size"),
        (("stage_1=null",), "has one stage alone"),
        (("--processes", "3"), "is not divisible by 3 ranks"),
        (("stage_1.train.batchsize=3",), "did you mean train.batch_size?"),
        (("stage_1.run_dir=elsewhere",), "stage_1.run_dir is shared by both stages: set data.patch_autoencoder="),
        (("stage_1=configs/mnist_case1.yaml",), "stage_1 of configs/celeba_tiny.yaml is a biglearn_u, no patch_ae"),
        (("data.latents=one", "data.shards=one"), "data.latents and data.shards are both one"),
    ],
)
def test_mistakes_are_one_plain_line(start, tmp_path, arguments, cause):
    done = start(*PIPELINE, f"run_dir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2
    assert cause in done.stderr
    assert "Traceback" not in done.stderr


def test_a_partition_that_names_absent_images_stops_the_first_step(start, source, tmp_path):
    other = write(tmp_path / "other")
    (other / "img_align_celeba/000007.jpg").unlink()
    done = start(*PIPELINE, "--source", other, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "lacks 1 of the 12 images that list_eval_partition.txt names, first 000007.jpg" in done.stderr


def test_a_configuration_of_one_stage_names_the_other_command(start, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}, "train": {"total_images": 1}}))
    done = start("python", "launch/pipeline.py", "--config", path)
    assert done.returncode == 2
    assert "or train it with launch/train.py" in done.stderr
