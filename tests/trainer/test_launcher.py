"""What srun's environment means."""

import os
import shutil

import pytest

from data.errors import RankError
from trainer.ranks.launcher import adopt_environment, first_host, parse_first_host

NODELISTS = {
    "a": "a",
    "a,b": "a",
    "gpu[3-5]": "gpu3",
    "gpu[003-012,20],login1": "gpu003",
    "gpu[07,09-11]": "gpu07",
    "node-1,gpu[1-2]": "node-1",
    "node-1.site.org": "node-1.site.org",
    "rack[1-2]-node,x[3-4]": "rack1-node",
    "rack[0-1]node[0-3]": "rack0node0",
    "x1000c[0-1]s[4-7]b0n0,y1": "x1000c0s4b0n0",
    "r[10,12-13]c[2]n[007-009]-ib,z": "r10c2n007-ib",
}


@pytest.mark.parametrize("nodelist", NODELISTS)
def test_the_first_host_of_a_nodelist(nodelist, monkeypatch):
    assert parse_first_host(nodelist) == NODELISTS[nodelist]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert first_host(nodelist) == NODELISTS[nodelist]


@pytest.mark.skipif(not shutil.which("scontrol"), reason="scontrol is not on this machine")
def test_scontrol_says_the_same(monkeypatch, tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=localhost\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    from trainer.ranks import launcher

    monkeypatch.setattr(launcher, "parse_first_host", lambda nodelist: "our own")
    found = {nodelist: first_host(nodelist) for nodelist in NODELISTS}
    assert {
        nodelist: host for nodelist, host in NODELISTS.items() if found[nodelist] != "our own"
    }.items() <= found.items()
    assert (found["gpu[003-012,20],login1"], found["rack[0-1]node[0-3]"]) == ("gpu003", "rack0node0")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "absent"))
    monkeypatch.setattr(launcher, "_SCONTROL_S", 1)  # which looks for one in the network
    assert first_host("a,b") in ("a", "our own")  # an old one needs no configuration


@pytest.mark.parametrize("program", ["exit 1", "exit 0", "no script"])
def test_a_scontrol_that_does_not_answer_is_not_needed(program, monkeypatch, tmp_path):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{program}\n" if "exit" in program else "\0")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert first_host("rack[0-1]node[0-3]") == "rack0node0"


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


WORLD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "n4", "MASTER_PORT": "11000"}


@pytest.mark.parametrize(
    "outside",
    [
        {},  # plain python
        dict.fromkeys(WORLD, ""),
        {"RANK": " ", "WORLD_SIZE": ""},
        {"RANK": "0", "LOCAL_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_PROCID": ""},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # in a batch script, without srun
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # srun --pty bash
    ],
)
def test_a_world_of_one(environment, outside):
    environment.update(outside)
    assert adopt_environment() == (0, 1, 0)


def test_one_rank_a_node_needs_no_local_rank(environment):
    environment.update({name: value for name, value in WORLD.items() if name != "LOCAL_RANK"})
    assert adopt_environment() == (1, 2, 0)


def test_numbers_of_jobs_may_be_long(environment):
    environment.update(STEP | {"SLURM_JOB_ID": "1073741900", "SLURM_STEP_ID": "4294967290"})
    assert adopt_environment() == (5, 8, 1)
    assert 10_000 <= int(environment["MASTER_PORT"]) < 30_000


def test_a_launcher_inside_a_step_comes_first(environment):
    environment.update(STEP | WORLD)
    assert adopt_environment() == (1, 2, 1)


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"RANK": "3"}, "RANK is 3, which is none of the 1 ranks"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1"),
        ({"RANK": "one"}, "RANK is 'one'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "9" * 5000}, "RANK is '999"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "0"}, "none of the 0 ranks"),
        (WORLD | {"RANK": "2"}, "RANK is 2, which is none of the 2 ranks"),
        (WORLD | {"RANK": ""}, "RANK is not set"),
        (WORLD | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        (WORLD | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (WORLD | {"MASTER_PORT": "70000"}, "MASTER_PORT is 70000, which is no port"),
        (WORLD | {"MASTER_PORT": "0"}, "MASTER_PORT is 0, which is no port"),
        (STEP | {"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "8(x2)"}, "SLURM_STEP_NUM_TASKS is '8\\(x2\\)'"),
        ({name: value for name, value in STEP.items() if name != "SLURM_STEP_NODELIST"}, "NODELIST is not set"),
    ],
)
def test_what_no_launcher_leaves_so_is_said_with_what_to_do(environment, found, fault):
    environment.update(found)
    with pytest.raises(
        RankError, match=f"{fault}.*launcher .*unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"
    ):
        adopt_environment()
