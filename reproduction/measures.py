"""From the configuration of a cell to its figures: train, evaluate, and what only a comparison of methods needs."""

import gc
import json
import math
import time
from dataclasses import replace
from typing import Any

import torch

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.find_images import open_images
from biglearn_vae.images import open_codec, open_index, open_stream
from data.errors import NonFiniteError, UserError
from data.files import write_aside
from data.order.holdout import trained_images
from evaluation.assessment import Extent, assess, references_of
from evaluation.chains import fillings_and_times
from evaluation.figures import epochs_of
from evaluation.inpainting import fillers
from evaluation.sharpness import Judge, sharpness, train_judge
from reproduction.cell import RECIPE_VERSION, Cell, config_checksum, name_of
from trainer.build import meta_task
from trainer.config import Config, load_config
from trainer.loop import train
from trainer.metrics.json_lines import read_lines, spent
from trainer.ranks.stop import StopRequest
from trainer.ranks.world import World
from trainer.run_directory import RunDirectory
from trainer.tasks.cost import measure_cost

# On how many test images a cell looks, by the device: a chain of the joint VAE costs a hundred times a filling.
ON_GPU = Extent(bound_images=1000, filling_images=2000, inpainting_images=0, gaussian_images=60_000)
ON_CPU = Extent(images=1000, inpainting_images=0, probe_images=4000, probe_test_images=2000)
JUDGED_IMAGES = {"cuda": 2000, "cpu": 500}
CHAIN_IMAGES = {"cuda": 500, "cpu": 50}
_FILLED_BY_CHAINS = {"cuda": 500, "cpu": 100}

_MOST_CLASSES = 1000
_CURVE = ("images", "biglearn_elbo", "joint_elbo", "inpainting_error", "inpainting_error_fifth")
_KEPT = ("extent", "elbos", "bounds", "gaussian", "latent", "filling", "probe")  # of a report


def make_cell(config: Config, world: World, stop: StopRequest, machine: dict, judges: dict[str, Judge]) -> Cell | None:
    """Train the run, or go on with it, and measure it. None when it was asked to stop.

    machine: hardware, versions and revision. judges: of the data sets that were met, by their checksum; it grows. A
    training that ends in values that are not finite, or figures that are not, make a cell that says so. UserError where
    the run's folder holds another recipe.
    """
    gc.collect()  # engines refer to themselves; what the last one held is wanted by the next
    torch.cuda.empty_cache()
    run, failed, figures = RunDirectory(config.run_dir), None, {}
    hardware, threads = _claim(run, config, machine["hardware"])
    try:
        if train(config, world, run, resume=True, stop=stop)["stopped_by"]:
            return None
        start = time.monotonic()
        figures = _figures(config, run, world, stop, judges)
        if figures is None:
            return None
        failed = _not_finite(figures, "figures")
    except NonFiniteError as error:
        start, failed = time.monotonic(), str(error).partition(", which ")[0]
    measuring = time.monotonic() - start
    task, model, lines = meta_task(config), config.model, read_lines(run.metrics)
    codec = open_codec(config.data)
    index = open_index(config.data, codec)
    chosen = {"threads": threads, "engine": config.engine.name, "precision": config.engine.precision}
    return Cell(
        name=name_of(config),
        config_checksum=config_checksum(config),
        recipe_version=RECIPE_VERSION,
        data_checksum=index.checksum,
        codec_checksum=codec.checksum if codec else None,
        source=config.data.source,
        size=(model.encoder_depth + model.decoder_depth, model.embed_dim, model.latent_dim),
        method=config.method,
        mask_tokens=model.mask_tokens,
        seed=config.seed,
        images=lines[-1]["images"] if lines else 0,
        images_per_epoch=trained_images(index.images["train"], config.data.holdout),
        batch_size=config.train.batch_size,
        parameters=sum(p.numel() for p in task.parameters()),
        flops_per_image=measure_cost(task, config.data.patches, config.data.token_dim).flops_per_image,
        ways={**run.record().ways, **chosen},
        seconds={"training": spent(lines)[0], "measuring": measuring},
        failed=failed,
        figures={} if failed else figures,
        **{**machine, "hardware": hardware},
    )


