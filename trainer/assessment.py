"""Everything that is measured of a trained model, spread over processes: one report of plain numbers.

Every rank computes its share of the images; what an image gets depends on its number alone, so the report does not
depend on the number of ranks, but for rounding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from data.config import DataConfig
from data.index import Index
from data.stream import Stream
from model.capabilities import BigLearnVAE
from model.masks import KINDS, observed_of_kind
from model.task import BigLearnTask
from trainer.build import open_stream
from trainer.evaluation import EvaluateConfig, evaluate
from trainer.inpainting import References, fillers, scores
from trainer.metrics import progress
from trainer.pictures import read_images
from trainer.probe import accuracy, features_of, with_random_patches
from trainer.world import World

FORMAT = 1
MASK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
PROBE_RATIOS = tuple(round(0.1 * k, 1) for k in range(1, 11))
_REFERENCE_BYTES = 2**29
_MOST_CLASSES = 10_000  # more are attributes, combined


@dataclass(frozen=True)
class Extent:
    """On how many images of which split, and how closely. Where a split has fewer images, all of them are taken."""

    split: str = "test"  # of the test images: "holdout" takes those that the run held out
    images: int | None = None  # test images of the ELBOs; None: all
    bound_images: int = 500
    bound_samples: int = 64  # importance weights
    inpainting_images: int = 500
    draws: int = 4  # completions of an image
    references: int = 10_000  # training images among which the nearest neighbour is looked for; at most 512 MB of them
    probe_images: int = 10_000  # training images of the linear probe
    probe_test_images: int = 5_000
    seed: int = 0


def assess(vae: BigLearnVAE, data: DataConfig, index: Index, world: World, extent: Extent) -> dict:
    """The report, on all ranks. Collective. data, index: the images, as `trainer.model_data.open_images` finds them."""
    with world.agreed():
        train, test = (open_stream(data, index, split, None, world.device) for split in ("train", extent.split))
        tokens = open_stream(data, index, extent.split, None, world.device, vae.codec) if vae.codec else test
    description = vae.description
    task = BigLearnTask(vae.model, description.objective, description.seed)
    elbos = evaluate(task, tokens, EvaluateConfig(images=extent.images), world)
    images = min(extent.images or test.images, test.images)
    latent = {"dimensions": vae.model.config.latent_dim, "active_units": elbos.pop("active_units"), "images": images}
    references = _references(train, extent)
    return {
        "format": FORMAT,
        "method": description.method,
        "mask_tokens": description.model.mask_tokens,
        "source": description.data.source,
        "parameters": sum(p.numel() for p in vae.model.parameters()),
        "images": description.images,
        "extent": asdict(extent),
        "elbos": elbos,
        "bounds": _bounds(vae, test, world, extent),
        "latent": latent,
        "inpainting": _inpainting(vae, test, references, world, extent),
        "probe": _probe(vae, train, test, references, world, extent) if index.classes <= _MOST_CLASSES else [],
    }


def _share(count: int, world: World, portion: int = 100) -> Sequence[Tensor]:
    """Of the positions 0 .. count - 1 those of this rank, in portions."""
    mine = torch.arange(count).tensor_split(world.size)[world.rank]
    return mine.split(portion) if len(mine) else ()


def _gathered(world: World, parts: list[Tensor]) -> Tensor:
    """The values of all ranks, in the order of the positions."""
    return torch.cat([part for of_rank in world.gather(parts) for part in of_rank])


def _mean(value_B: Tensor) -> dict[str, float | None]:
    """Mean and standard error, which a single value has not."""
    value_B = value_B.double()
    error = value_B.std().item() / len(value_B) ** 0.5 if len(value_B) > 1 else None
    return {"mean": value_B.mean().item(), "standard_error": error}


def _references(train: Stream, extent: Extent) -> References:
    """The same on every rank: spread over the split, so that classes mix."""
    image_bytes = read_images(train, torch.arange(1)).nbytes
    count = min(extent.references, train.images, _REFERENCE_BYTES // image_bytes)
    images_NHWC = read_images(train, torch.arange(count) * (train.images // count))
    return References(images_NHWC.mean(0), images_NHWC)


def _bounds(vae: BigLearnVAE, test: Stream, world: World, extent: Extent) -> list[dict]:
    """Importance-weighted bounds of log p(x), and of log p(x_T | x_S) with half of the patches known, nats an image."""
    count, patches = min(extent.bound_images, test.images), vae.description.data.patches
    tasks: dict[str, Callable[[Tensor], Tensor | None]] = {"log p(x)": lambda index_B: None}
    if vae.description.method != "vae":
        tasks["log p(x_T | x_S), half known"] = partial(_random_half, patches=patches, seed=extent.seed)
    rows = []
    if not vae.variance:  # β = 0: pixels of variance 0 have no likelihood
        return rows
    for name, observed in tasks.items():
        for samples in sorted({1, extent.bound_samples}):
            values = []
            for index_B in progress(_share(count, world), f"{name}, {samples} weights", shown=world.is_main):
                images_BHWC, first = read_images(test, index_B), index_B[0].item()
                how = {"samples": samples, "seed": extent.seed, "first_index": first}
                values.append(vae.log_likelihood_bound(images_BHWC, observed(index_B), **how))
            rows.append({"of": name, "samples": samples, "images": count, **_mean(_gathered(world, values))})
    return rows


def _random_half(index_B: Tensor, patches: int, seed: int) -> Tensor:
    return observed_of_kind("random", 0.5, index_B, patches, seed)


def _inpainting(
    vae: BigLearnVAE, test: Stream, references: References, world: World, extent: Extent
) -> list[dict[str, str | float]]:
    """A row for each way to fill, each kind of mask and each share of known patches."""
    count, patches = min(extent.inpainting_images, test.images), vae.description.data.patches
    ways = fillers(vae, references, extent.draws, extent.seed)
    cells = [*product(KINDS, MASK_RATIOS)]
    mine, parts = _share(count, world, portion=50), {}
    for index_B, (kind, s_ratio) in progress([*product(mine, cells)], "in-painting", shown=world.is_main):
        whole = vae.observe(read_images(test, index_B))
        observed_BL = observed_of_kind(kind, s_ratio, index_B, patches, extent.seed)
        given = whole.hide(~observed_BL)
        for name, fill in ways.items():
            found = scores(given, whole.images_BHWC, fill(given, index_B[0].item()))
            for score, value_B in found.items():
                parts.setdefault((name, kind, s_ratio, score), []).append(value_B)
    rows = []
    for name, (kind, s_ratio) in product(ways, cells):
        row = {"way": name, "mask": kind, "s_ratio": s_ratio, "images": count}
        for score in ("error", "psnr", "ssim", "diversity"):
            value_B = _gathered(world, parts.get((name, kind, s_ratio, score), []))
            row[score] = value_B.double().mean().item()
        if not math.isnan(row["error"]):  # a mask of few patches may leave nothing missing
            rows.append(row)
    return rows


def _probe(
    vae: BigLearnVAE, train: Stream, test: Stream, references: References, world: World, extent: Extent
) -> list[dict[str, str | float]]:
    """Accuracy of linear probes against the share of known patches; none where there are no classes."""
    n_train, n_test = min(extent.probe_images, train.images), min(extent.probe_test_images, test.images)
    position_N = torch.arange(n_train) * (train.images // n_train)
    position_M = torch.arange(n_test) * (test.images // n_test)
    label_N, label_M = (s.read(p).label_B.cpu().numpy() for s, p in ((train, position_N), (test, position_M)))
    if len(np.unique(label_N)) < 2:
        return []
    features = features_of(vae, references.mean_HWC)
    codes = next(iter(features))
    tasks = [(s_ratio, name, 0) for s_ratio in PROBE_RATIOS for name in features]
    tasks += [(s_ratio, "pixels", vae.description.model.latent_dim) for s_ratio in PROBE_RATIOS]
    mine = []
    for s_ratio, name, pca in progress(tasks[world.rank :: world.size], "linear probes", shown=world.is_main):
        made = []
        for stream, position_B, seed in ((train, position_N, extent.seed), (test, position_M, extent.seed + 1)):
            given = with_random_patches(vae, read_images(stream, position_B), position_B, s_ratio, seed)
            made.append(features[name](given))
        pca = min(pca, *made[0].shape)
        shown = f"{pca} principal components of pixels" if pca else name
        share = accuracy(made[0], label_N, made[1], label_M, pca)
        mine.append({"features": shown, "of_model": name == codes, "s_ratio": s_ratio, "accuracy": share})
    rows = [row for of_rank in world.gather(mine) for row in of_rank]
    counts = {"train_images": n_train, "test_images": n_test}
    return [
        row | counts for row in sorted(rows, key=lambda row: (not row["of_model"], row["features"], row["s_ratio"]))
    ]
