"""What srun's environment means."""

import os

import pytest

from trainer.launcher import adopt_environment, first_host


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[3-5]", "gpu3"),
        ("gpu[003-012,20],login1", "gpu003"),
        ("gpu[07,09-11]", "gpu07"),
        ("node-1,gpu[1-2]", "node-1"),
        ("rack[1-2]-node,x[3-4]", "rack1-node"),
    ],
)
def test_the_first_host_of_a_nodelist(nodelist, host):
    assert first_host(nodelist) == host


@pytest.fixture
def environment(monkeypatch):
    """A process environment of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "WORLD", "LOCAL", "MASTER"))}
    monkeypatch.setattr(os, "environ", clean)
    return clean


STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "n[4-5]",
}  # fmt: skip


def test_a_step_of_srun(environment):
    environment.update(STEP)
    assert adopt_environment() == (5, 8, 1)
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n4"}
    assert 10_000 <= int(environment["MASTER_PORT"]) < 30_000
    environment.clear()
    environment.update(STEP | {"SLURM_STEP_ID": "3", "SLURM_PROCID": "6", "MASTER_ADDR": "elsewhere"})
    assert adopt_environment() == (6, 8, 1)
    assert environment["MASTER_ADDR"] == "elsewhere"


@pytest.mark.parametrize(
    "outside",
    [
        {},  # plain python
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # in a batch script, without srun
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # srun --pty bash
    ],
)
def test_a_world_of_one(environment, outside):
    environment.update(outside)
    assert adopt_environment() == (0, 1, 0)


def test_a_launcher_inside_a_step_comes_first(environment):
    environment.update(STEP | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    assert adopt_environment() == (1, 2, 1)
