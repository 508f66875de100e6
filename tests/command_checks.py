"""How each command that is shown is checked: what is quick runs, of the rest the arguments and what they name.

`check` is called in a folder that has what commands take for granted: tests/test_commands.py makes it.
"""

import itertools
import os
import re
import shlex
import subprocess
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml

from data.errors import UserError
from data.storage.addresses import require_addresses
from launch.commands.stages import Stages
from model.method import METHODS
from reproduction.grid import load_grid
from tests.mutations import MUTATIONS
from tests.programs import BIN, ROOT
from tests.shown import shown_commands
from trainer.build import meta_task
from trainer.choices import choose
from trainer.config import Config, load_config

ROOMS = ("benchmarks", "configs", "docs", "launch", "tests")
PLACEHOLDERS = {
    "DIR": "folder",
    "RUN": "runs/digits_8x8-biglearn_u",
    "OTHER": "runs/digits_8x8-vae",
    "FILE": "configs/clusters/modules.yaml",
    "NAME": "digits",
    "N": "2",
}


@dataclass(frozen=True)
class Call:
    """A script of ours, what stands behind it, and as how many processes a launcher starts it."""

    script: str
    arguments: list[str]
    environment: dict[str, str]
    ranks: int = 1

    @property
    def module(self):
        return import_module(self.script.removesuffix(".py").replace("/", "."))


def check(text: str) -> None:
    """Fail where a single command would."""
    words = shlex.split(text)
    environment = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    program, *words = [PLACEHOLDERS.get(word, word) for word in words]
    if ">" in words:
        words, (target,) = words[: words.index(">")], words[words.index(">") + 1 :]
        assert Path(target).parent.is_dir()
    for word in words:
        require_there(word.partition("=")[2] if "=" in word else word)
    if rule := run_line if words[:1] == ["-c"] else SHELL.get(program):
        return rule(text, words)
    call = called(program, words, environment)
    if call.script not in SCRIPTS:
        pytest.fail(
            f"nothing says how to check a command of {call.script}: add it to SCRIPTS in tests/command_checks.py"
        )
    if "--help" in call.arguments:
        return None
    return SCRIPTS[call.script](call)


def called(program: str, words: list[str], environment: dict[str, str]) -> Call:
    """What a launcher starts, by its own reading of its arguments."""
    if program == "python" and words[0] == "-m":
        return Call(f"{words[1].replace('.', '/')}.py", words[2:], environment)
    if program == "python":
        return Call(words[0], words[1:], environment)
    if program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        options = parse_args(words)
        return Call(options.user_script, options.user_args, environment, max(1, int(options.num_gpus)))
    if program == "torchrun":
        from torch.distributed.run import parse_args

        options = parse_args(words)
        return Call(options.training_script, options.training_script_args, environment, int(options.nproc_per_node))
    return pytest.fail(f"nothing says how to check {program}: add it to SHELL or `called` in tests/command_checks.py")


# What stands in a command.


def require_there(word: str) -> None:
    """A path that is ours exists, or some configuration or command that is shown writes it."""
    top = word.partition("/")[0]
    if top in ROOMS and "/" in word:
        assert Path(word).exists(), word
    if top == "runs" and "/" in word:
        assert word in runs() or word in sweeps(), f"no configuration and no command that is shown makes {word}"
    if top == "datasets" and "/" in word:
        folder = "/".join(word.split("/")[:2])
        assert folder in datasets(), f"no configuration and no command that is shown makes {folder}"


@cache
def runs() -> dict[str, Config]:
    """The run directories of the configurations, with each method, and of the commands that set run_dir."""
    configs = []
    for path in sorted(ROOT.glob("configs/*.yaml")):
        config = load_config(path)
        methods = METHODS if config.method in METHODS else ()
        configs += [config, *(load_config(path, [f"method={method}"]) for method in methods)]
    for shown in shown_commands():
        if "run_dir=" in shown.line and "--config " in shown.line:
            with suppress(UserError):  # which its own test shows
                configs += _configs_of(shown.line.split())
    return {config.run_dir: config for config in configs}


