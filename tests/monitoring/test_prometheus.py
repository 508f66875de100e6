"""Runs and a service under the eyes of a real Prometheus, Alertmanager and Pushgateway, brought up as a person does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from launch.monitoring.preview import FOLDER, Series, Source, answers
from launch.monitoring.preview import main as preview
from tests.programs import ROOT, Starter, Warm, free_ports
from tests.serving.conftest import Client, picture, text_of
from tests.tiny import TINY
from trainer.metrics.json_lines import read_lines

pytestmark = pytest.mark.cluster

# A GPU that there is not: what its ranks would show. Values are examples.
GPU = {"run": "example-gpu", "model": "biglearn_u", "dataset": "digits"}
GPU_TEXT = """\
# TYPE biglearn_steps_total counter
biglearn_steps_total {seconds}
# TYPE biglearn_flops_total counter
biglearn_flops_total {flops}
# TYPE biglearn_device_peak_flops_per_second gauge
biglearn_device_peak_flops_per_second 989e12
# TYPE biglearn_device_memory_bytes gauge
biglearn_device_memory_bytes{{kind="allocated"}} 31e9
biglearn_device_memory_bytes{{kind="reserved"}} 38e9
biglearn_device_memory_bytes{{kind="used"}} 40e9
biglearn_device_memory_bytes{{kind="total"}} 85e9
"""


class ExampleGPU(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        seconds = time.time() % 1e6
        self.send_response(200)
        self.end_headers()
        self.wfile.write(GPU_TEXT.format(seconds=int(seconds), flops=400e12 * seconds).encode())

    def log_message(self, *_):
        pass


@dataclass
class Watch:
    """What was brought up, and how runs are started for it."""

    start: Starter
    folder: Path
    config: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service_port(self) -> int:
        return self.port + 4

    def train(self, method: str, *overrides: str) -> subprocess.Popen:
        run = [f"run_dir={self.folder / method}", f"method={method}", f"metrics.targets={self.folder / 'targets'}"]
        return self.start.background(  # nice: it trains for minutes, beside other tests
            "nice", "-n", 15, "torchrun", "--nproc-per-node", 2, "launch/train.py", "--config", self.config, *run,
            f"metrics.pushgateway=http://127.0.0.1:{self.port + 1}", *overrides,
        )  # fmt: skip

    def ask(self, query: str) -> list[dict]:
        """The samples of now, {labels, value}."""
        found = Source(self.url, 60).ask("query", query=query)["result"]
        return [{"labels": sample["metric"], "value": float(sample["value"][1])} for sample in found]

    def one(self, query: str) -> float:
        (sample,) = self.ask(query)
        return sample["value"]

    def recorded(self, query: str, time: float | None = None) -> list[tuple[float, float]]:
        """The samples (time, value) of one series over a range that ends then, by default now."""
        at = {} if time is None else {"time": time}
        (series,) = Source(self.url, 60).ask("query", query=query, **at)["result"]
        return [(float(seconds), float(value)) for seconds, value in series["values"]]

    def raised(self, alert: str) -> list[dict]:
        """The labels of the alerts of this name that Alertmanager has."""
        url = f"http://127.0.0.1:{self.port + 3}/api/v2/alerts"
        found = json.loads(subprocess.run(["curl", "-sf", url], capture_output=True, check=True).stdout)
        return [each["labels"] for each in found if each["labels"]["alertname"] == alert]

    def lines(self, method: str) -> list[dict]:
        return read_lines(self.folder / method / "metrics.jsonl")


def wait(condition: Callable[[], bool], of: subprocess.Popen | None = None) -> None:
    """Until it holds; `of` is the program that must be there for that. The limit ends a hang, it judges no speed."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "a hang"
        assert of is None or of.poll() is None, of.communicate()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def watch(start, tmp_path_factory, digits_shards) -> Iterator[Watch]:
    folder, port = tmp_path_factory.mktemp("watch"), free_ports(5)
    config = folder / "config.yaml"
    settings = TINY | {
        "data": TINY["data"] | {"shards": str(digits_shards)},
        "train": {"batch_size": 16, "total_images": 16_000_000},
        "checkpoint": {"every_images": 3200},
        "evaluate": {"images": 64, "batch_size": 32, "every_images": 1600},
        "metrics": {"phases_every_steps": 5},
    }
    config.write_text(yaml.safe_dump(settings))
    gpu = ThreadingHTTPServer(("127.0.0.1", 0), ExampleGPU)
    threading.Thread(target=gpu.serve_forever, daemon=True).start()
    (folder / "targets").mkdir()
    of_gpu = [{"targets": [f"127.0.0.1:{gpu.server_port}"], "labels": GPU | {"rank": "0"}}]
    (folder / "targets/example-gpu-rank-0.json").write_text(json.dumps(of_gpu))
    up = start.background(
        "python", "launch/monitoring/up.py", "--port", port, "--targets", folder / "targets",
        "--state", folder / "state", "--interval", 1, "--service", f"127.0.0.1:{port + 4}",
    )  # fmt: skip
    try:
        for line in up.stdout:
            if "Ctrl-C ends it" in line:
                break
        else:
            raise AssertionError(up.communicate()[1])
        yield Watch(start, folder, config, port)
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=600)
        gpu.shutdown()


