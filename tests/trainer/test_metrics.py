"""The recorder and its sinks."""

import json
import resource
from types import SimpleNamespace

import pytest
import torch

from data.errors import NonFiniteError
from trainer.metrics.json_lines import JsonLines, read_lines, spent
from trainer.metrics.recorder import Metrics
from trainer.metrics.registry import MetricsConfig


def terms(loss: float, skipped: float = 0.0) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(float(loss)), "skipped": torch.tensor(skipped)}


def test_terms_are_read_some_steps_late_and_none_is_lost():
    lines = []
    metrics = Metrics(MetricsConfig(steps_late=2), 0, [lines.append])
    for step in range(1, 5):
        with metrics.phase("data"):
            pass
        metrics.record_step(step, 8 * step, terms(step), learning_rate=0.1)
        assert len(lines) == max(0, step - 2)
    metrics.flush()
    assert [line["loss"] for line in lines] == [1.0, 2.0, 3.0, 4.0]
    assert [line["images"] for line in lines] == [8, 16, 24, 32]
    assert all(line["seconds_data"] >= 0 and line["images_per_second"] > 0 for line in lines)


def test_what_becomes_of_the_terms_after_the_step_does_not_matter():
    """A later step may use their memory again."""
    lines = []
    metrics = Metrics(MetricsConfig(steps_late=2), 0, [lines.append])
    mine = terms(1)
    metrics.record_step(1, 8, mine)
    mine["loss"].fill_(7)
    metrics.flush()
    assert lines[0]["loss"] == 1.0


def test_seconds_belong_to_one_line_and_speed_to_the_images_since_the_last(monkeypatch):
    now = 100.0
    monkeypatch.setattr("trainer.metrics.recorder.time", SimpleNamespace(monotonic=lambda: now))
    lines = []
    metrics = Metrics(MetricsConfig(steps_late=0), 8000, [lines.append])
    with metrics.phase("evaluation"):
        now += 2  # no part of the training speed
    now += 0.5
    metrics.record_step(1, 8008, terms(1))
    now += 0.25
    metrics.record_step(2, 8016, terms(1))
    assert lines[0]["seconds_evaluation"] == 2
    assert "seconds_evaluation" not in lines[1]
    assert [line["images_per_second"] for line in lines] == [16, 32]
    assert metrics.training_seconds == 0.75


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(value):
    metrics = Metrics(MetricsConfig(steps_late=0), 0, [])
    with pytest.raises(NonFiniteError, match="step 7"):
        metrics.record_step(7, 8, terms(value))


def test_unregistered_names_are_bugs():
    metrics = Metrics(MetricsConfig(steps_late=0), 0, [])
    with pytest.raises(AssertionError, match="not in the registry"):
        metrics.record_step(1, 8, terms(1) | {"los": torch.tensor(1.0)})


def test_log_keeps_every_digit_of_the_loss(tmp_path):
    value = torch.tensor(1 / 3).item()
    JsonLines(tmp_path / "log", 0)({"images": 8, "loss": value})
    assert json.loads((tmp_path / "log").read_text())["loss"] == value


def test_log_forgets_what_a_resumed_run_makes_again(tmp_path):
    log = JsonLines(tmp_path / "log", 0)
    for images in (8, 16, 24):
        log({"images": images})
    with (tmp_path / "log").open("a") as file:
        file.write('{"images": 3')  # killed in the middle of a line
    JsonLines(tmp_path / "log", 16)({"images": 32})
    assert [json.loads(line)["images"] for line in (tmp_path / "log").read_text().splitlines()] == [8, 16, 32]


def test_skipped_steps_are_counted_and_written_without_their_numbers():
    lines = []
    metrics = Metrics(MetricsConfig(steps_late=0), 0, [lines.append], skipped_steps=3)
    for step, loss in enumerate((1.0, float("nan"), float("inf"), 2.0), start=1):
        metrics.record_step(step, 8 * step, terms(loss, skipped=0.0 if loss in (1.0, 2.0) else 1.0))
        if step == 3:
            assert [line["step"] for line in metrics.last_skipped] == [2, 3]
            assert metrics.last_skipped[1]["loss"] == float("inf")
    assert [line["loss"] for line in lines] == [1.0, None, None, 2.0]
    assert [line["skipped_steps"] for line in lines] == [3, 4, 5, 5]
    assert metrics.last_skipped == []


def test_a_log_leaves_out_what_is_no_line(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"images": 8}\n\xff\n[1]\n{"images": "9"}\n' + b"[" * 10_000 + b'\n{"images": 16}\n{"images": 2')
    assert read_lines(path) == [{"images": 8}, {"images": 16}]
    JsonLines(path, 16)({"images": 24})
    assert [line["images"] for line in read_lines(path)] == [8, 16, 24]


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path, caplog):
    log = JsonLines(tmp_path / "log", 0)
    log({"images": 8})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))  # the kernel refuses to let a file grow beyond it
    try:
        log({"images": 16})
        log({"images": 24})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.messages) == 1
    log({"images": 32})
    assert [json.loads(line)["images"] for line in (tmp_path / "log").read_text().splitlines()] == [8, 16, 24, 32]


def test_the_time_of_training_goes_on_where_the_log_does(tmp_path):
    log = JsonLines(tmp_path / "log", 0)
    assert log.spent == (0, 0)
    for images, rate in ((8, 4.0), (16, 8.0), (24, 1.0)):
        log({"images": images, "images_per_second": rate, "world_size": images // 8, "seconds_checkpoint": 100.0})
    assert JsonLines(tmp_path / "log", 16).spent == (8 / 4 + 8 / 8, 8 / 4 + 2 * 8 / 8)
    assert spent([{"images": 8}, {"images": 16, "images_per_second": "x"}]) == (0, 0)
