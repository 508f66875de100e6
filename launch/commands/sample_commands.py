"""What each command of launch/sample.py does: rows for the sheet, arrays, and a few words."""

import io
import logging
from argparse import Namespace
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.find_images import open_images
from biglearn_vae.images import open_stream
from biglearn_vae.observation import Observation
from biglearn_vae.pictures import Row, read_test_images, sheet, shown
from data.errors import UserError
from data.files import make_folder, write_aside
from data.sources.incomplete import load_numbers, read_incomplete, read_mask
from launch.commands.cli import find_device
from model.masks import observed_of_kind
from trainer.metrics.progress import progress


@dataclass
class Result:
    """rows: of the sheet, none for no sheet. arrays: what is written whole. words: what is printed."""

    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def sample(options: Namespace) -> int:
    """Run one command and write what it gives."""
    logging.getLogger("data.sources.incomplete").setLevel(logging.INFO)  # how arrays are taken
    vae = BigLearnVAE.load(options.model, find_device(options.device))
    vae.batch_size, vae.progress = options.batch_size, partial(progress, name=options.command, shown=True)
    names, given = ([], None) if options.command == "generate" else _images(vae, options)
    result = COMMANDS[options.command](vae, given, options)
    out = Path(options.out)
    arrays = {name: value.numpy() for name, value in result.arrays.items()}
    if names:
        arrays["names"] = np.array(names)
    content = io.BytesIO()
    np.savez(content, **arrays)
    try:
        make_folder(out)
        write_aside(out / f"{options.command}.npz", content.getvalue())
        written = [str(out / f"{options.command}.npz")]
        if result.rows:
            picture = io.BytesIO()
            description = vae.description
            title = f"{options.command}: {description.method}, {description.data.source}, {description.images:,} images"
            sheet([(label, x[: options.columns]) for label, x in result.rows], title).save(picture, "png")
            write_aside(out / f"{options.command}.png", picture.getvalue())
            written.insert(0, str(out / f"{options.command}.png"))
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written ({error.strerror}): choose another --out") from None
    for line in result.words:
        print(line)
    print(f"wrote {' and '.join(written)}")
    return 0


def _images(vae: BigLearnVAE, options: Namespace) -> tuple[list[str], Observation | None]:
    """What --images, --test, --mask and --hide ask for, and the names of the images."""
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
    elif options.command == "decode":
        return [], None
    else:
        raise UserError("which images? Give --images PATH ... or --test N")
    mask = read_mask(Path(options.mask), size) if options.mask else None
    given = vae.observe(images_NHWC, mask, options.observed)
    if options.hide and options.command != "bound":  # which needs what it predicts
        given = given.hide(~_observed_of_kind(vae, given, options))
    if given.dropped_pixels:
        print(
            f"{given.dropped_pixels:,} known pixels lie in partly known patches, which the model does not see; "
            "--observed any shows them to it"
        )
    return names, given


def _observed_of_kind(vae: BigLearnVAE, given: Observation, options: Namespace) -> Tensor:
    index_N, patches = torch.arange(len(given)), vae.description.data.patches
    return observed_of_kind(options.hide, options.s_ratio, index_N, patches, options.seed)


def generate(vae: BigLearnVAE, given: None, options: Namespace) -> Result:
    images_BHWC = vae.generate(options.count, seed=options.seed)
    rows = [("samples" if not k else "", x_BHWC) for k, x_BHWC in enumerate(images_BHWC.split(options.columns))]
    return Result(rows, {"images": images_BHWC})