@pytest.fixture(scope="module")
def finished(watch) -> dict:
    """The summary of a vae that has come to its end, seen while it trained; a patch_ae has, too."""
    stage_1 = watch.train("patch_ae", "data.patch_size=16", "train.max_steps=20")
    out, err = stage_1.communicate(timeout=600)
    assert stage_1.returncode == 0, out + err
    training = watch.train("vae", "train.max_steps=600")
    wait(lambda: len(watch.ask('up{model="vae"} == 1')) == 2, training)
    wait(lambda: watch.ask('biglearn_flops_total{model="vae"} > 0'), training)
    out, err = training.communicate(timeout=600)
    assert training.returncode == 0, out + err
    return json.loads((watch.folder / "vae/reports/summary.json").read_text())


@dataclass
class Seen:
    """A biglearn_u at work, after a minute of samples: it, and what each panel of each dashboard shows then."""

    training: subprocess.Popen
    panels: dict[str, dict[int, list[list[Series]]]]
    rules: dict[str, float]
    images: list[tuple[float, float]]  # the samples of the minute that the rules were made of
    waiting: list[float]  # for data, by the samples of each rank


@pytest.fixture(scope="module")
def seen(watch, finished) -> Iterator[Seen]:
    training = watch.train("biglearn_u")
    try:
        counter = 'biglearn_images_total{model="biglearn_u", rank="0"}'
        wait(lambda: len(watch.ask(counter)) == 1, training)

        def is_full() -> bool:
            """Whether a minute has samples from its begin to its end, and a rate that rules made of them."""
            samples = watch.recorded(f"{counter}[1m]")
            return samples[-1][0] - samples[0][0] > 56 and samples[0][1] > 0

        wait(is_full, training)
        names = ("run:biglearn_images:rate1m", "run:biglearn_data_wait:ratio", "run:biglearn_cost_against_vae:ratio")
        recorded = {name: watch.recorded(f'{name}{{run=~"biglearn_u-.*"}}[30s]')[-1] for name in names}
        at = recorded["run:biglearn_data_wait:ratio"][0]
        images, waiting = watch.recorded(f"{counter}[1m]", at), []
        for rank in range(2):
            phase = f'biglearn_phase_seconds_total{{model="biglearn_u", rank="{rank}", phase="%s"}}[1m]'
            data, step = (watch.recorded(phase % name, at) for name in ("data", "step"))
            data, step = (samples[-1][1] - samples[0][1] for samples in (data, step))
            waiting.append(data / (data + step))
        source = Source(watch.url, 120, rate_seconds=30)
        panels = {path.stem: answers(json.loads(path.read_text()), source) for path in FOLDER.glob("*.json")}
        yield Seen(training, panels, {name: value for name, (_, value) in recorded.items()}, images, waiting)
    finally:
        training.terminate()  # and torchrun its ranks, which a kill would leave behind
        training.communicate()


