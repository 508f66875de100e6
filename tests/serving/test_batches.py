"""How jobs are gathered: in their order, what goes together together, and none for the faults of another."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch

from serving.batches import Batcher, FullError
from serving.jobs import Job


def batcher(**options) -> Batcher:
    return Batcher(None, **{"most_images": 8, "wait_s": 0.0, "most_waiting": 100, **options})


class Recorder:
    """A work that notes its batches; it waits for `go` first, and fails for a job of the seed 13."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def __call__(self, vae, jobs):
        self.go.wait()
        self.batches.append([job.seed for job in jobs])
        if any(job.seed == 13 for job in jobs):
            raise ZeroDivisionError
        return [torch.tensor(job.seed) for job in jobs]


def submitted(batches, work, seeds, **options):
    return [batches.submit(Job(work, seed=seed, **options)) for seed in seeds]


def test_what_waits_is_computed_together_in_its_order():
    work, batches = Recorder(), batcher()
    futures = submitted(batches, work, range(1))
    while batches.waiting_images:
        pass
    futures += submitted(batches, work, range(1, 12))
    work.go.set()
    assert [int(future.result()) for future in futures] == list(range(12))
    assert work.batches == [[0], [*range(1, 9)], [9, 10, 11]]
    batches.close()


def test_jobs_of_other_works_and_numbers_take_their_turn():
    one, other, batches = Recorder(), Recorder(), batcher()
    given = (None,)
    futures = submitted(batches, one, [0])
    while batches.waiting_images:
        pass
    futures += submitted(batches, one, [1, 2], given=given)
    futures += submitted(batches, other, [3], given=given)
    futures += submitted(batches, one, [4], given=given, number=2)
    futures += submitted(batches, one, [5], given=given)
    one.go.set()
    other.go.set()
    assert [int(future.result()) for future in futures] == list(range(6))
    assert one.batches == [[0], [1, 2, 5], [4]]
    assert other.batches == [[3]]
    batches.close()


def test_a_job_that_fails_fails_alone():
    work, batches = Recorder(), batcher()
    futures = submitted(batches, work, [0])
    while batches.waiting_images:
        pass
    futures += submitted(batches, work, [12, 13, 14])
    work.go.set()
    assert [int(futures[n].result()) for n in (1, 3)] == [12, 14]
    with pytest.raises(ZeroDivisionError):
        futures[2].result()
    batches.close()


def test_what_nobody_waits_for_is_not_computed():
    work, batches = Recorder(), batcher()
    first = submitted(batches, work, [0])
    while batches.waiting_images:
        pass
    (left,) = submitted(batches, work, [1])
    kept = submitted(batches, work, [2])
    assert left.cancel()
    work.go.set()
    assert [int(future.result()) for future in first + kept] == [0, 2]
    with pytest.raises(CancelledError):
        left.result()
    assert work.batches == [[0], [2]]
    batches.close()


def test_no_more_wait_than_may_and_closing_computes_what_waits():
    work, batches = Recorder(), batcher(most_waiting=3)
    futures = submitted(batches, work, [0])
    while batches.waiting_images:
        pass
    futures += submitted(batches, work, [1], number=3)
    with pytest.raises(FullError):
        batches.submit(Job(work))
    with pytest.raises(FullError):
        batches.require_room()
    work.go.set()
    batches.close()
    assert [int(future.result()) for future in futures] == [0, 1]
    with pytest.raises(FullError):
        batches.submit(Job(work))


def test_after_a_batch_of_several_the_next_one_waits_for_as_many():
    work, batches = Recorder(), batcher(wait_s=30)
    work.go.set()
    assert int(submitted(batches, work, [0])[0].result()) == 0  # alone, at once
    work.go.clear()
    first = submitted(batches, work, [1])
    while batches.waiting_images:
        pass
    first += submitted(batches, work, [2, 3])
    work.go.set()
    assert [int(future.result()) for future in first] == [1, 2, 3]
    (waits,) = submitted(batches, work, [4])
    assert not waits.done()
    submitted(batches, work, [5])[0].result()
    assert work.batches == [[0], [1], [2, 3], [4, 5]]
    batches.close()
