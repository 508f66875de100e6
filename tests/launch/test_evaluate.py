"""launch/evaluate.py as a person starts it."""

import json
import shutil

import pytest

SMALL = (
    "--images", "100", "--bound-images", "6", "--bound-samples", "2", "--inpainting-images", "4", "--draws", "2",
    "--probe-images", "60", "--filling-images", "5",
)  # fmt: skip


def test_a_run_is_measured_and_compared(start, digits_run, tmp_path):
    done = start("python", "launch/evaluate.py", "--run", digits_run, *SMALL)
    assert done.returncode == 0, done.stderr
    report = json.loads((digits_run / "reports/evaluation.json").read_text())
    trained = json.loads((digits_run / "evaluations.jsonl").read_text().splitlines()[-1])
    for name, value in report["elbos"].items():  # on the images that training looked at
        assert value == pytest.approx(trained[name], rel=1e-4)
    assert "BigLearnELBO" in done.stdout
    assert "<img" in (digits_run / "reports/evaluation.html").read_text()
    shutil.copytree(digits_run, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    done = start("python", "launch/evaluate.py", "--compare", digits_run, tmp_path / "other", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "comparison.html").read_text()
    assert all(f"Fig. {number} of the paper" in content for number in (2, 4, 13))


def test_a_run_is_measured_and_compared_on_its_held_out_images(start, tiny_file, tmp_path):
    """The commands of docs/running.md."""
    run = tmp_path / "run"
    done = start(
        "python", "launch/train.py", "--config", tiny_file, f"run_dir={run}", "data.holdout=30", "--resume", "auto"
    )
    assert done.returncode == 0, done.stderr
    assert "held-out BigLearnELBO" in done.stdout
    assert "test " not in done.stdout
    command = ("python", "launch/evaluate.py", "--split", "holdout")
    done = start(*command, "--run", run, *SMALL, "--images", "24")
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "reports/evaluation-holdout.json").read_text())
    trained = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    for name, value in report["elbos"].items():  # on the images that training looked at
        assert value == pytest.approx(trained[name], rel=1e-4)
    assert "held-out images" in (run / "reports/evaluation-holdout.html").read_text()
    shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    done = start(*command, "--compare", run, tmp_path / "other", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Held-out JointELBO" in (tmp_path / "comparison.html").read_text()
    done = start("python", "launch/evaluate.py", "--compare", run, tmp_path / "other", "--out", tmp_path)
    assert done.returncode == 2  # nobody looked at the test images


def test_a_run_without_held_out_images_has_none_to_be_measured_on(start, digits_run, tmp_path):
    command = ("python", "launch/evaluate.py", "--run", digits_run, "--out", tmp_path, *SMALL)
    done = start(*command, "--split", "holdout")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no images are held out" in done.stderr


def test_a_report_never_lands_in_a_checkpoint(start, digits_run):
    checkpoint = next((digits_run / "checkpoints").glob("img-*"))
    done = start("python", "launch/evaluate.py", "--run", checkpoint, *SMALL, cold=True)
    assert done.returncode == 2
    assert "give --out DIR" in done.stderr
    assert not (checkpoint / "reports").exists()


@pytest.fixture(scope="module")
def by_one(start, digits_run, tmp_path_factory) -> dict:
    """What one process measures."""
    out = tmp_path_factory.mktemp("one")
    done = start("python", "launch/evaluate.py", "--run", digits_run, "--out", out, "--device", "cpu", *SMALL)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "evaluation.json").read_text())


@pytest.mark.cluster
@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--nproc-per-node", "2", "--"),
        ("python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
    ],
)
def test_two_processes_measure_the_same(start, digits_run, by_one, tmp_path, launcher):
    done = start(*launcher, "launch/evaluate.py", "--run", digits_run, "--out", tmp_path, "--device", "cpu", *SMALL)
    assert done.returncode == 0, done.stderr
    assert same(by_one, json.loads((tmp_path / "evaluation.json").read_text()))


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return other == pytest.approx(one, rel=1e-3, abs=1e-5) if isinstance(one, float) else one == other


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((), "Give --run DIR"),
        (("--run", "a", "--compare", "b"), "Give --run DIR"),
        (("--run", "nowhere"), "holds no run"),
        (("--compare", "nowhere", "nowhere"), "name each run once"),
        (("--compare", "nowhere"), "python launch/evaluate.py --run nowhere"),
    ],
)
def test_mistakes(start, arguments, cause):
    done = start("python", "launch/evaluate.py", *arguments)
    assert done.returncode == 2
    assert cause in done.stderr
    assert len(done.stderr.splitlines()) == 1
