"""What a process of ours sets for itself before torch is imported."""

import ctypes
import os
import resource
from contextlib import suppress


def prepare_process() -> None:
    """Threads that wait sleep, freed memory is kept, and shards may stay open. Call it before torch is imported."""
    # OpenMP's threads spin while they wait for one another, by default for milliseconds: where cores are shared with
    # other ranks or jobs, that spins the work away. After 10,000 rounds (some 20 microseconds) they sleep: the same
    # speed on idle cores, and many times the speed on shared ones. libgomp reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _keep_freed_memory()
    _allow_open_files()


def _keep_freed_memory() -> None:
    """Let a step write into the memory of the one before.

    By itself glibc gives much of it back to the system after each step, which then clears as many pages for the next
    one: 30,000 in a step of `biglearn_u` with configs/mnist_case2.yaml. Other C libraries have no mallopt.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # as in malloc.h
        libc.mallopt(m_trim_threshold, -1)  # the end of the heap is never given back
        libc.mallopt(m_mmap_max, 0)  # and large blocks lie in the heap


def _allow_open_files() -> None:
    """Each shard of a data set stays open, and shells allow 1,024 files where the system allows many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # where the system allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
