"""What a process sets up before it computes, and what it says where it cannot."""

import ctypes
import importlib
import os
import shutil
import socket
import subprocess
import sys

import pytest

from tests.programs import ROOT

FAULTS_OF_LARGE_BLOCKS = """
import resource, sys
from launch.commands.process import prepare_process
prepare_process()

def use():
    for megabytes in (1, 40, 80):
        block = bytearray(megabytes * 2**20)

for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

WORLD_OF_ONE = """
from launch.commands.process import prepare_process
prepare_process()
import torch
torch.set_num_threads = lambda threads: print("set", threads)
from trainer.ranks.world import joined_world
with joined_world("cpu"):
    print(torch.get_num_threads())
"""


def run(root, code: str, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=inherited | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_used_again(root):
    (faults,) = run(root, FAULTS_OF_LARGE_BLOCKS)
    assert int(faults) < 1000  # 300,000 where the system gets it back


def test_one_process_takes_the_threads_that_torch_has_set_up(root):
    """torch.set_num_threads makes MKL open threads inside torch's own, which halves the speed of attention."""
    assert run(root, WORLD_OF_ONE) == [str(len(os.sched_getaffinity(0)))]


def test_a_tilde_behind_an_option_is_the_home(start, tmp_path):
    done = start("python", "launch/prepare.py", "digits", "--out=~/shards", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards/index.json").exists()


def test_as_many_files_may_be_open_as_the_system_allows(root):
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
    code += "from launch.commands.process import prepare_process; prepare_process()"
    assert run(root, code + "; print(*resource.getrlimit(resource.RLIMIT_NOFILE))") == ["256", "256"]


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"RANK": "x"}, "RANK is 'x', which is no number"),
        ({"RANK": "3"}, "RANK is 3, which is none of the 1 ranks"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR is not set"),
    ],
)
def test_leftovers_of_a_launcher_are_one_plain_line(start, tiny_file, tmp_path, found, fault):
    done = start("python", "launch/train.py", "--config", tiny_file, f"run_dir={tmp_path}", **found)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {fault}")
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_with_what_to_do(start, tiny_file, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        world |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        done = start("python", "launch/train.py", "--config", tiny_file, f"run_dir={tmp_path}", **world)
    assert done.returncode == 2
    assert "another program has the port: choose a free one with --master_port (deepspeed)" in done.stderr


def test_empty_variables_of_a_launcher_are_none(start, tiny_file, tmp_path):
    empty = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "MASTER_PORT": ""}
    done = start("python", "launch/train.py", "--config", tiny_file, f"run_dir={tmp_path / 'run'}", **empty)
    assert done.returncode == 0, done.stderr


def test_a_leftover_rank_does_not_silence_a_mistake(start, tmp_path):
    done = start("python", "launch/prepare.py", "folder", "--source", tmp_path / "absent", "--out", tmp_path, RANK="1")
    assert done.returncode == 2
    assert "absent" in done.stderr


SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("launch/**/*.py"), *ROOT.glob("benchmarks/*.py")))


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "run(main)" in (ROOT / script).read_text()])
def test_a_script_whose_checkout_is_not_installed_says_so_in_one_line(script, tmp_path):
    """-I -S: neither what is installed nor PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: No module named ")
    assert "install this checkout" in line
    assert done.returncode == 2


def test_a_script_beside_another_checkout_than_the_installed_one_is_refused(tmp_path):
    (tmp_path / "launch").mkdir()
    script = shutil.copy(ROOT / "launch/export.py", tmp_path / "launch")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{ROOT}: start the script there" in done.stderr


def test_folders_of_a_person_that_are_called_as_ours_are_not_in_the_way(tmp_path):
    """A folder is passed over; a package says that it stands before ours."""
    (tmp_path / "data").mkdir()
    program = [sys.executable, "-c", "from biglearn_vae import BigLearnVAE, observe; print(observe.__module__)"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["biglearn_vae.observation"], done.stderr
    (tmp_path / "data/__init__.py").touch()
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {tmp_path / 'data'} stands before the package data of BigLearn-VAE: start in another folder"
    )


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("data.shards", "prepare"),
        ("data.index", "load_index"),
        ("data.samples", "Source"),
        ("data.stream", "Stream"),
        ("model.capabilities", "BigLearnVAE"),
    ],
)
def test_a_module_that_has_moved_warns_and_works(old, name):
    with pytest.warns(FutureWarning, match=f"{old} is now "):
        assert getattr(importlib.import_module(old), name).__name__ == name


@pytest.mark.parametrize("script", ["prepare", "sample", "train", "evaluate", "slurm/status", "monitoring/up"])
def test_a_script_begins_without_the_slow_packages(script):
    """So that --help and mistakes answer at once."""
    program = f"import runpy, sys; runpy.run_path({str(ROOT / 'launch' / script) + '.py'!r})"
    program += "; print({'torch', 'webdataset'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_scripts_that_a_pipeline_or_a_job_starts_are_there():
    from launch.commands.stages import LAUNCH

    assert [name for name in ("prepare", "train", "encode") if not (LAUNCH / f"{name}.py").exists()] == []
