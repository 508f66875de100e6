"""What a rank tells Prometheus, and how it is found."""

import json
import logging
import re
import socket
import time
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from biglearn_vae.checkpoint import State
from trainer.build import build_task
from trainer.build_prometheus import make_prometheus_server
from trainer.metrics.exposition import Exposition, known_peak
from trainer.metrics.prometheus_server import PrometheusServer
from trainer.metrics.registry import FAMILIES, MetricsConfig
from trainer.run_directory import RunDirectory

LINE = {
    "step": 3, "images": 48, "images_per_second": 32.0, "loss": 5.0, "elbo": -5.0, "kl": 1.0, "elbo_joint": -6.0,
    "seconds_data": 0.25, "seconds_step": 0.5, "skipped_steps": 0, "gradient_norm": 2.0, "learning_rate": 1e-3,
    "beta": 0.01, "damaged_images": 0, "seconds_forward": 0.1, "world_size": 2,
}  # fmt: skip
LABELS = {"run": "run-abc", "model": "vae", "dataset": "digits", "rank": "0", "start": "1"}


def exposition(images: int = 32, **how) -> Exposition:
    info = {"size": "16x2", "device": "cpu"}
    return Exposition(info, **{"is_main": True, "device": torch.device("cpu"), "images": images} | how)


def scraped(shown: Exposition) -> dict[tuple[str, tuple], float]:
    """Every sample by name and label values, as Prometheus would parse them."""
    registry = CollectorRegistry()
    registry.register(shown)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_a_line_of_the_log_becomes_series():
    shown = exposition()
    shown(LINE)
    shown(LINE | {"step": 4, "images": 64, "images_per_second": 8.0, "loss": None, "elbo": -4.0})
    found = scraped(shown)
    assert found["biglearn_steps_total", ()] == 4
    assert found["biglearn_images_total", ()] == 64
    assert found["biglearn_phase_seconds_total", ("data",)] == 0.5  # of both lines
    assert found["biglearn_sampled_phase_seconds", ("forward",)] == 0.1  # of the last
    assert found["biglearn_loss", ("loss",)] == 5.0  # the second had none
    assert found["biglearn_loss", ("elbo",)] == -4.0
    assert found["biglearn_task_elbo_nats", ("joint",)] == -6.0
    assert found["biglearn_step_duration_seconds_count", ()] == 2
    assert found["biglearn_step_duration_seconds_sum", ()] == 0.5 + 2.0
    assert found["biglearn_step_duration_seconds_bucket", ("0.5",)] == 1
    assert found["biglearn_step_duration_seconds_bucket", ("2.5",)] == 2
    assert found["biglearn_step_duration_seconds_bucket", ("+Inf",)] == 2
    assert found["biglearn_training_seconds_total", ()] == 2.5
    assert found["biglearn_device_seconds_total", ()] == 5.0  # of two ranks
    assert found["biglearn_run_info", ("cpu", "16x2")] == 1
    assert not any(name.endswith("_created") for name, _ in found)


def test_a_run_that_goes_on_counts_on():
    shown = exposition(images=32, spent=(100.0, 800.0))
    assert scraped(shown)["biglearn_images_total", ()] == 32
    shown(LINE)
    assert scraped(shown)["biglearn_training_seconds_total", ()] == 100.5
    assert scraped(shown)["biglearn_device_seconds_total", ()] == 801  # eight ranks, then two


def test_evaluations_and_checkpoints_are_shown():
    shown = exposition()
    shown({"step": 3, "images": 48, "biglearn_elbo": -7.0, "inpainting_error_fifth": 0.2, "active_units": 9})
    shown({"checkpoint_time": 1e9, "checkpoint_seconds": 2.5, "checkpoint_bytes": 4096})
    found = scraped(shown)
    assert found["biglearn_evaluation_elbo_nats", ("biglearn",)] == -7
    assert found["biglearn_evaluation_inpainting_error", ("0.2",)] == 0.2
    assert found["biglearn_evaluation_active_latent_units", ()] == 9
    assert found["biglearn_checkpoint_size_bytes", ()] == 4096
    assert found["biglearn_step_duration_seconds_count", ()] == 0  # none of this is a step


