"""Bring up, on this machine, what watches runs: Prometheus, and Alertmanager, Pushgateway and Grafana where they are.

It stays until Ctrl-C. What was recorded is kept, and there again the next time.
"""

import argparse
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from os import environ
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import yaml

from data.errors import UserError

EXAMPLES = """\
examples:
  python launch/monitoring/up.py
  python launch/monitoring/up.py --targets /shared/me/runs/targets --port 19090
  python launch/monitoring/up.py --service 127.0.0.1:8000

Debian and Ubuntu, whose services of their own would have the ports:
  sudo apt install prometheus prometheus-alertmanager prometheus-pushgateway
  sudo systemctl disable --now prometheus prometheus-alertmanager prometheus-pushgateway
Other systems: https://prometheus.io/download and https://grafana.com/grafana/download, programs on the PATH;
or all of it by Docker: docker compose -f launch/monitoring/compose.yaml up
"""
HERE = Path(__file__).resolve().parent
_NAMES = {  # of the programs, here and there
    "prometheus": ("prometheus",),
    "pushgateway": ("prometheus-pushgateway", "pushgateway"),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),
    "grafana": ("grafana",),
}
_START_S = 60
_STOP_S = 20


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.port > 65_000 or options.grafana_port > 65_535 or options.interval > 15:
        raise UserError("--port is at most 65000, --grafana-port 65535, and --interval 15 seconds: set them so")
    found = {name: next(filter(None, map(shutil.which, names)), None) for name, names in _NAMES.items()}
    if not found["prometheus"]:
        raise UserError("prometheus is not on this machine: install it (--help says how), or use compose.yaml")
    ports = {name: options.port + distance for name, distance in _DISTANCES.items()} | {"grafana": options.grafana_port}
    for name in found:
        if found[name] and _answers(ports[name]):
            raise UserError(f"port {ports[name]}, for {name}, is taken: stop what listens there, or choose --port")
    state = options.state.resolve()
    try:
        for folder in (state, options.targets):
            folder.mkdir(parents=True, exist_ok=True)
        config = state / "prometheus.yml"
        if config.exists() and "biglearn" not in config.read_text(errors="replace"):
            raise UserError(f"{config} is of another Prometheus: choose another --state")
        config.write_text(_prometheus_config(options, ports))
    except OSError as error:
        raise UserError(f"{state} cannot be written ({error.strerror}): choose another --state") from None
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        if signal.getsignal(number) != signal.SIG_IGN:  # under nohup it stays
            signal.signal(number, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        started = {}
        for name, program in found.items():
            if not program:
                print(f"{name:13} is not on this machine, and is left out (--help says where to get it)")
                continue
            command = [program, *_arguments(name, state, ports, options)]
            log = state / f"{name}.log"
            started[name] = stack.enter_context(_running(name, command, log, ports, options.interval))
            print(f"{name:13} http://127.0.0.1:{ports[name]}")
        print(f"runs are looked for in {options.targets}; Ctrl-C ends it", flush=True)
        while True:
            for name, process in started.items():
                if process.poll() is not None:
                    raise UserError(f"{name} has ended by itself: see {state / name}.log")
            time.sleep(1)


_DISTANCES = {"prometheus": 0, "pushgateway": 1, "alertmanager": 3}  # as their usual ports: 9090, 9091, 9093


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--targets", type=Path, default="runs/targets", metavar="DIR", help="metrics.targets of the runs; runs/targets")
    what = "where launch/serve.py listens; may be given several times"
    add("--service", type=_address, action="append", default=[], metavar="HOST:PORT", help=what)
    add("--state", type=Path, default="runs/monitoring", metavar="DIR", help="data and logs; runs/monitoring")
    add("--port", type=whole_number, default=9090, help="of Prometheus; Pushgateway: one more, Alertmanager: three")
    add("--grafana-port", type=whole_number, default=3000)
    add("--interval", type=whole_number, default=5, metavar="S", help="seconds between two looks; default: 5")
    return parser


def _address(text: str) -> str:
    if not re.fullmatch(r"[^/\s]+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text} is no address: give it as 127.0.0.1:8000")
    return text


def _prometheus_config(options: argparse.Namespace, ports: Mapping[str, int]) -> str:
    """prometheus.yml with the places and the ports of this machine."""
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    config["global"] = {"evaluation_interval": f"{options.interval}s"}
    config["rule_files"] = [str(HERE / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        job["scrape_interval"] = f"{options.interval}s"
    runs, services, pushed = config["scrape_configs"]
    runs["file_sd_configs"][0] |= {
        "files": [f"{options.targets.resolve()}/*.json"],
        "refresh_interval": f"{options.interval}s",
    }
    services["static_configs"] = [{"targets": options.service}]
    pushed["static_configs"] = [{"targets": [f"127.0.0.1:{ports['pushgateway']}"]}]
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]
    return yaml.safe_dump(config, sort_keys=False)


def _arguments(name: str, state: Path, ports: Mapping[str, int], options: argparse.Namespace) -> list[str]:
    """The command line of a program, without the program. All listen on this machine alone."""
    address = f"--web.listen-address=127.0.0.1:{ports.get(name)}"
    if name == "prometheus":
        return [f"--config.file={state / 'prometheus.yml'}", f"--storage.tsdb.path={state / 'prometheus'}", address]
    if name == "pushgateway":
        return [f"--persistence.file={state / 'pushed'}", address]
    if name == "alertmanager":
        config, storage = HERE / "alertmanager.yml", state / "alertmanager"
        return [f"--config.file={config}", f"--storage.path={storage}", "--cluster.listen-address=", address]
    return ["server", "--homepath", environ.get("GRAFANA_HOME", "/usr/share/grafana")]


@contextlib.contextmanager
def _running(
    name: str, command: list[str], log: Path, ports: Mapping[str, int], interval: int
) -> Iterator[subprocess.Popen]:
    """The program, from when it answers until the end of the context."""
    of_grafana = {
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(ports["grafana"]),
        "GF_PATHS_DATA": str(log.with_suffix("")),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana/provisioning"),
        "PROMETHEUS_URL": f"http://127.0.0.1:{ports['prometheus']}",
        "DASHBOARDS": str(HERE / "grafana/dashboards"),
        "SCRAPE_INTERVAL": f"{interval}s",
    }
    environment = {**environ, **of_grafana}
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(ports[name]):
            if process.poll() is not None or time.monotonic() > deadline:
                last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                raise UserError(f"{name} does not start: {last} (all of it in {log})")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    run(main)
