"""What filling costs: a BigLearn-VAE fills at once, a joint VAE by a chain, whose error falls with its steps."""

import time

import torch
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from biglearn_vae.pictures import read_images
from data.read.stream import Stream
from evaluation.gaussian import squared_error
from evaluation.shares import gathered, share
from model.masks import STANDARD_MASKS, standard_mask
from trainer.metrics.progress import progress
from trainer.ranks.world import World

DRAWS = (1, 16)  # of a BigLearn-VAE; the filling is their mean
STEPS = (20, 50, 100, 200)  # of a chain; the filling is the mean over its second half
CHAINS = {"pseudo-Gibbs": False, "Metropolis-within-Gibbs": True}
_EVERY = 10  # steps between the states that count


def fillings_and_times(
    vae: BigLearnVAE, test: Stream, mean_HWC: Tensor, world: World, images: int, seed: int
) -> list[dict[str, str | int | float]]:
    """A row for each way, its length and each standard mask: error a pixel of what is missing, seconds an image.

    way: "in-painting" with its `draws`, or one of CHAINS with its `steps`. mean_HWC: what a chain starts from. Every
    rank takes its share of the images, which it fills 50 at a time, alone on its device. Collective.
    """
    count = min(images, test.images)
    found: dict[tuple[str, str, int], tuple[list[Tensor], list[Tensor]]] = {}
    for index_B in progress(share(count, world, portion=50), "fillings and times", shown=world.is_main):
        whole = vae.observe(read_images(test, index_B))
        for mask in STANDARD_MASKS:
            given = whole.hide(~standard_mask(mask, index_B, vae.description.data.patches))
            for way, length, filled_BHWC, seconds in _fillings(vae, given, mean_HWC, seed, index_B[0].item()):
                errors, times = found.setdefault((mask, way, length), ([], []))
                errors.append(squared_error(given, whole.images_BHWC, filled_BHWC[None])[0])
                times.append(torch.full((len(index_B),), seconds / len(index_B), dtype=torch.float64))
    rows = []
    for mask, way, length in world.gather([*found])[0]:
        error_B, seconds_B = (gathered(world, part) for part in found.get((mask, way, length), ([], [])))
        of = "steps" if way in CHAINS else "draws"
        row = {"way": way, of: length, "mask": mask, "images": count}
        rows.append(row | {"error": error_B.double().mean().item(), "seconds": seconds_B.mean().item()})
    return rows


def _fillings(vae: BigLearnVAE, given: Observation, mean_HWC: Tensor, seed: int, first_index: int):
    """(way, length, images with the missing part filled, seconds that it took) of every way that the model has."""
    how = {"seed": seed, "first_index": first_index}
    if vae.method.is_conditional:
        for draws in DRAWS:
            start = time.perf_counter()
            filled_KBHWC = vae.inpaint(given, draws=draws, **how)
            yield "in-painting", draws, filled_KBHWC.mean(0), time.perf_counter() - start
        return
    for way, metropolis in CHAINS.items():
        start = time.perf_counter()
        how |= {"burn_in": 0, "steps": _EVERY, "draws": max(STEPS) // _EVERY, "start_HWC": mean_HWC}
        states_KBHWC = vae.pseudo_gibbs(given, metropolis=metropolis, **how)
        a_state = (time.perf_counter() - start) / len(states_KBHWC)
        for steps in STEPS:
            states = steps // _EVERY
            yield way, steps, states_KBHWC[states // 2 : states].mean(0), a_state * states
