"""What launch/sample.py can do: each sub-command is one function, with its options, its example and what it needs.

What is slow to import is imported when a command runs, so that --help and mistakes answer at once.
"""

from __future__ import annotations

import io
import logging
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.errors import UserError
from launch.commands.cli import find_device, whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from biglearn_vae import BigLearnVAE
    from biglearn_vae.observation import Observation

_LARGEST = 1e6  # of any code, and of any change: far beyond what they can be


@dataclass
class Result:
    """rows: of the sheet, a label and images each, of which an Observation is shown as it is known; none for no sheet.

    arrays: what is written whole. words: what is printed.
    """

    rows: list[tuple[str, Tensor | Observation]] = field(default_factory=list)
    arrays: dict[str, Tensor | list] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Command:
    """what: for the help. images: whether it takes them. observed: what partly known patches count as, by default.

    hides: whether --hide takes patches from its images before; if not, that is its own to do.
    """

    run: Callable[[BigLearnVAE, Observation | None, Namespace], Result]
    what: str
    example: str
    options: tuple[tuple[str, dict], ...]
    images: Literal["needed", "optional", "none"] = "needed"
    observed: Literal["all", "any"] = "all"
    hides: bool = True


COMMANDS: dict[str, Command] = {}


def command(name: str, what: str, example: str, *options: tuple[str, dict], **needs) -> Callable[[Callable], Callable]:
    """Make a function a sub-command: see `Command`."""

    def add(run: Callable) -> Callable:
        COMMANDS[name] = Command(run, what, example, options, **needs)
        return run

    return add


def option(name: str, **how) -> tuple[str, dict]:
    """One of a command's own, as argparse takes it."""
    return name, how


