"""The digits of scikit-learn."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from data.errors import UserError
from data.sources.samples import Samples


class Digits:
    """The 1,797 real 8x8 grey images that come with scikit-learn."""

    name = "digits"
    splits: ClassVar = {"train": 1437, "test": 360}
    channels = 1
    image_size = 32
    embedded = True
    image_files = False

    def load(self, folder: Path | None, progress: bool = False) -> dict[str, Samples]:
        if folder is not None:
            raise UserError("digits come with scikit-learn and are read from no folder: leave --source away")
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # intensities are 0 .. 16
        labels_N = bunch.target
        # Sorted by class, every fifth image is a test image: the split is stratified and never changes.
        test_N = np.zeros(len(labels_N), bool)
        test_N[np.argsort(labels_N, kind="stable")[::5]] = True
        return {
            split: Samples.from_arrays(images_NHW[chosen_N], labels_N[chosen_N], classes=10)
            for split, chosen_N in (("train", ~test_N), ("test", test_N))
        }
