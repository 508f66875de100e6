"""What `auto` in the section `engine` becomes: the fastest way that the device, the model and the ranks allow."""

import os
import shutil
from importlib.util import find_spec

import torch

from data.errors import UserError
from trainer.config import Config

# FLOP of a whole run. A GPU takes minutes for them, beside which the minute that compiling takes is little.
WORTH_COMPILING = 1e17


def choose(config: Config, device: torch.device, parameters: int) -> Config:
    """The configuration as it is carried out on a device: no way of computing a step is `auto` in it.

    parameters: of the model. Raises UserError where it asks for what this machine does not have.
    """
    engine, on_gpu = config.engine, device.type == "cuda"
    has_compiler = any(shutil.which(name) for name in _compilers(device))
    if engine.attention == "triton" and not on_gpu:
        raise UserError("engine.attention=triton needs a GPU: set engine.attention=auto")
    if engine.compile is True and not has_compiler:
        raise UserError(
            f"engine.compile needs a compiler, and there is no {' and no '.join(_compilers(device))}: "
            "install one (Debian: apt install g++) or set engine.compile=auto"
        )
    attention, cuda_graphs, compiles = engine.attention, engine.cuda_graphs, engine.compile
    if attention == "auto":
        attention = "triton" if on_gpu and not config.kernel_misfit and find_spec("triton") else "sdpa"
    if cuda_graphs == "auto":
        cuda_graphs = engine.can_record
    if compiles == "auto":
        compiles = on_gpu and has_compiler and engine.can_compile and _flops(config, parameters) > WORTH_COMPILING
    chosen = {"attention": attention, "cuda_graphs": cuda_graphs and on_gpu, "compile": compiles}
    return config.model_copy(update={"engine": engine.model_copy(update=chosen)})


def ways_of(config: Config, device: torch.device) -> dict[str, str | bool]:
    """What was chosen, by the names of the configuration, and the device that it was chosen for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, **{way: getattr(config.engine, way) for way in ("attention", "cuda_graphs", "compile")}}


def _flops(config: Config, parameters: int) -> float:
    """Of the whole run, roughly: six for each parameter and token."""
    return 6.0 * parameters * config.data.patches * config.total_images


def _compilers(device: torch.device) -> list[str]:
    """Those that torch.compile looks for: on the CPU for its kernels, else for what launches Triton's."""
    environment = os.environ.get
    return [environment("CXX", "g++")] if device.type == "cpu" else [environment("CC", "gcc"), "clang"]
