"""Linear probing (paper Fig. 4): how well a logistic regression tells classes from what is known of images."""

import hashlib
import warnings
from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from model.masks import observed_of_kind

Features = Callable[[Observation], np.ndarray]  # (images, features)


def features_of(vae: BigLearnVAE, mean_HWC: Tensor) -> dict[str, Features]:
    """By name: the mean of p(z | x_S), and the pixels with the mean image where nothing is known.

    The joint VAE, which has no p(z | x_S), encodes those pixels.
    """

    def filled(given: Observation) -> Tensor:
        return given.complete(mean_HWC.expand_as(given.images_BHWC))

    def codes(given: Observation) -> np.ndarray:
        known = given if vae.method.is_conditional else filled(given)
        return vae.encode(known).mu_BZ.numpy()

    def pixels(given: Observation) -> np.ndarray:
        return filled(given)[..., : 1 if _is_grey(given) else 3].flatten(1).numpy()

    name = "mean of p(z | x_S)" if vae.method.is_conditional else "z of mean-filled images"
    return {name: codes, "pixels": pixels}


def _is_grey(given: Observation) -> bool:
    first_BHW, second_BHW, third_BHW = given.images_BHWC.unbind(-1)
    return bool((first_BHW == second_BHW).all() and (second_BHW == third_BHW).all())


def with_random_patches(vae: BigLearnVAE, images_BHWC: Tensor, index_B: Tensor, s_ratio: float, seed: int):
    """Images of which a random share s_ratio of the patches is known."""
    observed_BL = observed_of_kind("random", s_ratio, index_B, vae.description.data.patches, seed)
    return vae.observe(images_BHWC).hide(~observed_BL)


def accuracy(train_NF: np.ndarray, label_N: np.ndarray, test_MF: np.ndarray, label_M: np.ndarray, pca: int = 0):
    """Share of the test images that a logistic regression on standardised features gets right.

    pca: first so many principal components of the features; 0: the features themselves. What this process was asked
    before, it remembers: pixels are the same for every model of a grid.
    """
    arrays = (train_NF, label_N, test_MF, label_M)
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    asked = content.digest(), train_NF.shape, test_MF.shape, pca
    if asked not in _answers:
        _answers[asked] = _accuracy(*arrays, pca)
    return _answers[asked]


_answers: dict[tuple, float] = {}


def _accuracy(train_NF: np.ndarray, label_N: np.ndarray, test_MF: np.ndarray, label_M: np.ndarray, pca: int) -> float:
    steps = [PCA(pca, random_state=0)] if pca else []
    probe = make_pipeline(*steps, StandardScaler(), LogisticRegression(max_iter=300))
    # Images that are all alike have no variance whose shares PCA, which looks at them, could tell.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # accuracy is settled long before the coefficients are
        probe.fit(train_NF, label_N)
    return float(probe.score(test_MF, label_M))
