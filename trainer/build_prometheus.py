"""From a configuration to what Prometheus reads of a run."""

import os
from collections.abc import Callable

import torch
from torch import nn

from biglearn_vae.checkpoint import State
from trainer.build import meta_task
from trainer.config import Config
from trainer.metrics.exposition import Exposition, known_peak
from trainer.metrics.json_lines import read_lines
from trainer.metrics.prometheus_server import PrometheusServer
from trainer.ranks.world import World
from trainer.run_directory import RunDirectory
from trainer.tasks.cost import measure_cost


def make_prometheus_server(
    config: Config, world: World, run: RunDirectory, task: nn.Module, state: State, spent: tuple[float, float]
) -> PrometheusServer:
    """That of a rank of a run, which goes on from a state. Every rank calls it.

    spent: seconds of training until there, and device-seconds, one device a rank.
    """
    record = run.record()
    labels = {"run": run.name, "model": config.method, "dataset": config.data.source, "rank": str(world.rank)}
    labels |= {"start": str(record.starts)}  # series of their own: what is made again would look like a counter's reset
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
        "restarts": record.starts - 1,
        "peak_flops": peak,
    }
    exposition(known)
    return PrometheusServer(exposition, config.metrics, labels, world)


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