def number(text: str, least: float, most: float) -> float:
    """The type of an option that measures something, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ArgumentTypeError(f"{text.strip()} is not a number from {least:,} to {most:,}")
    return value


_change = partial(number, least=-_LARGEST, most=_LARGEST)
_DRAWS = option("--draws", type=whole_number, default=3, metavar="K", help="for each image; default: %(default)s")


@command(
    "generate",
    "new images: z ~ p(z), then p(x | z)",
    "--count 24",
    option("--count", type=whole_number, default=24, metavar="N", help="default: %(default)s"),
    images="none",
)
def generate(vae: BigLearnVAE, given: None, options: Namespace) -> Result:
    images_BHWC = vae.generate(options.count, seed=options.seed)
    rows = [("samples" if not k else "", x_BHWC) for k, x_BHWC in enumerate(images_BHWC.split(options.columns))]
    return Result(rows, {"images": images_BHWC})


@command(
    "encode",
    "p(z | x_S): mean and log variance of the code",
    "--test 100 --hide random",
    option("--merge", nargs="+", metavar="PATH", help="other parts of the same images: p(z | x_S1 and x_S2)"),
)
def encode(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    if options.merge:
        given = given.merge(_read(options.merge, vae, options))
    found = vae.encode(given)
    sigma = found.sigma_BZ.mean().item()
    words = [f"{len(given)} codes of {found.mu_BZ.shape[1]} dimensions, sigma {sigma:.3g} on average"]
    return Result([], {"mu": found.mu_BZ, "logvar": found.logvar_BZ}, words)


@command(
    "decode",
    "p(x | z), or p(x_T | z, x_S) with images",
    "--codes samples/encode/encode.npz",
    option("--codes", required=True, metavar="FILE", help="what encode wrote (its means are decoded), or a .npy of z"),
    images="optional",
)
def decode(vae: BigLearnVAE, given: Observation | None, options: Namespace) -> Result:
    z_BZ = _codes(Path(options.codes), vae.description.model.latent_dim)
    images_BHWC = vae.decode(z_BZ, given)
    before = [] if given is None else [("known", given)]
    return Result([*before, ("decoded", images_BHWC)], {"images": images_BHWC})


def _codes(path: Path, latent_dim: int) -> Tensor:
    import numpy as np
    import torch

    from data.sources.incomplete import load_numbers

    try:
        z_BZ = load_numbers(path, "mu")
    except ValueError as error:
        raise UserError(f"{path} holds no codes ({error}): give what encode wrote") from None
    if z_BZ.ndim != 2 or z_BZ.shape[1] != latent_dim:
        raise UserError(f"{path} has the shape {z_BZ.shape}, the model needs (images, {latent_dim})")
    if z_BZ.dtype.kind not in "fiu" or not (np.abs(z_BZ) <= _LARGEST).all():
        raise UserError(f"{path} holds what is no code (NaN, infinite, or no numbers): give what encode wrote")
    return torch.from_numpy(z_BZ.astype(np.float32))


@command("reconstruct", "whole images, through the mean of p(z | x)", "--test 12")
def reconstruct(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    images_BHWC = vae.reconstruct(given)
    return Result([("images", given.images_BHWC), ("reconstructed", images_BHWC)], {"images": images_BHWC})


@command("infer", "incomplete images to z, and from z alone to whole images", "--test 12 --hide half", _DRAWS)
def infer(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    return _drawn(given, vae.infer(given, draws=options.draws, seed=options.seed), "inferred")


@command("strokes", "images that go on from strokes", "--images strokes.png --draws 6", _DRAWS, observed="any")
@command("inpaint", "several completions of incomplete images", "--test 12 --hide block", _DRAWS)
def inpaint(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    return _drawn(given, vae.inpaint(given, draws=options.draws, seed=options.seed), "in-painted")


@command(
    "pseudo-gibbs",
    "in-painting by a chain, all that a joint VAE can do",
    "--test 12 --hide half",
    _DRAWS,
    option("--burn-in", type=whole_number, default=50, metavar="N", help="default: %(default)s"),
    option("--steps", type=whole_number, default=10, metavar="N", help="between draws; default: %(default)s"),
    option("--metropolis", action="store_true", help="correct for an encoder that is not the posterior"),
)
def pseudo_gibbs(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    how = {"draws": options.draws, "burn_in": options.burn_in, "steps": options.steps, "seed": options.seed}
    how |= {"metropolis": options.metropolis}
    return _drawn(given, vae.pseudo_gibbs(given, **how), "Metropolis" if options.metropolis else "pseudo-Gibbs")


def _drawn(given: Observation, images_KBHWC: Tensor, what: str) -> Result:
    rows = [(f"{what}, draw {k}", x_BHWC) for k, x_BHWC in enumerate(images_KBHWC, start=1)]
    return Result([("known", given), *rows], {"images": images_KBHWC, "seen": given.seen_BHW})


@command(
    "interpolate",
    "from images to others, along lines between their codes",
    "--test 12",
    option("--others", nargs="+", metavar="PATH", help="default: the second half of the images"),
    option("--steps", type=whole_number, default=8, metavar="N", help="default: %(default)s"),
)
def interpolate(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    if options.others:
        start, end = given, _read(options.others, vae, options)
    else:
        half = len(given) // 2
        if not half:
            raise UserError("one image alone cannot go over to another: give two, or --others")
        start, end = given[:half], given[half : 2 * half]
    images_KBHWC = vae.interpolate(start, end, options.steps)
    rows = [(f"{k / max(1, len(images_KBHWC) - 1):.0%}", x_BHWC) for k, x_BHWC in enumerate(images_KBHWC)]
    return Result([("from", start), *rows, ("to", end)], {"images": images_KBHWC})


@command(
    "vary-z",
    "what one dimension of z changes, x_S given",
    "--test 8 --hide random --dimensions 0 1 2",
    option("--dimensions", type=int, nargs="+", metavar="D", help="default: the first 8"),
    option("--delta", type=_change, default=5.0, help="what is added; default: %(default)s"),
)
def vary_z(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    dimensions = options.dimensions or list(range(min(8, vae.description.model.latent_dim)))
    base_BHWC, changed_KBHWC = vae.decoding_sensitivity(given, dimensions, delta=options.delta, seed=options.seed)
    rows = [(f"z[{d}] + {options.delta:g}", x_BHWC) for d, x_BHWC in zip(dimensions, changed_KBHWC, strict=True)]
    arrays = {"base": base_BHWC, "changed": changed_KBHWC, "dimensions": dimensions}
    return Result([("known", given), ("z", base_BHWC), *rows], arrays)


@command(
    "vary-x",
    "what a change of the known pixels does to z",
    "--test 8 --delta 0.2",
    option("--delta", type=_change, default=0.1, help="added to each known pixel; default: %(default)s"),
    option("--changed", nargs="+", metavar="PATH", help="instead: the same images, changed"),
)
def vary_x(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    changed_BHWC = given.images_BHWC + options.delta
    if options.changed:
        changed_BHWC = _read(options.changed, vae, options).images_BHWC
        if len(changed_BHWC) != len(given):
            raise UserError(f"{len(changed_BHWC)} changed images for {len(given)}: give as many of both")
    before, after = vae.encoding_sensitivity(given, changed_BHWC - given.images_BHWC)
    shift_BZ = (after.mu_BZ - before.mu_BZ).abs() / before.sigma_BZ
    most = shift_BZ.mean(0).topk(min(5, shift_BZ.shape[1]))
    moved = ", ".join(f"z[{d}] {v:.2f}" for v, d in zip(most.values.tolist(), most.indices.tolist(), strict=True))
    rows = [
        ("known", given),
        ("changed", replace(given, images_BHWC=changed_BHWC)),
        ("decoded before", vae.decode(before.mu_BZ)),
        ("decoded after", vae.decode(after.mu_BZ)),
    ]
    arrays = {"mu_before": before.mu_BZ, "mu_after": after.mu_BZ, "sigma_before": before.sigma_BZ}
    return Result(rows, arrays, [f"moved most, in sigmas of p(z | x_S): {moved}"])


@command(
    "bound",
    "bounds of log p(x), or of log p(x_T | x_S) with --hide",
    "--test 100",
    option("--samples", type=whole_number, default=64, metavar="K", help="importance weights; default: %(default)s"),
    hides=False,  # it needs what it predicts
)
def bound(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    observed_BL = _left_by_hide(vae, given, options) if options.hide else None
    elbo_B = vae.elbo(given, observed_BL, seed=options.seed)
    bound_B = vae.log_likelihood_bound(given, observed_BL, samples=options.samples, seed=options.seed)
    what = "log p(x_T | x_S)" if options.hide else "log p(x)"
    error = f" (standard error {bound_B.std().item() / len(bound_B) ** 0.5:.2f})" if len(bound_B) > 1 else ""
    value = "a code's value" if vae.description.data.code_dim else "a pixel"
    words = [
        f"{what} >= {bound_B.mean().item():.2f} nats an image{error}, {options.samples} weights, "
        f"variance of {value} {vae.variance:g}",
        f"objective of eq. (7), variance 1, no constants: {elbo_B.mean().item():.4g}",
    ]
    return Result([], {"bound": bound_B, "elbo": elbo_B}, words)


def sample(name: str, options: Namespace) -> int:
    """Run one command and write what it gives."""
    from biglearn_vae import BigLearnVAE
    from trainer.metrics.progress import progress

    logging.getLogger("data.sources.incomplete").setLevel(logging.INFO)  # how arrays are taken
    vae = BigLearnVAE.load(options.model, find_device(options.device))
    vae.batch_size, vae.progress = options.batch_size, partial(progress, name=name, shown=True)
    names, given = _images(COMMANDS[name], vae, options)
    result = COMMANDS[name].run(vae, given, options)
    written = _write(result, names, name, vae, options)
    for line in result.words:
        print(line)
    print(f"wrote {' and '.join(written)}")
    return 0


def _images(command: Command, vae: BigLearnVAE, options: Namespace) -> tuple[list[str], Observation | None]:
    """What --images, --test, --mask and --hide ask for, and the names of the images."""
    from biglearn_vae.find_images import open_images
    from biglearn_vae.images import open_stream
    from biglearn_vae.pictures import read_test_images
    from data.sources.incomplete import read_incomplete, read_mask

    if command.images == "none":
        return [], None
    size = vae.description.data.image_size
    if options.images and options.test:
        raise UserError("--images and --test are two sources: give one of them")
    if options.shards and not options.test:
        raise UserError("--shards is the folder of the images of --test: give --test N, or leave --shards out")
    if options.images:
        names, images_NHWC = read_incomplete([Path(path) for path in options.images], size)
    elif options.test:
        data, index = open_images(vae.description, options.model, options.shards)
        position_N, images_NHWC = read_test_images(open_stream(data, index, "test", seed=None), options.test)
        names = [f"test-{n}" for n in position_N.tolist()]
    elif command.images == "optional":
        return [], None
    else:
        raise UserError("which images? Give --images PATH ... or --test N")
    mask = read_mask(Path(options.mask), size) if options.mask else None
    given = vae.observe(images_NHWC, mask, options.observed)
    if options.hide and command.hides:
        given = given.hide(~_left_by_hide(vae, given, options))
    if given.dropped_pixels:
        print(
            f"{given.dropped_pixels:,} known pixels lie in partly known patches, which the model does not see; "
            "--observed any shows them to it"
        )
    return names, given


def _read(paths: list[str], vae: BigLearnVAE, options: Namespace) -> Observation:
    """Other images than those of --images."""
    from data.sources.incomplete import read_incomplete

    _, images_NHWC = read_incomplete([Path(path) for path in paths], vae.description.data.image_size)
    return vae.observe(images_NHWC, observed=options.observed)


def _left_by_hide(vae: BigLearnVAE, given: Observation, options: Namespace) -> Tensor:
    """The patches that --hide leaves, (B, L)."""
    import torch

    from model.masks import observed_of_kind

    index_N, patches = torch.arange(len(given)), vae.description.data.patches
    return observed_of_kind(options.hide, options.s_ratio, index_N, patches, options.seed)


def _write(result: Result, names: list[str], name: str, vae: BigLearnVAE, options: Namespace) -> list[str]:
    """The sheet, where there are rows, and the arrays; their paths."""
    import numpy as np

    from biglearn_vae.observation import Observation
    from biglearn_vae.pictures import sheet, shown
    from data.files import make_folder, write_aside

    out, description = Path(options.out), vae.description
    contents = {}
    if result.rows:
        rows = [(label, shown(x) if isinstance(x, Observation) else x) for label, x in result.rows]
        title = f"{name}: {description.method}, {description.data.source}, {description.images:,} images"
        picture = io.BytesIO()
        sheet([(label, x_BHWC[: options.columns]) for label, x_BHWC in rows], title).save(picture, "png")
        contents["png"] = picture.getvalue()
    arrays = io.BytesIO()
    np.savez(arrays, **result.arrays, **({"names": np.array(names)} if names else {}))
    contents["npz"] = arrays.getvalue()
    try:
        make_folder(out)
        for suffix, content in contents.items():
            write_aside(out / f"{name}.{suffix}", content)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written ({error.strerror}): choose another --out") from None
    return [str(out / f"{name}.{suffix}") for suffix in contents]