def encode(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    if options.merge:
        _, others = read_incomplete([Path(path) for path in options.merge], vae.description.data.image_size)
        given = given.merge(vae.observe(others, observed=options.observed))
    found = vae.encode(given)
    sigma = found.sigma_BZ.mean().item()
    words = [f"{len(given)} codes of {found.mu_BZ.shape[1]} dimensions, sigma {sigma:.3g} on average"]
    return Result([], {"mu": found.mu_BZ, "logvar": found.logvar_BZ}, words)


def decode(vae: BigLearnVAE, given: Observation | None, options: Namespace) -> Result:
    z_BZ = _codes(Path(options.codes), vae.description.model.latent_dim)
    images_BHWC = vae.decode(z_BZ, given)
    before = [] if given is None else [("known", shown(given))]
    return Result([*before, ("decoded", images_BHWC)], {"images": images_BHWC})


_LARGEST = 1e6  # of any code: what is larger is none


def _codes(path: Path, latent_dim: int) -> Tensor:
    try:
        z_BZ = load_numbers(path, "mu")
    except ValueError as error:
        raise UserError(f"{path} holds no codes ({error}): give what encode wrote") from None
    if z_BZ.ndim != 2 or z_BZ.shape[1] != latent_dim:
        raise UserError(f"{path} has the shape {z_BZ.shape}, the model needs (images, {latent_dim})")
    if z_BZ.dtype.kind not in "fiu" or not (np.abs(z_BZ) <= _LARGEST).all():
        raise UserError(f"{path} holds what is no code (NaN, infinite, or no numbers): give what encode wrote")
    return torch.from_numpy(z_BZ.astype(np.float32))


def reconstruct(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    images_BHWC = vae.reconstruct(given)
    return Result([("images", given.images_BHWC), ("reconstructed", images_BHWC)], {"images": images_BHWC})


def _drawn(given: Observation, images_KBHWC: Tensor, what: str) -> Result:
    rows = [(f"{what}, draw {k}", x_BHWC) for k, x_BHWC in enumerate(images_KBHWC, start=1)]
    return Result([("known", shown(given)), *rows], {"images": images_KBHWC, "seen": given.seen_BHW})


def infer(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    return _drawn(given, vae.infer(given, draws=options.draws, seed=options.seed), "inferred")


def inpaint(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    return _drawn(given, vae.inpaint(given, draws=options.draws, seed=options.seed), "in-painted")


def pseudo_gibbs(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    how = {"draws": options.draws, "burn_in": options.burn_in, "steps": options.steps, "seed": options.seed}
    return _drawn(given, vae.pseudo_gibbs(given, **how), "pseudo-Gibbs")


def interpolate(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    if options.others:
        _, others = read_incomplete([Path(path) for path in options.others], vae.description.data.image_size)
        start, end = given, vae.observe(others, observed=options.observed)
    else:
        half = len(given) // 2
        if not half:
            raise UserError("one image alone cannot go over to another: give two, or --others")
        start, end = given[:half], given[half : 2 * half]
    images_KBHWC = vae.interpolate(start, end, options.steps)
    rows = [(f"{k / max(1, len(images_KBHWC) - 1):.0%}", x_BHWC) for k, x_BHWC in enumerate(images_KBHWC)]
    return Result([("from", shown(start)), *rows, ("to", shown(end))], {"images": images_KBHWC})


def vary_z(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    dimensions = options.dimensions or list(range(min(8, vae.description.model.latent_dim)))
    base_BHWC, changed_KBHWC = vae.decoding_sensitivity(given, dimensions, delta=options.delta, seed=options.seed)
    rows = [(f"z[{d}] + {options.delta:g}", x_BHWC) for d, x_BHWC in zip(dimensions, changed_KBHWC, strict=True)]
    arrays = {"base": base_BHWC, "changed": changed_KBHWC, "dimensions": torch.tensor(dimensions)}
    return Result([("known", shown(given)), ("z", base_BHWC), *rows], arrays)


def vary_x(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    change_BHWC = torch.full_like(given.images_BHWC, options.delta)
    if options.changed:
        _, changed = read_incomplete([Path(path) for path in options.changed], vae.description.data.image_size)
        if len(changed) != len(given):
            raise UserError(f"{len(changed)} changed images for {len(given)}: give as many of both")
        change_BHWC = vae.observe(changed).images_BHWC - given.images_BHWC
    before, after = vae.encoding_sensitivity(given, change_BHWC)
    shift_BZ = (after.mu_BZ - before.mu_BZ).abs() / before.sigma_BZ
    most = shift_BZ.mean(0).topk(min(5, shift_BZ.shape[1]))
    moved = ", ".join(f"z[{d}] {v:.2f}" for v, d in zip(most.values.tolist(), most.indices.tolist(), strict=True))
    changed_BHWC = torch.where(given.seen_BHW[..., None], given.images_BHWC + change_BHWC, shown(given))
    rows = [
        ("known", shown(given)),
        ("changed", changed_BHWC),
        ("decoded before", vae.decode(before.mu_BZ)),
        ("decoded after", vae.decode(after.mu_BZ)),
    ]
    arrays = {"mu_before": before.mu_BZ, "mu_after": after.mu_BZ, "sigma_before": before.sigma_BZ}
    return Result(rows, arrays, [f"moved most, in sigmas of p(z | x_S): {moved}"])


def bound(vae: BigLearnVAE, given: Observation, options: Namespace) -> Result:
    observed_BL = _observed_of_kind(vae, given, options) if options.hide else None
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


COMMANDS = {
    "generate": generate,
    "encode": encode,
    "decode": decode,
    "reconstruct": reconstruct,
    "infer": infer,
    "inpaint": inpaint,
    "strokes": inpaint,
    "pseudo-gibbs": pseudo_gibbs,
    "interpolate": interpolate,
    "vary-z": vary_z,
    "vary-x": vary_x,
    "bound": bound,
}
