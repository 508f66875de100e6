"""How well missing parts are filled: the model, the ways a joint VAE has, and what needs no network at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from biglearn_vae.pictures import panels, sheet, shown
from evaluation.gaussian import ConditionalGaussian, squared_error
from model.masks import STANDARD_MASKS, standard_mask

DRAWN = "in-painting, drawn z"
_SHOWN = ("in-painting, mean z", DRAWN, "mean filling", "pseudo-Gibbs", "Gaussian")

# (what is known, number of the first image) -> images with the missing part filled, (draws, B, H, W, 3)
Filler = Callable[[Observation, int], Tensor]


@dataclass(frozen=True)
class References:
    """Training images, for what fills without a network.

    mean_HWC: their mean. images_NHWC: some of them. gaussian: fitted to them.
    """

    mean_HWC: Tensor
    images_NHWC: Tensor
    gaussian: ConditionalGaussian


def fillers(vae: BigLearnVAE, references: References, draws: int, seed: int) -> dict[str, Filler]:
    """By name: what the model can do, and the baselines."""
    return {**fillers_of(vae, references.mean_HWC, draws, seed), **baselines(references)}


def fillers_of(vae: BigLearnVAE, mean_HWC: Tensor, draws: int, seed: int) -> dict[str, Filler]:
    """By name. A BigLearn-VAE in-paints and infers; a joint VAE gets its missing part by the ways of its peers."""
    if not vae.method.is_conditional:

        def chain(given: Observation, first_index: int) -> Tensor:
            return vae.pseudo_gibbs(given, draws=draws, start_HWC=mean_HWC, seed=seed, first_index=first_index)

        def through_z(filled_BHWC: Tensor) -> Tensor:
            return vae.decode(vae.encode(filled_BHWC).mu_BZ)

        return {
            "zero filling": _once(lambda given: through_z(given.images_BHWC)),
            "mean filling": _once(lambda given: through_z(given.complete(mean_HWC.expand_as(given.images_BHWC)))),
            "pseudo-Gibbs": chain,
        }

    def draw(given: Observation, first_index: int) -> Tensor:
        return vae.inpaint(given, draws=draws, seed=seed, first_index=first_index)

    return {
        "in-painting, mean z": _once(lambda given: vae.inpaint(given, draws=0)[0]),
        DRAWN: draw,
        "inference, mean z": _once(lambda given: vae.infer(given, draws=0)[0]),
    }


def baselines(references: References) -> dict[str, Filler]:
    """By name: what fills without a network."""
    return {
        "Gaussian": _once(references.gaussian.fill),
        "mean image": _once(lambda given: references.mean_HWC.expand_as(given.images_BHWC)),
        "nearest neighbour": _once(lambda given: nearest(given, references.images_NHWC)),
    }


def _once(fill: Callable[[Observation], Tensor]) -> Filler:
    return lambda given, _: given.complete(fill(given))[None]


def nearest(given: Observation, images_NHWC: Tensor) -> Tensor:
    """Of the images, the one nearest to each observation, by the squared distance of the known pixels."""
    known_BP, x_BP = (given.seen_BHW[..., None] * torch.ones(3)).flatten(1), given.images_BHWC.flatten(1)
    other_NP = images_NHWC.flatten(1)
    distance_BN = known_BP @ other_NP.square().T - 2 * x_BP @ other_NP.T  # x is zero where nothing is known
    return images_NHWC[distance_BN.argmin(1)]


def scores(given: Observation, images_BHWC: Tensor, filled_KBHWC: Tensor) -> dict[str, Tensor]:
    """Of the missing part of each image, (B,) each, means over the draws.

    error: mean squared error a pixel and channel. psnr: 10 log10(1 / error), dB. ssim: mean of the map of structural
    similarity (Wang et al. 2004, Gaussian window, sigma 1.5). diversity: root of the mean variance over the draws, 0
    for a single one.
    """
    missing_BHW = ~given.seen_BHW
    size_B = missing_BHW.sum((1, 2))

    def of_missing(value: Tensor) -> Tensor:
        """Means over the missing pixels of (..., B, H, W)."""
        return (value * missing_BHW).sum((-1, -2)) / size_B

    error_KB = squared_error(given, images_BHWC, filled_KBHWC)
    ssim_KB = torch.stack([of_missing(_similarity(filled, images_BHWC)) for filled in filled_KBHWC.clamp(0, 1)])
    variance_BHW = filled_KBHWC.var(0, correction=0).mean(-1)
    return {
        "error": error_KB.mean(0),
        "psnr": (-10 * error_KB.clamp(min=1e-10).log10()).mean(0),
        "ssim": ssim_KB.mean(0),
        "diversity": of_missing(variance_BHW).sqrt(),
    }


def filling_sheet(vae: BigLearnVAE, ways: Mapping[str, Filler], images_BHWC: Tensor) -> Image.Image:
    """Images without what each standard mask hides, and how the model and the Gaussian fill them, row below row."""
    whole, chosen = vae.observe(images_BHWC), [name for name in _SHOWN if name in ways]
    rows = [("test images", images_BHWC)]
    for mask in STANDARD_MASKS:
        given = whole.hide(~standard_mask(mask, torch.arange(len(whole)), vae.description.data.patches))
        rows += [(mask, shown(given)), *((name, ways[name](given, 0)[0]) for name in chosen)]
    return panels([sheet(rows[:1], ""), sheet(rows[1:], "", group=1 + len(chosen))], "Fillings of four standard masks")


def _similarity(one_BHWC: Tensor, other_BHWC: Tensor) -> Tensor:
    """The map of structural similarity, mean over the channels, (B, H, W)."""
    side = one_BHWC.shape[1]
    # With Gaussian weights the size of the window only says which images are refused as too small.
    how = {"channel_axis": -1, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "full": True}
    how["win_size"] = min(11, side - 1 + side % 2)
    pairs = zip(one_BHWC.numpy(), other_BHWC.numpy(), strict=True)
    maps = [structural_similarity(one, other, use_sample_covariance=False, **how)[1] for one, other in pairs]
    return torch.from_numpy(np.stack(maps)).mean(-1)
