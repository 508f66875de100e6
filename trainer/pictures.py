"""Pictures of what a model does: originals, reconstructions, in-paintings and samples in one labelled sheet."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import randomness
from data.patches import unpatchify
from data.stream import Stream
from model.masks import place_masks
from model.task import EVALUATION_SEED, BigLearnTask

_SCALE_TO = 64  # pixels of the side of one image in the sheet
_GAP, _LABEL_WIDTH, _TEXT = 4, 190, 15
_MISSING = 0.45  # the grey that stands for a missing patch


@torch.no_grad()
def capability_rows(task: BigLearnTask, x_BLD: Tensor, index_B: Tensor) -> list[tuple[str, Tensor]]:
    """Labelled rows of patches (B, L, D) in [0, 1], always with the same masks and noise for the same images.

    A reconstruction decodes the mean of p(z | x); an in-painting draws z from p(z | x_S) and keeps x_S; a sample
    draws z from the prior. The vae knows only the joint task: it gets neither missing halves nor in-paintings.
    """
    model = task.model
    nothing_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device)

    def draw(mu_BZ: Tensor, logvar_BZ: Tensor, purpose: str) -> Tensor:
        noise_BZ = randomness.normal(EVALUATION_SEED, purpose, index_B, mu_BZ.shape[1])
        return mu_BZ + (0.5 * logvar_BZ).exp() * noise_BZ

    mu_BZ, logvar_BZ = model.encode(x_BLD, ~nothing_BL)
    rows = [("test images", x_BLD), ("reconstructed", model.decode(mu_BZ, x_BLD, nothing_BL))]
    if not task.standard_prior:
        for name, share in (("half missing", 0.5), ("4 of 5 missing", 0.2)):
            n_S_B = torch.full_like(index_B, int(share * model.patches))
            seen_BL, _ = place_masks(n_S_B, n_S_B, index_B, model.patches, EVALUATION_SEED)
            seen_BL1 = seen_BL[..., None]
            rows.append((name, torch.where(seen_BL1, x_BLD, _MISSING)))
            for k in (1, 2):
                z_BZ = draw(*model.encode(x_BLD, seen_BL), f"in-painting {k}")
                rows.append((f"in-painted, draw {k}", torch.where(seen_BL1, x_BLD, model.decode(z_BZ, x_BLD, seen_BL))))
    if task.standard_prior:
        prior = (torch.zeros_like(mu_BZ), torch.zeros_like(logvar_BZ))
    else:
        prior = model.encode(x_BLD, nothing_BL)
    for k in (1, 2):
        rows.append((f"samples {k}", model.decode(draw(*prior, f"sample {k}"), x_BLD, nothing_BL)))
    return rows


def sheet(rows: list[tuple[str, Tensor]], patch_size: int, title: str) -> Image.Image:
    """One picture: a title, then a label and the images of each row."""
    font = ImageFont.load_default(_TEXT)
    tiles = [
        (unpatchify(x_BLD.float().clamp(0, 1).cpu(), patch_size) * 255).round().byte().numpy() for _, x_BLD in rows
    ]
    columns, cell, top = len(tiles[0]), _SCALE_TO + _GAP, 2 * _TEXT
    canvas = Image.new("RGB", (_LABEL_WIDTH + columns * cell, top + len(rows) * cell), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, _GAP), title, "black", font)
    for r, ((label, _), images_BHWC) in enumerate(zip(rows, tiles, strict=True)):
        y = top + r * cell
        pen.text((_GAP, y + (_SCALE_TO - _TEXT) // 2), label, "black", font)
        for c, image_HWC in enumerate(images_BHWC):
            tile = Image.fromarray(image_HWC).resize((_SCALE_TO, _SCALE_TO), Image.Resampling.NEAREST)
            canvas.paste(tile, (_LABEL_WIDTH + c * cell, y))
    return canvas


def draw_sheet(task: BigLearnTask, stream: Stream, patch_size: int, title: str, columns: int = 12) -> Image.Image:
    """The sheet of the first test images, spread over the split so that classes mix."""
    position_B = torch.arange(columns) * (stream.images // columns)
    batch = stream.read(position_B)
    return sheet(capability_rows(task, batch.x_BLD, batch.index_B), patch_size, title)