def test_an_untrained_model_is_not_shown():
    shown = exposition(images=0)
    shown({"step": 0, "images": 0, "biglearn_elbo": -700.0})
    assert ("biglearn_evaluation_elbo_nats", ("biglearn",)) not in scraped(shown)


def test_other_ranks_show_what_is_their_own():
    shown = exposition(is_main=False)
    shown(LINE)
    of_ranks = {family.full_name for family in FAMILIES if family.each_rank}
    histogram = {f"biglearn_step_duration_seconds_{part}" for part in ("bucket", "count", "sum")}
    names = {name for name, _ in scraped(shown)}
    assert histogram < names
    assert {"biglearn_steps_total", "biglearn_phase_seconds_total"} < names - histogram < of_ranks


def test_tokens_and_operations_are_counted_when_somebody_asks():
    asked = []

    def count():
        asked.append(1)
        return 10.0, 1000.0

    shown = exposition(count_cost=count)
    shown(LINE)
    assert not asked
    scraped(shown)
    shown.start_counting().join()
    found = scraped(shown)
    assert (found["biglearn_tokens_total", ()], found["biglearn_flops_total", ()]) == (480, 48_000)
    assert len(asked) == 1


def test_steps_are_timed_by_a_clock_that_does_not_jump(monkeypatch):
    shown = exposition()
    monkeypatch.setattr(time, "time", lambda: -5.0)
    shown(LINE)
    found = scraped(shown)
    assert found["biglearn_step_duration_seconds_sum", ()] == 0.5
    assert found["biglearn_last_step_timestamp_seconds", ()] == -5


