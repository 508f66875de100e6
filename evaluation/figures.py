"""The figures of the paper from a trained run: pictures of images (Figs. 3, 6 to 12, 14) and training curves (13)."""

import io
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure as Curves
from PIL import Image
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.find_images import find_data
from biglearn_vae.observation import Observation
from biglearn_vae.pictures import Row, panels, sheet, shown
from data import randomness
from data.errors import UserError
from data.order.holdout import trained_images
from data.read.index import prepare_command, read_index
from model.masks import observed_of_kind, place_masks
from trainer.config import load_config
from trainer.run_directory import RunDirectory

S_RATIOS = tuple(tenths / 10 for tenths in range(10, 0, -1))
_DELTA_Z, _DIMENSIONS = 5.0, 8
_NOISE, _BRIGHTER = 0.2, 0.2


@dataclass(frozen=True)
class Figure:
    """A figure of images. draw(vae, images_BHWC, seed): its panels, which stand one below the other, or `beside`.

    name: what it shows, for the heading. images: how many test images, unless a person asks for others. needs_parts:
    it needs p(z | x_S) of parts of an image, which the joint VAE has not.
    """

    name: str
    draw: Callable[[BigLearnVAE, Tensor, int], list[Image.Image]]
    images: int
    needs_parts: bool = True
    beside: bool = False


