"""The attention kernels compile, for which no GPU is needed: Triton's interpreter takes what a compiler refuses.

This file is also the program that compiles them, because the tests' own Triton interprets.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FLOATS = ("lse", "delta", "dz")
INTEGERS = ("_row", "_head", "max_keys", "max_queries")  # the ends of their names


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is there on Linux alone")
def test_all_kernels_compile(root):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(root)
    done = subprocess.run([sys.executable, Path(__file__)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["forward", "backward", "forward", "query_gradients", "key_gradients"]


def compile_kernels() -> None:
    """Compile each kernel for an H100, bfloat16 and heads whose width is padded, and print its name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.packed import triton_long, triton_short

    constants = {"HEADS": 3, "WIDTH": 40, "BLOCK_Q": 32, "BLOCK_K": 64}
    for name, kernel in [*vars(triton_short).items(), *vars(triton_long).items()]:
        if not name.endswith("_kernel"):
            continue
        types = dict.fromkeys(kernel.arg_names, "*bf16") | {"sequences": "*i32", "scale": "fp32"}
        types |= {key: "*fp32" for key in types if key in FLOATS} | dict.fromkeys(constants, "constexpr")
        types |= {key: "i32" for key in types if key.endswith(INTEGERS)}
        values = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
        triton.compile(ASTSource(kernel, types, values), target=GPUTarget("cuda", 90, 32))
        print(name.removeprefix("_").removesuffix("_kernel"))


if __name__ == "__main__":
    compile_kernels()
