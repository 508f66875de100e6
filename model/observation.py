"""What is known of a batch of images: pixels in [0, 1], which of them are there, and which patches that makes x_S."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import UserError
from data.patches import patchify

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

    images: torch or numpy, (B, H, W, 3), (B, H, W, 1) or (B, H, W) with H = W = image_size; uint8, or floating
    point in [0, 1]. NaN is a missing pixel; a pixel is missing when one of its channels is. mask: bool, (B, H, W),
    True where a pixel is known; None: everything that is not NaN.

    observed: what counts as x_S of the patches that are partly known. "all": only whole ones; the known pixels of
    the others come back untouched from every method, but the model does not see them (`dropped_pixels` counts
    them). "any": all with a known pixel, as strokes are; the rest of such a patch is what `images` has there, 0 for
    NaN, and comes back as it is.

    Raises UserError for other shapes, dtypes and values.
    """
    images = _tensor(images)
    if images.dim() == 3:
        images = images[..., None]
    if images.dim() != 4 or images.shape[3] not in (1, 3) or images.shape[1:3] != (image_size, image_size):
        wanted = f"(B, {image_size}, {image_size}, 3), or with one channel or none"
        raise UserError(f"images are {tuple(images.shape)}, the model needs {wanted}: resize or reshape them")
    if images.dtype == torch.uint8:
        images_BHWC = images.float() / 255
    elif images.is_floating_point():
        images_BHWC = images.float()
    else:
        raise UserError(f"images are {images.dtype}, the model needs uint8, or floating point in [0, 1]")
    images_BHWC = images_BHWC.expand(-1, -1, -1, 3)
    seen_BHW = ~images_BHWC.isnan().any(-1)
    known = images_BHWC[seen_BHW]
    if known.numel() and not 0 <= known.min() <= known.max() <= 1:
        low, high = known.min().item(), known.max().item()
        raise UserError(
            f"images have values from {low:.7g} to {high:.7g}: scale them to [0, 1], or clamp what leaves it by a "
            "little; NaN is a missing pixel"
        )
    if mask is not None:
        mask = _tensor(mask)
        if mask.shape != seen_BHW.shape or mask.dtype != torch.bool:
            raise UserError(f"the mask is {mask.dtype} {tuple(mask.shape)}, not bool {tuple(seen_BHW.shape)}")
        seen_BHW = seen_BHW & mask
    share_BL = _known_share(seen_BHW, (image_size // patch_size) ** 2)
    if observed == "any":
        observed_BL = share_BL > 0
        seen_BHW = pixels_of(observed_BL, image_size)
        images_BHWC = images_BHWC.nan_to_num(0.0) * seen_BHW[..., None]
        return Observation(images_BHWC, seen_BHW, observed_BL)
    if observed != "all":
        raise UserError(f"observed is {observed!r}: set it to 'all' or 'any'")
    return Observation(torch.where(seen_BHW[..., None], images_BHWC, 0.0), seen_BHW, share_BL == 1)


def _tensor(values) -> Tensor:
    """Of torch or numpy, on the CPU, outside of autograd."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.as_tensor(np.require(values, requirements="W"))  # torch warns of memory that is read-only
    except (TypeError, ValueError):
        raise UserError("images and masks are arrays of numbers of one shape each: stack them in one array") from None


def _known_share(seen_BHW: Tensor, patches: int) -> Tensor:
    """The share of known pixels of each patch, (B, L)."""
    return patchify(seen_BHW[..., None].float(), seen_BHW.shape[1] // round(patches**0.5)).mean(-1)


def pixels_of(chosen_BL: Tensor, image_size: int) -> Tensor:
    """The pixels of chosen patches: bool (B, H, W)."""
    side = round(chosen_BL.shape[1] ** 0.5)
    grid_B1HW = chosen_BL.view(-1, 1, side, side).float()
    return F.interpolate(grid_B1HW, scale_factor=image_size // side, mode="nearest")[:, 0] > 0.5
