"""Jobs of one model, gathered into batches: what comes while a batch is computed is in the next one."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from biglearn_vae.capabilities import BigLearnVAE
from serving.jobs import Job

Batch = list[tuple[Job, "Future[torch.Tensor]"]]


class FullError(Exception):
    """More images wait than may."""


class Batcher:
    """One thread computes, in the order in which jobs came; with the oldest one all that go with it, up to a bound.

    After a batch of several jobs the next one waits until as many images have come again, at most wait_s seconds from
    when its oldest job came; after a job alone, none waits. most_images: of a batch. most_waiting: images. took: is
    told of each batch its images.
    """

    def __init__(
        self,
        vae: BigLearnVAE,
        *,
        most_images: int,
        wait_s: float,
        most_waiting: int,
        took: Callable[[int], None] = lambda images: None,
    ):
        self._vae, self._most_images, self._wait_s, self._most_waiting = vae, most_images, wait_s, most_waiting
        self._took = took
        self._waiting: deque[tuple[Job, Future[torch.Tensor], float]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._expected = 0  # images, by the batch before
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting_images(self) -> int:
        with self._changed:
            return self._count()

    def require_room(self) -> None:
        """FullError when no image more may wait."""
        if self.waiting_images >= self._most_waiting:
            raise FullError

    def submit(self, job: Job) -> "Future[torch.Tensor]":
        """Its result, when it is there. Raises FullError."""
        future: Future[torch.Tensor] = Future()
        with self._changed:
            if self._is_closed or self._count() + job.images > self._most_waiting:
                raise FullError
            self._waiting.append((job, future, time.monotonic()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Compute what waits, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _count(self) -> int:
        return sum(job.images for job, _, _ in self._waiting)

    def _run(self) -> None:
        while batch := self._next():
            images = sum(job.images for job, _ in batch)
            self._took(images)
            self._expected = images if len(batch) > 1 else 0
            self._compute(batch)

    def _compute(self, batch: Batch) -> None:
        jobs = [job for job, _ in batch]
        try:
            results = jobs[0].work(self._vae, jobs)
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for each in batch:  # that one cannot be computed is no fault of the others
                self._compute([each])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    def _next(self) -> Batch:
        """The next batch; empty when nothing waits any more and nothing will come."""
        with self._changed:
            while True:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                oldest = self._waiting[0][2] + self._wait_s
                while not self._is_closed and self._count() < min(self._expected, self._most_images):
                    left = oldest - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                if batch := self._take():
                    return batch

    def _take(self) -> Batch:
        first, images = self._waiting[0][0], 0
        taken: Batch = []
        left: deque[tuple[Job, Future[torch.Tensor], float]] = deque()
        for job, future, came in self._waiting:
            fits = not taken or images + job.images <= self._most_images
            if not (job.goes_with(first) and fits):
                left.append((job, future, came))
            elif future.set_running_or_notify_cancel():  # nobody waits for it otherwise
                taken.append((job, future))
                images += job.images
        self._waiting = left
        return taken
