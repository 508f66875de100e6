"""Pictures of what a model does: rows of images, labelled, in one sheet."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from data.errors import UserError
from data.patches import unpatchify
from data.read.stream import Stream
from model.masks import EVALUATION_SEED, standard_mask
from model.patch_autoencoder.codec import PatchCodec
from model.patch_autoencoder.network import PatchAutoencoder

_SCALE_TO = 64  # pixels of the side of one image in the sheet, at least
_GAP, _LABEL_WIDTH, _TEXT, _HEADING = 4, 190, 15, 19
_MAGNIFIED = 8
_MISSING = 0.45  # the grey that stands for a missing pixel

Row = tuple[str, Tensor]  # a label and images (B, H, W, 3) in [0, 1]


def capability_rows(vae: BigLearnVAE, images_BHWC: Tensor) -> list[Row]:
    """Images, reconstructions, in-paintings of half and of a fifth of the patches, samples; always the same draws.

    The joint VAE knows only the joint task: it gets neither missing halves nor in-paintings.
    """
    whole, patches = vae.observe(images_BHWC), vae.description.data.patches
    index_B = torch.arange(len(whole))
    rows = [("test images", whole.images_BHWC), ("reconstructed", vae.reconstruct(whole))]
    if vae.method.is_conditional:
        for name, mask in (("half missing", "half seen"), ("4 of 5 missing", "fifth seen")):
            given = whole.hide(~standard_mask(mask, index_B, patches))
            rows.append((name, shown(given)))
            for k, painted_BHWC in enumerate(vae.inpaint(given, draws=2, seed=EVALUATION_SEED), start=1):
                rows.append((f"in-painted, draw {k}", painted_BHWC))
    for k in (1, 2):
        first_index = k * len(whole)
        samples_BHWC = vae.generate(len(whole), seed=EVALUATION_SEED, first_index=first_index)
        rows.append((f"samples {k}", samples_BHWC))
    return rows


def shown(given: Observation) -> Tensor:
    """What is known of images, grey where nothing is: (B, H, W, 3)."""
    return given.complete(torch.full_like(given.images_BHWC, _MISSING))


def read_images(stream: Stream, position_B: Tensor, codec: PatchCodec | None = None) -> Tensor:
    """Images at positions of a stream of pixels, or of the codes of a codec, (B, H, W, 3) float32 on the CPU."""
    x_BLD = stream.read(position_B).x_BLD
    if codec:
        x_BLD = codec.decode(x_BLD).clamp(0, 1)
    return unpatchify(x_BLD.float().cpu(), round((x_BLD.shape[-1] / 3) ** 0.5))


def read_test_images(stream: Stream, count: int) -> tuple[Tensor, Tensor]:
    """Images spread over the test split, so that classes mix: their positions (N,) and the images (N, H, W, 3)."""
    if count > stream.images:
        raise UserError(f"{count:,} test images are asked for, {stream.images:,} are there: ask for at most so many")
    position_N = _spread(stream, count)
    return position_N, read_images(stream, position_N)


def sheet(rows: list[Row], title: str, columns: Sequence[str] = (), group: int = 0) -> Image.Image:
    """One picture: a title, then a label and the images of each row. Small images are enlarged by whole factors.

    columns: labels above the images. group: so many rows belong together; 0: all.
    """
    font = ImageFont.load_default(_TEXT)
    tiles = [(images_BHWC.float().clamp(0, 1).cpu() * 255).round().byte().numpy() for _, images_BHWC in rows]
    side = tiles[0].shape[1]
    side *= max(1, _SCALE_TO // side)
    cell, top = side + _GAP, 2 * _TEXT + bool(columns) * (_TEXT + _GAP)
    left = max(_LABEL_WIDTH, *(2 * _GAP + round(font.getlength(label)) for label, _ in rows))
    width = max(left + max(map(len, tiles)) * cell, 2 * _GAP + round(font.getlength(title)))
    row_y = [top + r * cell + (r // group * 3 * _GAP if group else 0) for r in range(len(rows))]
    canvas = Image.new("RGB", (width, row_y[-1] + cell), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, _GAP), title, "black", font)
    for c, label in enumerate(columns):
        pen.text((left + c * cell + side // 2, top - _GAP), label, "black", font, anchor="ms")
    for y, (label, _), images_BHWC in zip(row_y, rows, tiles, strict=True):
        pen.text((_GAP, y + (side - _TEXT) // 2), label, "black", font)
        for c, image_HWC in enumerate(images_BHWC):
            tile = Image.fromarray(image_HWC).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + c * cell, y))
    return canvas


def panels(pictures: list[Image.Image], heading: str, *, beside: bool = False) -> Image.Image:
    """Several pictures as one, under a heading: one below the other, or one beside the other."""
    font, gap = ImageFont.load_default(_HEADING), 5 * _GAP
    places, x, y = [], 2 * _GAP, 2 * _HEADING
    for picture in pictures:
        places.append((x, y))
        x, y = (x + picture.width + gap, y) if beside else (x, y + picture.height + gap)
    right = max(x + picture.width for (x, _), picture in zip(places, pictures, strict=True))
    bottom = max(y + picture.height for (_, y), picture in zip(places, pictures, strict=True))
    width = max(right, 2 * _GAP + round(font.getlength(heading)))
    canvas = Image.new("RGB", (width + 2 * _GAP, bottom + 2 * _GAP), "white")
    ImageDraw.Draw(canvas).text((3 * _GAP, 2 * _GAP), heading, "black", font)
    for place, picture in zip(places, pictures, strict=True):
        canvas.paste(picture, place)
    return canvas


def draw_sheet(vae: BigLearnVAE, stream: Stream, title: str, columns: int = 12) -> Image.Image:
    """The sheet of the first test images, as the model knows them: those of a model of codes come from their codes."""
    return sheet(capability_rows(vae, read_images(stream, _spread(stream, columns), vae.codec)), title)


def draw_codes(autoencoder: PatchAutoencoder, stream: Stream, title: str, columns: int = 12) -> Image.Image:
    """Test images, what their PatchAE codes still have of them, and the difference."""
    x_BLD = stream.read(_spread(stream, columns)).x_BLD
    with torch.no_grad():
        found_BLD = autoencoder.decode(autoencoder.encode(x_BLD.flatten(0, 1))).view_as(x_BLD)
    tokens = (x_BLD, found_BLD, (x_BLD - found_BLD).abs() * _MAGNIFIED)
    rows = (unpatchify(tokens_BLD.cpu(), autoencoder.patch_size) for tokens_BLD in tokens)
    labels = ("test images", "from their codes", f"difference, {_MAGNIFIED} times")
    return sheet([*zip(labels, rows, strict=True)], title)


def _spread(stream: Stream, count: int) -> Tensor:
    """Positions spread over the split, so that classes mix."""
    return torch.arange(min(count, stream.images)) * max(1, stream.images // count)
