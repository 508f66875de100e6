"""Progress bars: of a training, and of whatever takes more than a few seconds."""

import sys
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from trainer.metrics.registry import BAR

_PAUSE = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets a line now and then
_INTERVALS = {"mininterval": _PAUSE, "maxinterval": _PAUSE, "smoothing": 0.1}


def progress(portions: Sequence, name: str, *, shown: bool) -> Iterable:
    """`portions` with a bar of its own, which appears when they take more than a few seconds and then goes."""
    return tqdm(portions, desc=name, delay=3, leave=False, disable=not shown, **_INTERVALS)


class ProgressBar:
    """A sink: images done, images/s, time left, and the ELBO, on standard error.

    heading: a line above it.
    """

    def __init__(self, images: int, total_images: int, heading: str, *, shown: bool):
        if shown:
            print(heading, file=sys.stderr, flush=True)
        self._bar = tqdm(
            initial=images,
            total=total_images,
            unit="img",
            unit_scale=True,
            desc="train",
            disable=not shown,
            **_INTERVALS,
        )

    def __call__(self, line: dict) -> None:
        if line["loss"] is not None:
            terms = {name: f"{line[name]:.2f}" for name in BAR if name in line}
            self._bar.set_postfix(terms or {"loss": f"{line['loss']:.4g}"}, refresh=False)
        self._bar.update(line["images"] - self._bar.n)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
