"""Everything that is measured of a trained model, spread over processes: a report of plain numbers, and a picture.

Every rank computes its share of the images; what an image gets depends on its number alone, so the report does not
depend on the number of ranks, but for rounding.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.images import open_stream
from biglearn_vae.pictures import read_images, read_test_images
from data.read.config import DataConfig
from data.read.index import Index
from data.read.stream import Stream
from evaluation.gaussian import ConditionalGaussian, squared_error
from evaluation.inpainting import References, fillers, filling_sheet, scores
from evaluation.probe import accuracy, features_of, with_random_patches
from evaluation.shares import gathered, mean_and_error, share
from model.masks import SHAPES, STANDARD_MASKS, observed_of_kind, standard_mask
from trainer.evaluation import EvaluateConfig, evaluate
from trainer.metrics.progress import progress
from trainer.ranks.world import World
from trainer.tasks.biglearn import BigLearnTask

FORMAT = 2
MASK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
PROBE_RATIOS = tuple(round(0.1 * k, 1) for k in range(1, 11))
_REFERENCE_BYTES = 2**29
_MOST_CLASSES = 10_000  # more are attributes, combined
_SHOWN_IMAGES = 12


@dataclass(frozen=True)
class Extent:
    """On how many images of which split, and how closely. Where a split has fewer images, all of them are taken.

    A part of 0 images is left out: it has no rows.
    """

    split: str = "test"  # of the test images: "holdout" takes those that the run held out
    images: int | None = None  # test images of the ELBOs; None: all
    bound_images: int = 200
    bound_samples: int = 64  # importance weights
    inpainting_images: int = 500
    draws: int = 4  # completions of an image
    filling_images: int = 1000  # test images of the standard masks
    filling_draws: int = 16  # completions of each of them, whose mean is an estimate of the conditional mean
    gaussian_images: int = 20_000  # training images that the Gaussian is fitted to; at most 512 MB of them
    references: int = 10_000  # training images among which the nearest neighbour is looked for; at most 512 MB of them
    probe_images: int = 10_000  # training images of the linear probe
    probe_test_images: int = 5_000
    seed: int = 0


def assess(
    vae: BigLearnVAE,
    data: DataConfig,
    index: Index,
    world: World,
    extent: Extent,
    references: References | None = None,
) -> tuple[dict, Image.Image]:
    """The report and a picture of fillings, on all ranks. Collective.

    data, index: the images, as `biglearn_vae.images.open_images` finds them. references: what `references_of` makes of
    them, where it is known already.
    """
    with world.agreed():
        train, test = (open_stream(data, index, split, None, world.device) for split in ("train", extent.split))
        tokens = open_stream(data, index, extent.split, None, world.device, vae.codec) if vae.codec else test
    description = vae.description
    task = BigLearnTask(vae.model, description.objective, description.seed)
    elbos = evaluate(task, tokens, EvaluateConfig(images=extent.images), world)
    images = min(extent.images or test.images, test.images)
    latent = {"dimensions": vae.model.config.latent_dim, "active_units": elbos.pop("active_units"), "images": images}
    references = references or references_of(train, extent, data.patch_size)
    report = {
        "format": FORMAT,
        "method": description.method,
        "mask_tokens": description.model.mask_tokens,
        "source": description.data.source,
        "data_checksum": index.checksum,
        "parameters": sum(p.numel() for p in vae.model.parameters()),
        "images": description.images,
        "extent": asdict(extent),
        "elbos": elbos,
        "bounds": _bounds(vae, test, world, extent),
        "gaussian": _gaussian(vae, test, references.gaussian, world, extent, images),
        "latent": latent,
        "filling": _filling(vae, test, references, world, extent),
        "inpainting": _inpainting(vae, test, references, world, extent),
        "probe": _probe(vae, train, test, references, world, extent) if index.classes <= _MOST_CLASSES else [],
    }
    _, images_BHWC = read_test_images(test, min(_SHOWN_IMAGES, test.images))
    return report, filling_sheet(vae, fillers(vae, references, 1, extent.seed), images_BHWC)


def references_of(train: Stream, extent: Extent, patch_size: int) -> References:
    """The same on every rank."""
    gaussian = ConditionalGaussian.fit(_spread(train, extent.gaussian_images), patch_size)
    images_NHWC = _spread(train, extent.references)
    return References(images_NHWC.mean(0), images_NHWC, gaussian)


def _spread(train: Stream, most: int) -> Tensor:
    """Images spread over the split, so that classes mix, (N, H, W, 3)."""
    image_bytes = read_images(train, torch.arange(1)).nbytes
    count = min(most, train.images, _REFERENCE_BYTES // image_bytes)
    return read_images(train, torch.arange(count) * (train.images // count))


def _bounds(vae: BigLearnVAE, test: Stream, world: World, extent: Extent) -> list[dict]:
    """Importance-weighted bounds of log p(x), and of log p(x_T | x_S) for the standard masks, nats an image."""
    count, patches = min(extent.bound_images, test.images), vae.description.data.patches
    tasks: dict[str, Callable[[Tensor], Tensor | None]] = {"log p(x)": lambda index_B: None}
    if vae.method.is_conditional:
        tasks |= {f"log p(x_T | x_S), {mask}": partial(standard_mask, mask, patches=patches) for mask in STANDARD_MASKS}
    rows = []
    if not count or not vae.variance:  # β = 0: pixels of variance 0 have no likelihood
        return rows
    for name, observed in tasks.items():
        for samples in sorted({1, extent.bound_samples}):
            values = []
            for index_B in progress(share(count, world), f"{name}, {samples} weights", shown=world.is_main):
                images_BHWC, first = read_images(test, index_B), index_B[0].item()
                how = {"samples": samples, "seed": extent.seed, "first_index": first}
                values.append(vae.log_likelihood_bound(images_BHWC, observed(index_B), **how))
            rows.append({"of": name, "samples": samples, "images": count, **mean_and_error(gathered(world, values))})
    return rows


def _gaussian(
    vae: BigLearnVAE, test: Stream, gaussian: ConditionalGaussian, world: World, extent: Extent, images: int
) -> dict:
    """What the Gaussian is, its log p(x), and the JointELBO that a linear decoder can reach at most, means an image.

    log p(x) is of the images of the bounds; its noise is at least the β of the model, for a variance of less counts as
    none. The other is of the images of the ELBOs. Both are None where the model is not one of pixels, or has β = 0.
    """
    found = {"images": gaussian.images, "components": len(gaussian.variance_R), "noise": gaussian.noise}
    found |= {"log_density": None, "joint_elbo": None}
    if vae.codec or not vae.variance:
        return found
    wide = gaussian.with_noise(max(gaussian.noise, vae.variance * gaussian.channels / 3))
    linear = partial(gaussian.joint_elbo, latent_dim=vae.description.model.latent_dim, beta=vae.variance)
    bound_images = min(extent.bound_images, test.images)
    for name, measure, count in (("log_density", wide.log_density, bound_images), ("joint_elbo", linear, images)):
        parts = [measure(read_images(test, index_B)) for index_B in share(count, world)]
        found[name] = {"images": count, **mean_and_error(gathered(world, parts))}
    return found


def _filling(
    vae: BigLearnVAE, test: Stream, references: References, world: World, extent: Extent
) -> list[dict[str, str | int | float | None]]:
    """A row for each standard mask and each way to fill: the mean squared error a pixel of what is missing.

    Of a way that draws, the error of a single draw, and in a row of its own that of the mean over the draws.
    """
    count, patches = min(extent.filling_images, test.images), vae.description.data.patches
    draws = extent.filling_draws if vae.method.is_conditional else extent.draws  # a chain's draws cost far more
    ways, parts = fillers(vae, references, draws, extent.seed), {}
    mine = share(count, world, portion=50)
    for index_B, mask in progress([*product(mine, STANDARD_MASKS)], "standard masks", shown=world.is_main):
        whole = vae.observe(read_images(test, index_B))
        given = whole.hide(~standard_mask(mask, index_B, patches))
        for name, fill in ways.items():
            filled_KBHWC = fill(given, index_B[0].item())
            fillings = {name: filled_KBHWC}
            if len(filled_KBHWC) > 1:
                fillings[f"{name}, mean of {draws}"] = filled_KBHWC.mean(0, keepdim=True)
            for way, filled in fillings.items():
                error_B = squared_error(given, whole.images_BHWC, filled).mean(0)
                parts.setdefault(way, {}).setdefault(mask, []).append(error_B)
    names = world.gather([*parts])[0]  # the first rank has images whatever their number
    rows = []
    for mask, way in product(STANDARD_MASKS, names):
        found = mean_and_error(gathered(world, parts.get(way, {}).get(mask, [])))
        error = {"error": found["mean"], "standard_error": found["standard_error"]}
        rows.append({"mask": mask, "way": way, "images": count, **error})
    return rows


def _inpainting(
    vae: BigLearnVAE, test: Stream, references: References, world: World, extent: Extent
) -> list[dict[str, str | float]]:
    """A row for each way to fill, each kind of mask and each share of known patches."""
    count, patches = min(extent.inpainting_images, test.images), vae.description.data.patches
    ways = fillers(vae, references, extent.draws, extent.seed)
    cells = [*product(SHAPES, MASK_RATIOS)]
    if not count:
        return []
    mine, parts = share(count, world, portion=50), {}
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
            value_B = gathered(world, parts.get((name, kind, s_ratio, score), []))
            row[score] = value_B.double().mean().item()
        if not math.isnan(row["error"]):  # a mask of few patches may leave nothing missing
            rows.append(row)
    return rows


def _probe(
    vae: BigLearnVAE, train: Stream, test: Stream, references: References, world: World, extent: Extent
) -> list[dict[str, str | float]]:
    """Accuracy of linear probes against the share of known patches; none where there are no classes."""
    n_train, n_test = min(extent.probe_images, train.images), min(extent.probe_test_images, test.images)
    if not n_train or not n_test:
        return []
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
