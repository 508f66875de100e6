"""Training images as they are shown: mirrored or cut out at random, each time they come anew."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from data.patches import patchify, unpatchify
from data.randomness import uniform


def is_mirrored(seed: int, position_B: Tensor) -> Tensor:
    """Whether the image at each position, (B,) int64, is shown mirrored: (B,) bool, true of half of them."""
    return uniform(seed, "views", position_B, 1)[:, 0] < 0.5


def mirrored(x_BLD: Tensor, patch_size: int) -> Tensor:
    """The tokens of images mirrored left to right."""
    return patchify(unpatchify(x_BLD, patch_size).flip(2), patch_size)


class Views:
    """A pure function of an image and of (seed, position): the same for any batch, rank and number of ranks.

    flip: whether half of the images are mirrored left to right. crop: of an image a square is shown, enlarged to its
    size; its side is uniform between this share of the image's and 1, its place within the image; 1 cuts nothing.
    """

    def __init__(self, seed: int, patch_size: int, flip: bool, crop: float):
        self._seed, self._patch_size, self._flip, self._crop = seed, patch_size, flip, crop

    def __call__(self, x_BLD: Tensor, position_B: Tensor) -> Tensor:
        """The tokens of images, float32, at these positions, (B,) int64 on their device, as they are shown there."""
        x_BHWC = unpatchify(x_BLD, self._patch_size)
        if self._crop < 1:  # the first number is that of is_mirrored
            x_BHWC = self._cut(x_BHWC, uniform(self._seed, "views", position_B, 4)[:, 1:])
        if self._flip:
            is_mirrored_B111 = is_mirrored(self._seed, position_B)[:, None, None, None]
            x_BHWC = torch.where(is_mirrored_B111, x_BHWC.flip(2), x_BHWC)
        return patchify(x_BHWC, self._patch_size)

    def _cut(self, x_BHWC: Tensor, u_B3: Tensor) -> Tensor:
        size = x_BHWC.shape[1]
        side_B1 = 1 - (1 - self._crop) * u_B3[:, :1]
        first_B2 = (1 - side_B1) * u_B3[:, 1:]
        centre_N = (torch.arange(size, device=x_BHWC.device) + 0.5) / size
        row_BN, column_BN = (first_B1 + side_B1 * centre_N for first_B1 in first_B2.split(1, dim=1))
        # As grid_sample wants them: column before row, -1 .. 1 from edge to edge.
        grid_BHW2 = 2 * torch.stack(torch.broadcast_tensors(column_BN[:, None], row_BN[:, :, None]), dim=-1) - 1
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        x_BCHW = grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)
        return x_BCHW.permute(0, 2, 3, 1)