def _claim(run: RunDirectory, config: Config, hardware: str) -> tuple[str, int]:
    """Mark the folder of a run as that of this recipe; hardware and threads that its training began with.

    UserError where it holds a run of another recipe. A run that launch/train.py or a SLURM array began is taken, too;
    how many threads it had is not known: 0.
    """
    mark, recipe = run.path / "cell.json", [config_checksum(config), RECIPE_VERSION]
    ours = {"recipe": recipe, "hardware": hardware, "threads": torch.get_num_threads()}
    try:
        if mark.exists():
            found = json.loads(mark.read_bytes())
        elif run.config.exists():
            changed = [*run.path.glob("config-until-*.yaml")]
            same = not changed and config_checksum(load_config(run.config)) == recipe[0]
            device = run.record().ways.get("device", "cpu")
            by = hardware if device == "cpu" else device
            found = {"recipe": recipe if same else None, "hardware": by, "threads": 0}
        else:
            found = ours
        if found["recipe"] != recipe:
            raise UserError(f"{run.path} was trained by another recipe than the grid now has: move it away")
        write_aside(mark, json.dumps(found).encode())
        return found["hardware"], found["threads"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{mark} cannot be used ({error}): move the folder away") from None


def _not_finite(value: Any, name: str) -> str | None:
    """Which figure is no number, in words; JSON has none for it."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return next((found for key, part in parts if (found := _not_finite(part, f"{name}.{key}"))), None)
    return f"{name} is {value}" if isinstance(value, float) and not math.isfinite(value) else None


def _figures(
    config: Config, run: RunDirectory, world: World, stop: StopRequest, judges: dict[str, Judge]
) -> dict | None:
    """What a reader of the paper asks of a model, None when asked to stop: the parts of evaluation's report, and

    times: errors of fillings and what they cost (evaluation/chains.py). sharpness: what a classifier makes of fillings
    and samples, where there are classes. curve: the evaluations during training, with the seconds until then. epochs:
    loss and time of each (Fig. 13), None where no step of it was finite.
    """
    device, vae = world.device.type, BigLearnVAE.load(run.path, world.device)
    data, index = open_images(vae.description, run.path)
    extent = ON_GPU if device == "cuda" else ON_CPU
    if not vae.method.is_conditional:
        extent = replace(extent, filling_images=_FILLED_BY_CHAINS[device])
    train_stream, test = (open_stream(data, index, split, None, world.device) for split in ("train", "test"))
    references = references_of(train_stream, extent, data.patch_size)
    report, _ = assess(vae, data, index, world, extent, references)
    figures = {key: report[key] for key in _KEPT}
    if stop.signal is not None:
        return None
    times = fillings_and_times(vae, test, references.mean_HWC, world, CHAIN_IMAGES[device], extent.seed)
    if stop.signal is not None:
        return None
    figures["times"], figures["sharpness"] = times, []
    if 1 < index.classes <= _MOST_CLASSES:
        if index.checksum not in judges:
            judges[index.checksum] = train_judge(train_stream, index.classes)
        ways, images = fillers(vae, references, 1, extent.seed), JUDGED_IMAGES[device]
        figures["sharpness"] = sharpness(vae, ways, judges[index.checksum], test, world, images, extent.seed)
    lines = run.lines()
    figures["curve"] = [
        {name: line[name] for name in _CURVE if name in line}
        | {"seconds": spent(step for step in lines if step["images"] <= line["images"])[0]}
        for line in read_lines(run.evaluations)
        if line["images"]
    ]
    epochs = epochs_of(lines, trained_images(index.images["train"], config.data.holdout))
    losses = [None if math.isnan(loss) else loss for loss in epochs.loss]
    figures["epochs"] = {"end": epochs.end, "loss": losses, "seconds": epochs.seconds}
    return figures