def _configs_of(words: list[str]) -> list[Config]:
    """What a command of one training, or of both stages, trains."""
    path, overrides = ROOT / words[words.index("--config") + 1], [word for word in words if "=" in word]
    if "launch/pipeline.py" not in words:
        return [load_config(path, overrides)]
    stages = Stages.load(str(path), overrides)
    return [stages.stage_1, stages.stage_2]


@cache
def sweeps() -> set[str]:
    return {yaml.safe_load(path.read_text())["run_dir"] for path in ROOT.glob("configs/reproduction/*.yaml")}


@cache
def datasets() -> set[str]:
    written = (re.search(r"launch/prepare\.py .*--out (\S+)", shown.line) for shown in shown_commands())
    read = ((config.data.shards, config.data.latents) for config in runs().values())
    return {found[1] for found in written if found}.union(*read)


def require_fit(config: Config, ranks: int) -> None:
    """The batch splits over so many ranks, and a GPU has the ways that are asked for."""
    assert config.micro_batch_size(ranks)
    with patch.dict(os.environ, CC="sh"):  # a compiler that is everywhere, for engine.compile=true
        choose(config, torch.device("cuda"), parameters=0)


# The programs of others.


def run_line(text: str, words: list[str]) -> None:
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(text, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_make(text: str, words: list[str]) -> None:
    (target,) = words
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_pytest(text: str, words: list[str]) -> None:
    """Each word of -k is in the name of a test or its file, the marker of -m at one."""
    parser = ArgumentParser()
    for option in ("-k", "-m", "-n", "--dist"):
        parser.add_argument(option)
    parser.add_argument("paths", nargs="*", default=["tests"])
    options = parser.parse_intermixed_args(words)
    files = [file for path in map(Path, options.paths) for file in ([path] if path.is_file() else path.rglob("*.py"))]
    assert files
    texts = [file.read_text() for file in files]
    names = [*map(str, files), *(name for each in texts for name in re.findall(r"^def (test_\w+)", each, re.MULTILINE))]
    for word in set(re.findall(r"\w+", options.k or "")) - {"and", "or", "not"}:
        assert any(word in name for name in names), f"no test is called {word}"
    for marker in re.findall(r"\w+", options.m or ""):
        assert any(f"mark.{marker}" in each for each in texts), f"no test is marked {marker}"


def check_of_debian(text: str, words: list[str]) -> None:
    """The packages, or the services of the same names, are those that the tests of the cluster install."""
    names = set(words) - {"apt", "install", "systemctl", "disable", "--now"}
    assert names <= set((ROOT / ".ci/run").read_text().split())


def check_compose(text: str, words: list[str]) -> None:
    compose, option, file, action = words
    assert (compose, option, action) == ("compose", "-f", "up")
    assert yaml.safe_load(Path(file).read_text())["services"]


def check_activate(text: str, words: list[str]) -> None:
    (path,) = words
    assert f"BIN := {Path(path).parent}\n" in (ROOT / "Makefile").read_text()


def check_program(text: str, words: list[str]) -> None:
    assert os.access(ROOT / text, os.X_OK)


def check_module_of_python(text: str, words: list[str]) -> None:
    assert words[0] == "-m"
    assert find_spec(words[1])


SHELL: dict[str, Callable[[str, list[str]], None]] = {
    ".": check_activate,
    ".ci/run": check_program,
    "docker": check_compose,
    "make": check_make,
    "pytest": check_pytest,
    "python3": check_module_of_python,
    "sudo": check_of_debian,
    "tar": run_line,
}


# Our own.


class Parsed(BaseException):
    """A script has read its arguments."""


def parsed(call: Call) -> Namespace:
    """What a script makes of its arguments. It goes no further."""

    def stop_after(parse: Callable) -> Callable:
        def stop(parser: ArgumentParser, arguments: list[str]) -> None:
            raise Parsed(parse(parser, arguments))

        return stop

    ways = {name: stop_after(getattr(ArgumentParser, name)) for name in ("parse_args", "parse_intermixed_args")}
    with patch.multiple(ArgumentParser, **ways), pytest.raises(Parsed) as stopped:
        call.module.main(call.arguments)
    return stopped.value.args[0]


def run_it(call: Call) -> None:
    assert not call.module.main(call.arguments)


def run_dry(call: Call) -> None:
    dry = [] if "--dry-run" in call.arguments else ["--dry-run"]
    # As if the data were prepared.
    with patch("biglearn_vae.images.open_codec"), patch("biglearn_vae.images.open_index"):
        assert call.module.main([*call.arguments, *dry]) == 0


def check_training(call: Call) -> None:
    options = parsed(call)
    config = load_config(options.config, options.overrides)
    require_fit(config, call.ranks)
    meta_task(config)


def check_preparation(call: Call) -> None:
    command = parsed(call).command
    if command == "verify":
        run_it(call)
    elif command == "index":
        require_addresses("::".join(parsed(call).shards))
    elif command == "digits":
        with chdir("folder"):
            run_it(call)


def check_evaluation(call: Call) -> None:
    with patch.multiple(call.module, evaluate=lambda options: 0, compare=lambda *compared: 0):
        run_it(call)


def check_replay(call: Call) -> None:
    options = parsed(call)
    assert 1 <= options.step <= runs()[options.run].steps


def check_stage_1(option: str) -> Callable[[Call], None]:
    """What the option names is a run of stage 1."""

    def check_run(call: Call) -> None:
        assert runs()[getattr(parsed(call), option)].method == "patch_ae"

    return check_run


def check_throughput(call: Call) -> None:
    options = parsed(call)
    for case, method, mode, engine in itertools.product(options.cases, options.methods, options.modes, options.engines):
        config = call.module.config_of(case, method, mode, (f"engine.name={engine}", *options.overrides))
        require_fit(config, call.ranks)


def check_reproduction(call: Call) -> None:
    """The runs of a grid, on what a person has prepared."""
    options = parsed(call)
    if options.grid:
        for config in load_grid(options.grid, options.overrides)[1]:
            require_fit(config, call.ranks)


def check_mutants(call: Call) -> None:
    assert {*parsed(call).names} <= {mutation.name for mutation in MUTATIONS}


def check_fault(call: Call) -> None:
    _, target, *_ = call.environment["FAULT"].split()
    if target != "TARGET":
        module, _, name = target.partition(":")
        assert hasattr(import_module(module), name)


def check_words(*expected: str) -> Callable[[Call], None]:
    """For a script that has no options."""

    def check_those(call: Call) -> None:
        assert call.arguments == [*expected]

    return check_those


SCRIPTS: dict[str, Callable[[Call], object]] = {
    "benchmarks/attention.py": parsed,
    "benchmarks/exporter.py": check_training,
    "benchmarks/gpu.py": parsed,
    "benchmarks/patch_autoencoder.py": check_stage_1("run"),
    "benchmarks/scaling.py": parsed,
    "benchmarks/scaling_check.py": parsed,
    "benchmarks/serving.py": parsed,
    "benchmarks/shuffle.py": parsed,
    "benchmarks/stream.py": parsed,
    "benchmarks/tars.py": parsed,
    "benchmarks/throughput.py": check_throughput,
    "docs/make.py": check_words(),
    "launch/encode.py": check_stage_1("patch_autoencoder"),
    "launch/evaluate.py": check_evaluation,
    "launch/export.py": run_it,
    "launch/figures.py": parsed,
    "launch/monitoring/dashboards.py": check_words(),
    "launch/monitoring/preview.py": parsed,
    "launch/monitoring/up.py": parsed,
    "launch/page.py": parsed,
    "launch/pipeline.py": run_dry,
    "launch/prepare.py": check_preparation,
    "launch/replay.py": check_replay,
    "launch/reproduce.py": check_reproduction,
    "launch/sample.py": run_it,
    "launch/serve.py": parsed,
    "launch/slurm/cancel.py": parsed,
    "launch/slurm/status.py": parsed,
    "launch/slurm/submit.py": run_dry,
    "launch/train.py": check_training,
    "tests/faults.py": check_fault,
    "tests/mutants.py": check_mutants,
    "tests/nursery.py": check_words("SOCKET"),
    "tests/slurm/cluster.py": parsed,
    "tests/trainer/test_golden_losses.py": check_words(),
}
