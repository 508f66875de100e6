"""Images that are read at random, in which a sound one stands in for a damaged one."""

import logging
import threading
from abc import ABC, abstractmethod

import numpy as np

from data.errors import UserError
from data.order.parts import Part
from data.sources.images import DamagedImageError

log = logging.getLogger(__name__)


class SoundImages(ABC):
    """Random access to a part of a split, from any thread.

    A damaged image is replaced by the next sound one of the part, index + 1, + 2, ..., around the end of the split: the
    same on every rank. It is logged once.

    images: of the whole split. content_shape, content_dtype: of one image. damaged: index in the split to one line that
    says where the image lies and why it cannot be used, of the damaged images found so far.
    """

    def __init__(self, images: int, content_shape: tuple[int, ...], content_dtype: np.dtype, part: Part):
        self.images = images
        self.content_shape, self.content_dtype = content_shape, content_dtype
        self.damaged: dict[int, str] = {}
        self._part = part
        self._lock = threading.Lock()

    def read(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, H, W, C) uint8 or codes (B, L, D) float16, and their labels (B,) int64.

        Raises UserError if no image is sound.
        """
        self.expect(index_B)
        content_BN = np.empty((len(index_B), *self.content_shape), self.content_dtype)
        label_B = np.empty(len(index_B), np.int64)
        for row, index in enumerate(index_B.tolist()):
            label_B[row] = self._read_sound(index, content_BN[row])
        return content_BN, label_B

    @abstractmethod
    def expect(self, index_B: np.ndarray) -> None:
        """These will be read soon."""

    @abstractmethod
    def damaged_error(self, limit: int) -> UserError:
        """For a run that accepts at most `limit` damaged images and found more."""

    @abstractmethod
    def close(self) -> None:
        """Nothing will be read any more."""

    @abstractmethod
    def _read_image(self, index: int, content_N: np.ndarray) -> int:
        """Read an image, and return its label. Raises DamagedImageError."""

    @abstractmethod
    def _name(self, index: int) -> str:
        """Where an image lies."""

    @abstractmethod
    def _none_sound(self) -> UserError:
        """For a part without a sound image."""

    def _read_sound(self, index: int, content_N: np.ndarray) -> int:
        """Read an image, or the one that stands in for it; the label of what was read."""
        faults = {}
        for step in range(self.images):
            sound = (index + step) % self.images
            if sound in self.damaged or not self._part.has(sound):
                continue
            try:
                label = self._read_image(sound, content_N)
            except DamagedImageError as error:
                faults[sound] = str(error)
            else:
                break
        else:
            raise self._none_sound()
        with self._lock:
            for damaged, fault in faults.items():
                if damaged not in self.damaged:  # another thread may have met it, too
                    self.damaged[damaged] = f"{self._name(damaged)}: {fault}"
                    log.warning("%s; image %d stands in", self.damaged[damaged], sound)
        return label

    def _first_damaged(self) -> tuple[int, str]:
        """How many damaged images were found, and the line of the first."""
        with self._lock:  # threads may go on reading
            return len(self.damaged), self.damaged[min(self.damaged)]