def test_names_keep_the_conventions():
    names = [family.full_name for family in FAMILIES]
    assert len({*names}) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"biglearn_[a-z_]+", family.full_name)
        assert not {"step", "epoch", "shard", "image"} & {*family.labels}  # endless values
        assert all(len(labels) == len(family.labels) for labels in family.of.values())


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA A10G", "bf16", None),  # no A10
        ("NVIDIA RTX A1000", "bf16", None),
    ],
)
def test_peaks_of_gpus_that_are_known(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak(torch.device("cuda"), precision) == peak
    assert known_peak(torch.device("cpu"), precision) is None


@pytest.fixture
def exporter(tmp_path, world):
    """exporter(labels=..., **config): not entered yet."""

    def make(labels=LABELS, size=1, count_cost=None, **config):
        settings = MetricsConfig(**{"targets": str(tmp_path / "targets"), **config})
        return PrometheusServer(exposition(count_cost=count_cost), settings, labels, replace(world, size=size))

    return make


def test_a_run_is_the_same_whenever_it_is_started(tiny, world, monkeypatch):
    config = tiny("method=vae", "model.embed_dim=32")
    run, task = RunDirectory(config.run_dir), build_task(config)
    run.acquire(resume=True)
    names = set()
    state = State(images=32, step=2, skipped_steps=1, identity={})
    for restarts, job in enumerate(("7", "8")):
        run.create(config, 32, None, {})
        evaluations = [{"images": images, "biglearn_elbo": -9.0 + images} for images in (0, 16)]
        run.evaluations.write_text("".join(json.dumps(line) + "\n" for line in evaluations))
        monkeypatch.setenv("SLURM_JOB_ID", job)
        made = make_prometheus_server(config, world, run, task, state, spent=(0.0, 0.0))
        assert {**made.labels, "run": ""} == {**LABELS, "run": "", "start": str(restarts + 1), "slurm_job_id": job}
        found = scraped(made.exposition)  # before its first step
        assert found["biglearn_images_total", ()] == 32
        assert found["biglearn_evaluation_elbo_nats", ("biglearn",)] == 7  # of the start before
        assert found["biglearn_restarts_total", ()] == restarts
        assert found["biglearn_steps_total", ()] == 2
        assert found["biglearn_skipped_steps_total", ()] == 1
        assert found["biglearn_damaged_images_total", ()] == 0
        assert found["biglearn_images_planned", ()] == 96
        assert found["biglearn_world_size", ()] == world.size
        assert found["biglearn_parameters", ()] == sum(p.numel() for p in task.parameters())
        names.add(made.labels["run"])
    (name,) = names
    assert name == f"run-{run.record().id[:6]}"
    (labels,) = [labels for name, labels in found if name == "biglearn_run_info"]
    assert {"32x2", "cpu", "accelerate", "fp32"} <= {*labels}


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        return answer.read().decode()


def test_a_rank_is_found_while_it_is_there(exporter):
    with exporter(labels=LABELS | {"slurm_job_id": "7"}) as served:
        (group,) = json.loads(served.target.read_text())
        assert group["labels"] == LABELS | {"slurm_job_id": "7"}
        (address,) = group["targets"]
        assert address.startswith("127.0.0.1:")
        served(LINE)
        assert "biglearn_images_total 48.0" in fetch(address)
        assert "process_resident_memory_bytes" in fetch(address)
    assert not list(served.target.parent.iterdir())
    with pytest.raises(OSError, match="refused"):
        fetch(address)


def test_it_listens_to_this_machine_unless_it_is_opened(exporter):
    with exporter(host="0.0.0.0") as served:
        (group,) = json.loads(served.target.read_text())
        assert group["targets"][0].startswith(f"{socket.gethostname()}:")
        assert served._server.server_address[0] == "0.0.0.0"


def test_a_port_that_is_taken_is_replaced(exporter, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with exporter(port=port) as served:
            (group,) = json.loads(served.target.read_text())
            assert "biglearn" in fetch(group["targets"][0])
        assert f"port {port} is not to be had" in caplog.text


@pytest.mark.parametrize(
    "config",
    [{"host": name} for name in ("192.0.2.1", "no host", 70 * "x")]
    + [{"targets": folder} for folder in ("/proc/nowhere", __file__)],
)
def test_what_cannot_be_served_costs_a_warning(exporter, caplog, config):
    with exporter(**config) as served:
        served(LINE)
    assert "no metrics for Prometheus" in caplog.text


def test_a_folder_that_goes_away_costs_a_warning(exporter, caplog):
    with exporter() as served:
        served.target.unlink()
        served.target.parent.rmdir()
        served.target.parent.write_text("something else")
    assert f"remove {served.target}" in caplog.text


def test_no_port_no_server(exporter):
    with exporter(port=None) as served:
        served(LINE)
        assert not served.target.parent.exists()


def test_an_exporter_that_dies_is_named_once(exporter, caplog):
    with exporter() as served:
        served._server.shutdown()
        served._thread.join()
        for _ in range(3):
            served(LINE)
    assert [record.getMessage() for record in caplog.records] == [
        "the exporter for Prometheus has ended; training goes on without it"
    ]


def test_the_files_of_ranks_that_were_killed_go_when_the_run_goes_on(exporter):
    with exporter(labels=LABELS | {"rank": "1"}, size=2) as killed:
        content = killed.target.read_text()
    of_another = killed.target.with_name("another-run-rank-7.json")
    copy = killed.target.with_name("run-abc-rank-1-old.json")
    for path in (killed.target, of_another, copy):
        path.write_text(content)
    with exporter(size=2):
        assert killed.target.exists()  # its rank may be there already
    with exporter(size=1):
        assert not killed.target.exists()
        assert of_another.exists()
        assert copy.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no url"])
def test_a_pushgateway_that_is_absent_costs_a_warning(exporter, caplog, url):
    with exporter(pushgateway=url, port=None) as served:
        served.is_finished = True
    assert "the last metrics could not be pushed to" in caplog.text
    caplog.clear()
    with exporter(pushgateway=url, port=None):
        pass  # a run that was stopped says nothing yet
    served = exporter(pushgateway=url, port=None)
    served.is_finished = True
    served.__exit__(KeyError, KeyError(), None)  # nor does one that has failed
    assert not caplog.records


def test_what_is_pushed_has_the_cost_though_nobody_ever_scraped(exporter):
    received = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        Thread(target=gateway.handle_request).start()
        url = f"http://127.0.0.1:{gateway.server_port}"
        with exporter(pushgateway=url, port=None, count_cost=lambda: (10.0, 1000.0)) as served:
            served(LINE)
            served.is_finished = True
    (text,) = received
    assert "biglearn_tokens_total 480.0" in text
    assert "biglearn_flops_total 48000.0" in text


@pytest.fixture(autouse=True)
def warnings_alone(caplog):
    caplog.set_level(logging.WARNING)