def test_the_rules_pass_their_unit_tests():
    for command in (
        ["test", "rules", "tests/monitoring/rules_test.yml"],
        ["check", "config", "launch/monitoring/prometheus.yml"],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_finished_run_is_gone_and_its_last_numbers_are_kept(watch, finished):
    wait(lambda: not watch.ask('up{model="vae"}'))
    assert not list(watch.folder.glob("targets/vae*"))
    (pushed,) = watch.ask('biglearn_images_total{model="vae"}')
    assert pushed["value"] == 9600 == finished["images"]
    assert pushed["labels"]["job"] == "biglearn_finished"
    elbo = watch.one('biglearn_evaluation_elbo_nats{model="vae", elbo="joint"}')
    assert elbo == pytest.approx(finished["after"]["joint_elbo"])
    seconds = watch.one('run:biglearn_device_seconds_per_image:mean{model="vae"}')
    assert seconds == pytest.approx(2 / finished["images_per_second"], rel=0.02)  # of two ranks


def test_the_rules_agree_with_the_log(watch, finished, seen):
    """Over the images between the first and the last sample of the minute, whatever the machine did meanwhile."""
    (began, first), *_, (ended, last) = seen.images
    assert seen.rules["run:biglearn_images:rate1m"] == pytest.approx((last - first) / (ended - began), rel=0.1)
    lines = [line for line in watch.lines("biglearn_u") if line["images"] <= last]
    assert {images for _, images in seen.images} <= {line["images"] for line in lines}
    minute = [line for line in lines if line["images"] > first]
    data, step = (sum(line[f"seconds_{name}"] for line in minute) for name in ("data", "step"))
    assert seen.rules["run:biglearn_data_wait:ratio"] == pytest.approx(max(seen.waiting), abs=0.005)
    assert seen.waiting[0] == pytest.approx(data / (data + step), abs=0.02)
    durations = [16 / line["images_per_second"] for line in lines]
    cost = (sum(durations) / lines[-1]["images"]) * finished["images_per_second"]
    assert seen.rules["run:biglearn_cost_against_vae:ratio"] == pytest.approx(cost, rel=0.1)


@pytest.mark.parametrize("name", ["overview", "comparison", "ranks"])
def test_every_query_of_every_panel_returns_numbers(watch, seen, name):
    assert not without_numbers(name, seen.panels[name])


def without_numbers(name: str, panels: dict[int, list[list[Series]]]) -> list[tuple[str, str]]:
    """Panels of a dashboard, and their queries that gave none."""
    dashboard = json.loads((FOLDER / f"{name}.json").read_text())
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target, found in zip(panel["targets"], panels[panel["id"]], strict=True)
        if not found
    ]


def test_what_is_exported_passes_the_linter(watch, seen):
    (target,) = watch.folder.glob("targets/biglearn_u-*-rank-0.json")
    lint(json.loads(target.read_text())[0]["targets"][0])


def lint(address: str) -> None:
    text = subprocess.run(["curl", "-sf", f"http://{address}/metrics"], capture_output=True, check=True).stdout
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()


def test_previews_are_drawn(watch, seen, tmp_path):
    kept = os.environ.get("BIGLEARN_PREVIEWS")  # where to keep them, for the documentation
    out = Path(kept) if kept else tmp_path
    preview(["--prometheus", watch.url, "--minutes", "3", "--out", str(out)])
    assert {path.name for path in out.glob("*.png")} >= {f"dashboard-{path.stem}.png" for path in FOLDER.glob("*.json")}


def test_a_killed_rank_raises_its_alert(watch, seen):
    os.kill(rank_of(watch.folder / "biglearn_u", 1), signal.SIGKILL)
    wait(lambda: bool(watch.raised("RankLost")))
    assert [(labels["model"], labels["rank"]) for labels in watch.raised("RankLost")] == [("biglearn_u", "1")]
    seen.training.wait(600)
    assert [path.name.rpartition("-")[2] for path in watch.folder.glob("targets/biglearn_u-*")] == ["1.json"]