def draw_figure(number: str, vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> Image.Image:
    """One of FIGURES of these test images."""
    figure, of = FIGURES[number], vae.description
    origin = f"{of.method} after {of.images:,} training images of {of.data.source}"
    heading = f"Figure {number}: {figure.name}. {origin}"
    return panels(figure.draw(vae, images_BHWC, seed), heading, beside=figure.beside)


def nested_parts(vae: BigLearnVAE, images_BHWC: Tensor, ratios: tuple[float, ...], seed: int) -> list[Observation]:
    """x_S of each S-ratio, S being random patches; what is known at a small ratio is known at every larger one."""
    whole, patches = vae.observe(images_BHWC), vae.description.data.patches
    index_B = torch.arange(len(whole))
    return [whole.hide(~observed_of_kind("random", ratio, index_B, patches, seed)) for ratio in ratios]


def incomplete_data(vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> list[Image.Image]:
    """Figs. 3, 6, 7, 8: z ~ p(z | x_S), the same noise at every S-ratio, decoded without and with x_S."""
    parts = nested_parts(vae, images_BHWC, S_RATIOS, seed)
    known_RBHWC = [shown(given) for given in parts]
    columns = [f"S {ratio:.1f}" for ratio in S_RATIOS]

    def panel(name: str, label: str, decoded_RBHWC: list[Tensor]) -> Image.Image:
        rows = _by_image(("known: x_S", label), [known_RBHWC, decoded_RBHWC])
        return sheet(rows, name, columns, group=2)

    inferred = [vae.infer(given, seed=seed)[0] for given in parts]
    painted = [vae.inpaint(given, seed=seed)[0] for given in parts]
    return [
        panel(
            "(a) Inference: z drawn from p(z | x_S), x from p(x | z). S: share of known patches",
            "inferred: x",
            inferred,
        ),
        panel("(b) In-painting: the same z, missing patches from p(x_T | z, x_S)", "in-painted: x_T", painted),
    ]


def _by_image(labels: tuple[str, ...], images_KRBHWC: list[list[Tensor]]) -> list[Row]:
    """Rows of K kinds, one after the other for each image b, with the R pictures of that kind."""
    rows = [torch.stack(images_RBHWC, 1) for images_RBHWC in images_KRBHWC]
    return [
        (label, images_BRHWC[b]) for b in range(len(rows[0])) for label, images_BRHWC in zip(labels, rows, strict=True)
    ]


def interpolations(vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> list[Image.Image]:
    """Fig. 9: from each image to the next one."""
    others_BHWC = images_BHWC.roll(-1, 0)
    shares = [tenths / 10 for tenths in range(11)]
    between_KBHWC = vae.interpolate(images_BHWC, others_BHWC, steps=len(shares))
    rows = _by_image(("",), [[images_BHWC, *between_KBHWC, others_BHWC]])
    columns = ["from", *(f"{share:.1f}" for share in shares), "to"]
    title = (
        "p(x | z) for z this share of the way from the code of one test image, the mean of p(z | x), to that of another"
    )
    return [sheet([(f"pair {b + 1}", x) for b, (_, x) in enumerate(rows)], title, columns)]


def combined_parts(vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> list[Image.Image]:
    """Fig. 10: S1 and S2 are disjoint quarters of the patches."""
    whole, patches = vae.observe(images_BHWC), vae.description.data.patches
    index_B = torch.arange(len(whole))
    n_B = torch.full_like(index_B, patches // 4)
    first, second = (whole.hide(~seen_BL) for seen_BL in place_masks(n_B, n_B, index_B, patches, seed))
    rows = []
    for name, given in (("x_S1", first), ("x_S2", second), ("x_S1 and x_S2", first.merge(second))):
        rows += [(f"known: {name}", shown(given)), ("in-painted", vae.inpaint(given, draws=0)[0])]
    rows.append(("test images", images_BHWC))
    title = "In-painted by p(x_T | z, x_S), z the mean of p(z | x_S): S a quarter of the patches, another one, and both"
    return [sheet(rows, title, group=2)]


def decoding_sensitivity(vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> list[Image.Image]:
    """Fig. 11: Δz in the dimensions of z that change the missing pixels most, at several S-ratios."""
    ratios, latent_dim = (0.1, 0.3, 0.5), vae.description.model.latent_dim
    parts = nested_parts(vae, images_BHWC, ratios, seed)
    found = [vae.decoding_sensitivity(given, range(latent_dim), delta=_DELTA_Z, seed=seed) for given in parts]
    change_Z = sum((changed - base).abs().sum((1, 2, 3, 4)) for base, changed in found)
    change_Z = change_Z / sum((~given.seen_BHW).sum() * 3 for given in parts)
    most = change_Z.topk(min(_DIMENSIONS, latent_dim))
    rows = [
        (f"image {b + 1}, S-ratio {ratio:g}", torch.stack([shown(given)[b], base[b], *changed[most.indices, b]]))
        for b in range(len(images_BHWC))
        for ratio, given, (base, changed) in zip(ratios, parts, found, strict=True)
    ]
    columns = ["x_S", "from z", *(f"z{d} + {_DELTA_Z:g}" for d in most.indices.tolist())]
    title = (
        f"p(x_T | z, x_S), z drawn from p(z | x_S); then {_DELTA_Z:g} is added to one dimension of z: the "
        f"{len(most.indices)} of {latent_dim} that change missing pixels most (by {most.values[0]:.2f} to "
        f"{most.values[-1]:.2f} on average)"
    )
    return [sheet(rows, title, columns, group=len(ratios))]


def encoding_sensitivity(vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> list[Image.Image]:
    """Fig. 12: the codes of x_S and of x_S + Δx, both decoded with x_S."""
    (given,) = nested_parts(vae, images_BHWC, (0.5,), seed)
    rows = [("known: x_S", shown(given)), ("in-painted", vae.inpaint(given, draws=0)[0])]
    for name, changed_BHWC in _changes(given.images_BHWC, seed).items():
        _, changed = vae.encoding_sensitivity(given, changed_BHWC - given.images_BHWC)
        seen = Observation(changed_BHWC, given.seen_BHW, given.observed_BL)
        rows += [(f"x_S {name}", shown(seen)), ("in-painted", vae.decode(changed.mu_BZ, given))]
    title = (
        "In-painted by p(x_T | z, x_S) with z the mean of p(z | the row above), x_S unchanged: all changes come from z"
    )
    return [sheet(rows, title, group=2)]


def _changes(images_BHWC: Tensor, seed: int) -> dict[str, Tensor]:
    """Images + Δx for several Δx, in [0, 1]."""
    side = images_BHWC.shape[1]
    row_H, index_B = torch.arange(side), torch.arange(len(images_BHWC))
    stroke_HW = (row_H[:, None] - row_H).abs() <= side // 16
    noise_BHW1 = randomness.normal(seed, "change", index_B, side * side).view(-1, side, side, 1)
    return {
        "brighter": (images_BHWC + _BRIGHTER).clamp(max=1),
        "with a stroke": torch.where(stroke_HW[..., None], 1.0, images_BHWC),
        "with noise": (images_BHWC + _NOISE * noise_BHW1).clamp(0, 1),
    }


def capabilities(vae: BigLearnVAE, images_BHWC: Tensor, seed: int) -> list[Image.Image]:
    """Fig. 14: samples, inference, reconstruction, in-painting, images from strokes."""
    (half,) = nested_parts(vae, images_BHWC, (0.5,), seed)
    strokes = vae.observe(strokes_of(images_BHWC, vae.description.data.patch_size), observed="any")
    samples = vae.generate(2 * len(images_BHWC), seed=seed).split(len(images_BHWC))

    def drawn(given: Observation) -> list[Row]:
        painted = vae.inpaint(given, draws=3, seed=seed)
        return [(f"in-painted, draw {k}", x_BHWC) for k, x_BHWC in enumerate(painted, start=1)]

    known = ("known: x_S", shown(half))
    inferred, reconstructed = vae.infer(half, draws=0)[0], vae.reconstruct(images_BHWC)
    return [
        sheet([("samples: x", x_BHWC) for x_BHWC in samples], "(a) Samples: z from p(z), then p(x | z)"),
        sheet([known, ("inferred: x", inferred)], "(b) Inference: z the mean of p(z | x_S), then p(x | z)"),
        sheet(
            [("test images: x", images_BHWC), ("reconstructed", reconstructed)],
            "(c) Reconstruction: z the mean of p(z | x), then p(x | z)",
        ),
        sheet([known, *drawn(half)], "(d) In-painting: z from p(z | x_S), then p(x_T | z, x_S)"),
        sheet(
            [("strokes: x_S", shown(strokes)), *drawn(strokes)],
            "(e) Images from strokes: as (d); x_S has the bright pixels of one column of patches, black between them",
        ),
    ]


def strokes_of(images_BHWC: Tensor, patch_size: int) -> Tensor:
    """The bright pixels of one column of patches, right of the middle; NaN elsewhere."""
    side = images_BHWC.shape[1]
    brightness_BHW = images_BHWC.mean(-1)
    is_bright_BHW = brightness_BHW > 0.5 * brightness_BHW.amax((1, 2), keepdim=True)
    patch_W = torch.arange(side) // patch_size
    is_stroke_BHW = is_bright_BHW & (patch_W == side // patch_size // 2)
    return torch.where(is_stroke_BHW[..., None], images_BHWC, math.nan)


FIGURES = {
    "3": Figure("inference with incomplete data and in-painting", incomplete_data, images=3, beside=True),
    "6-8": Figure("more inference with incomplete data and in-painting", incomplete_data, images=10, beside=True),
    "9": Figure("linear interpolation of codes", interpolations, images=8, needs_parts=False),
    "10": Figure("encoding of combined parts", combined_parts, images=12),
    "11": Figure("what a change of z does to x_T, x_S given", decoding_sensitivity, images=4),
    "12": Figure("what a change of x_S does to z", encoding_sensitivity, images=12),
    "14": Figure("what the model can do", capabilities, images=12),
}


@dataclass(frozen=True)
class Epochs:
    """Of each epoch of a run: where it ends, the mean loss, and the time of training until its end.

    The last one may be cut short: `end` then is no whole number.
    """

    end: list[float]
    loss: list[float]
    seconds: list[float]


def epochs_of(lines: list[dict], images: int) -> Epochs:
    """From the metrics of each step and the training images of the data set.

    Time without evaluation, pictures and checkpoints, nor what a run that was resumed had done in vain.
    """
    loss_of, end_of, seconds_of = defaultdict(list), {}, {}
    before, seconds = 0, 0.0
    for line in lines:
        epoch = math.ceil(line["images"] / images)
        seconds += (line["images"] - before) / line["images_per_second"]
        before = line["images"]
        end_of[epoch], seconds_of[epoch] = min(epoch, line["images"] / images), seconds
        if line["loss"] is not None:
            loss_of[epoch].append(line["loss"])
    losses = [sum(loss_of[epoch]) / len(loss_of[epoch]) if loss_of[epoch] else math.nan for epoch in end_of]
    return Epochs([*end_of.values()], losses, [*seconds_of.values()])


def training_curves(runs: list[Path], shards: str | None = None) -> Curves:
    """Fig. 13: loss and cumulative training time per epoch of runs on one data set.

    shards: its folder; None: where `find_data` finds that of each run.
    """
    configs = [load_config(RunDirectory(run).config) for run in runs]
    sources = {config.data.source for config in configs}
    if len(sources) > 1:
        raise UserError(f"the runs were trained on {' and '.join(sorted(sources))}: compare runs on one data set")
    curves = Curves(figsize=(11, 4.5), layout="constrained")
    loss_axes, time_axes = curves.subplots(1, 2)
    trained_on = []
    for run, config in zip(runs, configs, strict=True):
        lines = RunDirectory(run).lines()
        if not lines:
            raise UserError(f"{run / 'metrics.jsonl'} has no step: give a run that has trained")
        folder = find_data(config.data, run, shards).shards
        index = read_index(folder, partial(prepare_command, config.data.source, folder))
        if index.source != config.data.source:
            raise UserError(f"{folder} holds {index.source}, not {config.data.source}: give another --shards")
        epochs = epochs_of(lines, trained_images(index.images["train"], config.data.holdout))
        label = f"{config.method} ({run.resolve().name})"
        loss_axes.plot(epochs.end, epochs.loss, label=label)
        time_axes.plot(epochs.end, [seconds / 60 for seconds in epochs.seconds], label=label)
        trained_on.append(f"{config.method} after {lines[-1]['images']:,}")
    curves.suptitle(f"Figure 13: loss and training time. {', '.join(trained_on)} training images of {sources.pop()}")
    loss_axes.set(title="Loss of each epoch", ylabel="minus the ELBO that the method maximises, nats", yscale="log")
    time_axes.set(
        title="Cumulative training time", ylabel="minutes, without evaluation and checkpoints", ylim=(0, None)
    )
    for axes in (loss_axes, time_axes):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return curves


def rendered(curves: Curves) -> Image.Image:
    """Curves as a picture."""
    content = io.BytesIO()
    curves.savefig(content, format="png", dpi=120)
    return Image.open(content)
