"""Where Prometheus finds a rank: a server of its own, and a file that names it. Nothing here can end a training."""

import glob
import json
import logging
import socket
from http.client import HTTPException
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, push_to_gateway, start_http_server

from data.files import make_folder, write_aside
from trainer.metrics.exposition import Exposition
from trainer.metrics.registry import MetricsConfig
from trainer.ranks.world import World

log = logging.getLogger(__name__)

_ALL_ADDRESSES = ("0.0.0.0", "::")
_PUSH_TIMEOUT_S = 10


class PrometheusServer:
    """A sink: hands what it gets to its exposition, and serves that while it is entered.

    labels: of every series of this rank; Prometheus takes them from the file. Without metrics.port it does nothing.
    """

    def __init__(self, exposition: Exposition, config: MetricsConfig, labels: dict[str, str], world: World):
        self.exposition, self.config, self.labels = exposition, config, labels
        self.local_rank, self.world_size = world.local_rank, world.size
        self.target = Path(config.targets) / f"{labels['run']}-rank-{labels['rank']}.json"
        self._server = self._thread = None
        self.is_finished = False  # set it when the run has come to its end, so that its last numbers are pushed

    def __enter__(self) -> "PrometheusServer":
        if self.config.port is None:
            return self
        registry = CollectorRegistry()
        registry.register(self.exposition)
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = self._start(registry)
            address = f"{self._host}:{self._server.server_port}"
            make_folder(self.target.parent)
            self._remove_lost()
            write_aside(self.target, json.dumps([{"targets": [address], "labels": self.labels}]).encode())
        except (OSError, ValueError) as error:  # ValueError: a host whose name cannot be encoded
            log.warning("no metrics for Prometheus at %s (%s); training goes on", self.config.host, error)
        return self

    def _remove_lost(self) -> None:
        """The files of ranks that this run had when it was killed, and has no more."""
        if self.labels["rank"] == "0":
            for path in self.target.parent.glob(f"{glob.escape(self.labels['run'])}-rank-*.json"):
                rank = path.stem.rpartition("-")[2]
                if rank.isdecimal() and int(rank) >= self.world_size:
                    path.unlink(missing_ok=True)

    def _start(self, registry: CollectorRegistry):
        port = self.config.port + self.local_rank if self.config.port else 0
        try:
            return start_http_server(port, self.config.host, registry)
        except (OSError, OverflowError) as error:
            if not port:
                raise
            server, thread = start_http_server(0, self.config.host, registry)
            log.warning("port %d is not to be had (%s): metrics are on port %d", port, error, server.server_port)
            return server, thread

    @property
    def _host(self) -> str:
        """As others reach it."""
        host = socket.gethostname() if self.config.host in _ALL_ADDRESSES else self.config.host
        return f"[{host}]" if ":" in host else host

    def __call__(self, values: dict) -> None:
        self.exposition(values)
        if self._thread and not self._thread.is_alive():
            log.warning("the exporter for Prometheus has ended; training goes on without it")
            self._thread = None

    def __exit__(self, kind, error, traceback) -> None:
        if self._server:
            try:
                self.target.unlink(missing_ok=True)
            except OSError as failed:
                log.warning("remove %s, or Prometheus will miss this rank (%s)", self.target, failed.strerror)
            self._server.shutdown()
            self._server.server_close()
        if self.is_finished and error is None and self.config.pushgateway and self.labels["rank"] == "0":
            self._push()

    def _push(self) -> None:
        self.exposition.start_counting().join()  # of a run that nobody scraped
        registry = CollectorRegistry()
        registry.register(self.exposition)
        labels = {name: self.labels[name] for name in ("run", "model", "dataset", "rank")}
        try:
            push_to_gateway(self.config.pushgateway, "biglearn_finished", registry, labels, timeout=_PUSH_TIMEOUT_S)
        except (OSError, ValueError, HTTPException) as failed:  # urllib's errors are OSErrors
            log.warning("the last metrics could not be pushed to %s (%s)", self.config.pushgateway, failed)