def rank_of(run: Path, rank: int) -> int:
    """The process of a rank."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, values = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if f"run_dir={run}".encode() in command and f"RANK={rank}".encode() in values:
            return int(process.name)
    raise AssertionError(f"no rank {rank} of {run}")


@pytest.fixture(scope="module")
def service(watch) -> Iterator[tuple[Warm, Client]]:
    """launch/serve.py with an untrained model, where `watch` looks for it; and a client of it."""
    model = f"digits={ROOT / 'tests/before/export'}"
    options = ("--model", model, "--port", watch.service_port, "--queue-images", 8)
    process = watch.start.background("python", "launch/serve.py", *options)
    try:
        said = process.stderr.readline()
        assert "serving digits" in said, said + process.communicate()[1]
        yield process, Client(watch.service_port)
    finally:
        process.kill()
        process.communicate()


def ask_all(client: Client) -> None:
    """Each route once, of which 12 images are computed; one request too many for the queue, and one mistake."""
    image = text_of(picture(0))
    for route, content, status in (
        ("inpaint", {"image": image, "draws": 2}, 200),
        ("generate", {}, 200),
        ("encode", {"image": image}, 200),
        ("interpolate", {"image": image, "other": image, "steps": 8}, 200),
        ("generate", {"count": 9}, 429),
        ("generate", {"count": 65}, 422),
    ):
        assert client.ask(f"/v1/{route}", content)[0] == status


def test_every_query_about_a_service_returns_numbers(watch, service):
    process, client = service
    asked = 0

    def is_seen() -> bool:
        nonlocal asked
        ask_all(client)
        asked += 1
        return len(watch.ask("rate(biglearn_service_request_seconds_count[1m]) > 0")) == 4

    wait(is_seen, process)
    wait(lambda: watch.one('biglearn_service_requests_total{route="generate", status="429"}') == asked, process)
    assert watch.one("sum(biglearn_service_requests_total)") == 6 * asked
    assert watch.one("biglearn_service_batch_images_sum") == 12 * asked
    assert watch.one("biglearn_service_most_waiting_images") == 8
    dashboard = json.loads((FOLDER / "service.json").read_text())
    assert not without_numbers("service", answers(dashboard, Source(watch.url, 60, rate_seconds=30)))
    lint(f"127.0.0.1:{watch.service_port}")


def test_a_killed_service_raises_its_alert(watch, service):
    wait(lambda: not watch.raised("ServiceGone"), service[0])
    service[0].kill()
    wait(lambda: bool(watch.raised("ServiceGone")))
    assert [labels["instance"] for labels in watch.raised("ServiceGone")] == [f"127.0.0.1:{watch.service_port}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_was_brought_up_goes_down_with_it(start, tmp_path, number):
    port = free_ports(4)
    places = ("--state", tmp_path / "state", "--targets", tmp_path / "targets")
    # As in a terminal: a shell in the background would have these tests, and what they start, ignore SIGINT.
    as_usual = ("env", "--default-signal=INT,HUP")
    up = start.background(*as_usual, "python", "launch/monitoring/up.py", "--port", port, *places)
    for line in up.stdout:
        if "Ctrl-C ends it" in line:
            break
    again = start("python", "launch/monitoring/up.py", "--port", port, *places)
    assert again.returncode == 2
    assert f"port {port}, for prometheus, is taken" in again.stderr
    up.send_signal(number)
    up.communicate(timeout=600)
    for distance in (0, 1, 3):
        socket.create_server(("127.0.0.1", port + distance)).close()  # nobody listens


def test_nohup_outlives_its_terminal(start, tmp_path):
    places = ("--state", tmp_path / "state", "--targets", tmp_path / "targets")
    up = start.background("nohup", "python", "launch/monitoring/up.py", "--port", free_ports(4), *places)
    for line in up.stdout:
        if "Ctrl-C ends it" in line:
            break
    up.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        up.wait(3)
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=600)
    assert up.returncode == 0


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--port", 65_533), "--port is at most 65000"),
        (("--interval", 60), "--port is at most 65000"),
        (("--service", "http://127.0.0.1:8000"), "is no address: give it as 127.0.0.1:8000"),
        (("--service", "8000"), "is no address: give it as 127.0.0.1:8000"),
    ],
)
def test_what_cannot_work_is_refused(start, option, reason):
    done = start("python", "launch/monitoring/up.py", *option)
    assert done.returncode == 2
    assert reason in done.stderr


def test_the_programs_are_there():
    for name in ("prometheus", "promtool", "prometheus-alertmanager", "prometheus-pushgateway", "curl"):
        assert shutil.which(name), f"{name}: apt-get install prometheus prometheus-alertmanager prometheus-pushgateway"
