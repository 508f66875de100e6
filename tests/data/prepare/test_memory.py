"""How much memory there is, and how many processes write shards with it."""

import os

import pytest

from data.prepare.memory import available_bytes
from data.prepare.writing import default_workers
from data.sources import SOURCES

GIB = 2**30


def machine(root, files):
    for name, content in ({"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:  {8 * 2**20} kB\n"} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": "max\n"}, 8 * GIB),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        ({"proc/self/cgroup": "7:cpu:/\n4:memory:/a\n0::/\n", f"{V1}/a/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "4:memory:/of/the/host\n", f"{V1}/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        ({"proc/self/cgroup": "4:memory:/a\n", f"{V1}/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, 8 * GIB),
    ],
)
def test_the_least_of_what_is_free_and_what_is_allowed(tmp_path, files, expected):
    assert available_bytes(machine(tmp_path, files)) == expected


def test_a_machine_that_says_nothing_does_not_limit(tmp_path):
    assert available_bytes(tmp_path) > 2**50
    assert GIB // 64 < available_bytes() < 2**50


@pytest.mark.parametrize(
    ("source", "image_size", "memory", "expected"),
    [
        ("folder", 64, 100 * GIB, 16),
        ("folder", 64, 4 * GIB, 3),
        ("folder", 64, GIB // 2, 1),
        ("folder", 1024, 100 * GIB, 9),  # a record has 3 GiB
        ("mnist", 32, 2 * GIB, 7),
        ("digits", 32, 100 * GIB, 1),
    ],
)
def test_workers_follow_cores_and_memory(monkeypatch, source, image_size, memory, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    monkeypatch.setattr("data.prepare.writing.available_bytes", lambda: memory)
    assert default_workers(SOURCES[source], image_size) == expected
