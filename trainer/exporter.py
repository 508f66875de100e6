"""Where Prometheus finds a rank: a server of its own, and a file that names it. Nothing here can end a training."""

import glob
import json
import logging
import os
import socket
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry, ProcessCollector, push_to_gateway, start_http_server
from torch import nn

from data.files import make_folder, write_aside
from model.cost import measure_cost
from trainer.build import meta_task
from trainer.checkpoint import State
from trainer.config import Config
from trainer.exposition import Exposition, known_peak
from trainer.metrics import MetricsConfig, read_lines
from trainer.run_directory import RunDirectory
from trainer.world import World

log = logging.getLogger(__name__)

_ALL_ADDRESSES = ("0.0.0.0", "::")
_PUSH_TIMEOUT_S = 10


class Exporter:
    """A sink: hands what it gets to its exposition, and serves that while it is entered.

    labels: of every series of this rank; Prometheus takes them from the file. Without metrics.port it does nothing.
    """

    def __init__(self, exposition: Exposition, config: MetricsConfig, labels: dict[str, str], world: World):
        self.exposition, self.config, self.labels = exposition, config, labels
        self.local_rank, self.world_size = world.local_rank, world.size
        self.target = Path(config.targets) / f"{labels['run']}-rank-{labels['rank']}.json"
        self._server = self._thread = None
        self.is_finished = False  # set it when the run has come to its end, so that its last numbers are pushed

    def __enter__(self) -> "Exporter":
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


def make_exporter(
    config: Config, world: World, run: RunDirectory, task: nn.Module, state: State, spent: tuple[float, float]
) -> Exporter:
    """That of a rank of a run, which goes on from a state. Every rank calls it.

    spent: seconds of training until there, and the same times the ranks that there were.
    """
    name = f"{run.path.resolve().name}-{run.read_id()[:6]}"  # stays the same when it is started again
    labels = {"run": name, "model": config.method, "dataset": config.data.source, "rank": str(world.rank)}
    labels |= {"start": str(run.starts)}  # series of their own: what is made again would look like a counter's reset
    labels |= {"slurm_job_id": job} if (job := os.environ.get("SLURM_JOB_ID")) else {}
    is_watched = config.metrics.port is not None or config.metrics.pushgateway
    exposition = Exposition(
        _hyperparameters(config, world),
        is_main=world.is_main,
        device=world.device,
        images=state.images,
        spent=spent,
        count_cost=_cost_counter(config) if world.is_main and is_watched else None,
    )
    peak = config.metrics.peak_flops or known_peak(world.device, config.engine.precision)
    evaluated = next((line for line in reversed(read_lines(run.evaluations)) if line["images"]), {})
    exposition({**evaluated, "images": state.images})  # what the start before this one found
    known = {
        "step": state.step,
        "skipped_steps": state.skipped_steps,
        "damaged_images": 0,
        "images_planned": config.total_images,
        "parameters": sum(p.numel() for p in task.parameters()),
        "world_size": world.size,
        "restarts": run.starts - 1,
        "peak_flops": peak,
    }
    exposition(known)
    return Exporter(exposition, config.metrics, labels, world)


def _cost_counter(config: Config) -> Callable[[], tuple[float, float]]:
    """What gives tokens and operations of an image; it takes seconds."""
    task, data = meta_task(config), config.data

    def count() -> tuple[float, float]:
        cost = measure_cost(task, data.patches, data.token_dim)
        return cost.tokens_per_image, cost.flops_per_image

    return count


def _hyperparameters(config: Config, world: World) -> dict[str, str]:
    """The labels of biglearn_run_info."""
    model, is_cuda = config.model, world.device.type == "cuda"
    layers = model.encoder_depth + model.decoder_depth
    size = "patch_ae" if config.method == "patch_ae" else f"{model.embed_dim}x{layers}"
    values = {
        "size": size,
        "device": torch.cuda.get_device_name(world.device) if is_cuda else "cpu",
        "engine": config.engine.name,
        "zero_stage": config.engine.zero_stage if config.engine.name == "deepspeed" else "",
        "precision": config.engine.precision,
        "mask_tokens": model.mask_tokens,
        "latent_dim": model.latent_dim,
        "image_size": config.data.image_size,
        "patch_size": config.data.patch_size,
        "batch_size": config.train.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "groups": config.objective.groups,
        "seed": config.seed,
    }
    return {name: str(value) for name, value in values.items()}
