"""launch/replay.py: a step made again is the step that was made."""

import json
import math

import pytest


@pytest.mark.parametrize(("step", "from_step"), [(1, 0), (3, 2), (4, 2), (6, 4)])
def test_a_step_comes_out_as_it_was(start, reference, step, from_step):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    done = start("python", "launch/replay.py", "--run", reference, "--step", step, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["from_step"], found["images"]) == (from_step, 16 * (step - 1))
    for name in ("loss", "elbo", "kl", "gradient_norm"):
        assert found["terms"][name] == found["recorded"][name]
    elbos = [sample["elbo"] for sample in found["samples"]]
    assert sum(elbos) / len(elbos) == pytest.approx(found["terms"]["elbo"], rel=1e-5)
    norms = found["gradient_norms"].values()
    assert math.sqrt(sum(norm**2 for norm in norms)) == pytest.approx(found["terms"]["gradient_norm"], rel=1e-4)
    assert [sample["position"] for sample in found["samples"]] == list(range(16 * (step - 1), 16 * step))
    assert before == {path: path.stat().st_mtime_ns for path in reference.rglob("*")}


def test_the_report_is_in_words(start, reference):
    done = start("python", "launch/replay.py", "--run", reference, "--step", 5, cold=True)
    assert "step 5 from the checkpoint at step 4: images 64 to 79 of the sequence" in done.stdout
    assert "worst images (all 16 finite)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [(["--run", "nowhere", "--step", "1"], "holds no run"), (["--step", "7"], "the run has the steps 1 to 6")],
)
def test_mistakes(start, reference, arguments, cause):
    done = start("python", "launch/replay.py", "--run", reference, *arguments)
    assert done.returncode == 2
    assert cause in done.stderr
    assert len(done.stderr.splitlines()) == 1
