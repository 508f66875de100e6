"""What is known of a batch of images: pixels in [0, 1], which of them are there, and which patches that makes x_S."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import UserError
from data.patches import patchify
from data.sources.arrays import as_images, as_mask

Rule = Literal["all", "any"]


@dataclass(frozen=True)
class Observation:
    """Images with missing pixels.

    images_BHWC: float32 RGB in [0, 1], 0 where nothing is known. seen_BHW: bool, the pixels that are known.
    observed_BL: bool, the patches that the model gets, x_S.
    """

    images_BHWC: Tensor
    seen_BHW: Tensor
    observed_BL: Tensor

    @property
    def dropped_pixels(self) -> int:
        """Known pixels in patches that the rule "all" counts as missing; the model does not see them."""
        return int((self.seen_BHW & ~pixels_of(self.observed_BL, self.seen_BHW.shape[1])).sum())

    def __len__(self) -> int:
        return len(self.images_BHWC)

    def __getitem__(self, rows: slice | Tensor) -> "Observation":
        return Observation(self.images_BHWC[rows], self.seen_BHW[rows], self.observed_BL[rows])

    def to(self, device: torch.device | str) -> "Observation":
        return Observation(*(x.to(device) for x in (self.images_BHWC, self.seen_BHW, self.observed_BL)))

    def merge(self, other: "Observation") -> "Observation":
        """x_{S1 ∪ S2}: what this one or the other knows of the same images; this one's pixels where both do.

        A patch that only both together know as a whole counts as observed.
        """
        if len(self) != len(other):
            raise UserError(f"{len(self)} images cannot be merged with {len(other)}: give as many of both")
        images_BHWC = torch.where(self.seen_BHW[..., None], self.images_BHWC, other.images_BHWC)
        seen_BHW = self.seen_BHW | other.seen_BHW
        observed_BL = self.observed_BL | other.observed_BL | (_known_share(seen_BHW, self.observed_BL.shape[1]) == 1)
        return Observation(images_BHWC, seen_BHW, observed_BL)

    def hide(self, hidden_BL: Tensor) -> "Observation":
        """Without some patches: bool, True where a patch is taken away."""
        seen_BHW = self.seen_BHW & ~pixels_of(hidden_BL, self.images_BHWC.shape[1])
        images_BHWC = self.images_BHWC * seen_BHW[..., None]
        return Observation(images_BHWC, seen_BHW, self.observed_BL & ~hidden_BL)

    def complete(self, images_BHWC: Tensor) -> Tensor:
        """Other images, with every known pixel put back as it was."""
        return torch.where(self.seen_BHW[..., None], self.images_BHWC, images_BHWC)


def observe(images, mask=None, *, observed: Rule = "all", image_size: int, patch_size: int) -> Observation:
    """An Observation from arrays.

    images: torch or numpy, with H = W = image_size: (B, H, W, C) or (B, C, H, W) with C 1 or 3, without B for one
    image, without C for grey ones; uint8, or floating point in [0, 1]. NaN is a missing pixel; a pixel is missing when
    one of its channels is. mask: (B, H, W), or (H, W) for all images; bool, True where a pixel is known, or numbers, 0
    where it is missing and 1, or 255, where it is known; None: everything that is not NaN.

    observed: what counts as x_S of the patches that are partly known. "all": only whole ones; the known pixels of
    the others come back untouched from every method, but the model does not see them (`dropped_pixels` counts
    them). "any": all with a known pixel, as strokes are; the rest of such a patch is what `images` has there, 0 for
    NaN, and comes back as it is.

    Raises UserError for other shapes, dtypes and values, and for (3, H, W), which can be meant in two ways.
    """
    images_BHWC = torch.from_numpy(as_images(_array(images), image_size, "images")[0]).expand(-1, -1, -1, 3)
    seen_BHW = ~images_BHWC.isnan().any(-1)
    if mask is not None:
        mask_BHW = as_mask(_array(mask), image_size, "the mask")
        if len(mask_BHW) not in (1, len(seen_BHW)):
            raise UserError(f"{len(mask_BHW)} masks for {len(seen_BHW)} images: give one, or as many of both")
        seen_BHW = seen_BHW & torch.from_numpy(mask_BHW.copy())
    share_BL = _known_share(seen_BHW, (image_size // patch_size) ** 2)
    if observed == "any":
        observed_BL = share_BL > 0
        seen_BHW = pixels_of(observed_BL, image_size)
        images_BHWC = images_BHWC.nan_to_num(0.0) * seen_BHW[..., None]
        return Observation(images_BHWC, seen_BHW, observed_BL)
    if observed != "all":
        raise UserError(f"observed is {observed!r}: set it to 'all' or 'any'")
    return Observation(torch.where(seen_BHW[..., None], images_BHWC, 0.0), seen_BHW, share_BL == 1)


def _array(values):
    """What numpy understands, of tensors of any device and dtype as well."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16


def _known_share(seen_BHW: Tensor, patches: int) -> Tensor:
    """The share of known pixels of each patch, (B, L)."""
    return patchify(seen_BHW[..., None].float(), seen_BHW.shape[1] // round(patches**0.5)).mean(-1)


def pixels_of(chosen_BL: Tensor, image_size: int) -> Tensor:
    """The pixels of chosen patches: bool (B, H, W)."""
    side = round(chosen_BL.shape[1] ** 0.5)
    grid_B1HW = chosen_BL.view(-1, 1, side, side).float()
    return F.interpolate(grid_B1HW, scale_factor=image_size // side, mode="nearest")[:, 0] > 0.5
