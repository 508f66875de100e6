"""Time the attention of one layer of biglearn_u, both phases, forward and backward, by every way to attend.

rectangles     F.scaled_dot_product_attention for each rectangle (engine.attention=sdpa)
cudnn          the same with the cuDNN backend
varlen         torch.nn.attention.varlen: one call for the inner queries, one for those that read z, which are gathered
kernel         model/packed/triton_kernel.py, one launch forward (engine.attention=triton)

The phases are those of the objective. Every way has its values and gradients compared with those of the rectangles
before it is timed.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from pathlib import Path
from statistics import mean, median
from unittest import mock

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from launch.commands.machine import machine
from model.masks import Plan, make_plans
from model.method import METHODS
from model.objective import ObjectiveConfig
from model.packed.packing import pack
from model.packed.plan import PackedLayer
from model.packed.rectangles import attend_by_rectangles
from model.transformer import Attend

try:
    from model.packed import triton_kernel, triton_long, triton_short
except ImportError:
    triton_kernel = None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

CASES = {  # width, heads and patches
    "case1": (128, 4, 64),
    "case2": (256, 8, 64),
    "celeba_base": (768, 12, 64),
    "celeba_256": (768, 12, 256),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-4}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels that are far too slow to time, but can be compared

EXAMPLES = """\
examples:
  python benchmarks/attention.py --out attention.json
  python benchmarks/attention.py --graph --cases case2 --dtypes bf16 --tune
  python benchmarks/attention.py --device cpu --cases case1 --dtypes fp32 --batches 8 --plans 1 --repeats 3
"""


def layers_of(plan: Plan, batch: int, patches: int, device: str) -> list[PackedLayer]:
    """A layer of each of the two phases that the objective makes of a plan."""
    with torch.device(device):
        packed = pack(plan, batch, patches, dense=False, method=METHODS["biglearn_u"])
    return [packed.encode.inner, packed.decode.inner]


def cudnn(*args):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return attend_by_rectangles(*args)


def varlen(layer: PackedLayer, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: tuple | None):
    """One call for the inner queries, which come first, and their own keys; one for what reads z too."""
    index = _varlen_index(layer)
    n, most = index["n_inner"], index["most_keys"]
    answers = []
    if n:
        limits = index["inner_limits"]
        answers.append(varlen_attn(q_QHK[:n], k_NHK[:n], v_NHK[:n], limits, limits, most, most))
    keys, values = k_NHK, v_NHK
    if kept is not None:
        keys, values = torch.cat([kept[0], keys]), torch.cat([kept[1], values])
    y_AHK = varlen_attn(
        q_QHK.index_select(0, index["asking_rows"]),
        keys.index_select(0, index["key_rows"]),
        values.index_select(0, index["key_rows"]),
        index["asking_limits"],
        index["key_limits"],
        index["most_asking"],
        most + 1,
    )
    y_QHK = torch.cat([*answers, y_AHK.index_select(0, index["asking_places"])])
    keep = layer.keys[layer.keep]
    rows = slice(keep[0].start, keep[-1].stop) if keep else slice(0)
    return y_QHK, (k_NHK[rows], v_NHK[rows])


@cache
def _varlen_index(layer: PackedLayer) -> dict:
    table_S8, most_keys, _ = layer.sequences
    table, device = table_S8.tolist(), table_S8.device
    n_kept = sum(segment.rows for segment in layer.kept)
    asking = [[z, *range(start, start + n)] for _, _, z, start, n, *_ in table]
    keys = [[*range(start, start + n), n_kept + z] for *_, start, n, z in table]
    asking_rows = torch.tensor([*chain.from_iterable(asking)], device=device)

    def limits(sizes: list[int]) -> Tensor:
        return torch.tensor([0, *sizes], device=device).cumsum(0).int()

    return {
        "n_inner": sum(line[1] for line in table),
        "inner_limits": limits([line[1] for line in table if line[1]]),
        "most_keys": most_keys,
        "asking_rows": asking_rows,
        "asking_places": torch.argsort(asking_rows),
        "asking_limits": limits([len(rows) for rows in asking]),
        "most_asking": max(len(rows) for rows in asking),
        "key_rows": torch.tensor([*chain.from_iterable(keys)], device=device),
        "key_limits": limits([len(rows) for rows in keys]),
    }


def tuned(block_q: int, warps: int) -> Attend:
    """The kernels with another size of a block of queries and another number of warps."""

    def attend(layer: PackedLayer, *args):
        kernels = triton_short if layer.sequences[1] <= triton_short.MOST_KEYS else triton_long
        usual = kernels.launch_options

        def options(*sizes):
            return usual(*sizes) | {"BLOCK_Q": block_q, "num_warps": warps}

        with mock.patch.object(kernels, "launch_options", options):
            return triton_kernel.attend_in_one_launch(layer, *args)

    return attend


def ways_for(device: str, dtype: str, tune: bool) -> tuple[dict[str, Attend], list[str]]:
    """The ways that can run here, rectangles first, and notes about the others."""
    ways, notes = {"rectangles": attend_by_rectangles}, []
    if device == "cuda" and dtype == "bf16":
        ways["cudnn"] = cudnn
        if varlen_attn is None:
            notes.append("varlen: this torch has no torch.nn.attention.varlen")
        else:
            ways["varlen"] = varlen
    else:
        notes.append("cudnn, varlen: only on a GPU in bf16")
    if triton_kernel is None or not (device == "cuda" or INTERPRETED):
        notes.append("kernel: it needs Triton and a GPU")
    else:
        ways["kernel"] = triton_kernel.attend_in_one_launch
        if INTERPRETED:
            notes.append("kernel: it is interpreted, so its values are compared and its time is not taken")
        if tune:
            ways |= {f"kernel q{q} w{w}": tuned(q, w) for q in (16, 32, 64) for w in (2, 4, 8)}
    return ways, notes


class Layer:
    """The queries, keys and values of one layer in both phases, and gradients to send back."""

    def __init__(self, layers: list[PackedLayer], heads: int, width: int, dtype: torch.dtype, device: str):
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int) -> Tensor:
            return torch.randn(rows, heads, width, generator=generator, device=device, dtype=dtype)

        self.layers, self.qkv, self.dy = layers, [], []
        for layer in layers:
            rows = layer.queries[-1].stop
            self.qkv.append([normal(n).requires_grad_() for n in (rows, layer.n_keys, layer.n_keys)])
            self.dy.append(normal(rows))

    def step(self, attend: Attend) -> list[Tensor]:
        """The answers and the gradients."""
        answers, kept = [], None
        for layer, qkv in zip(self.layers, self.qkv, strict=True):
            y_QHK, kept = attend(layer, *qkv, kept)
            answers.append(y_QHK)
        gradients = torch.autograd.grad(answers, [*chain.from_iterable(self.qkv)], self.dy)
        return [y_QHK.detach() for y_QHK in answers] + list(gradients)

    def error(self, attend: Attend, expected: list[Tensor]) -> float:
        """The largest relative error of an answer or a gradient."""
        pairs = zip(self.step(attend), expected, strict=True)
        return max(((value - other).float().norm() / other.float().norm()).item() for value, other in pairs)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of the step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def milliseconds(steps: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Medians of interleaved repeats."""
    times = {name: [] for name in steps}
    for repeat in range(-2, repeats):  # the first two only warm up
        for name, step in steps.items():
            if device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                step()
                end.record()
                torch.cuda.synchronize()
                elapsed = start.elapsed_time(end)
            else:
                begun = time.perf_counter()
                step()
                elapsed = 1e3 * (time.perf_counter() - begun)
            if repeat >= 0:
                times[name].append(elapsed)
    return {name: median(values) for name, values in times.items()}


def measure(options: argparse.Namespace, case: str, dtype: str, batch: int) -> list[dict]:
    """The rows of one shape: for each way the mean over the plans."""
    width, heads, patches = CASES[case]
    ways, notes = ways_for(options.device, dtype, options.tune)
    times = {name: [] for name in ways if not (INTERPRETED and name.startswith("kernel"))}
    for plan in make_plans(ObjectiveConfig(), patches, seed=0)[: options.plans]:
        layer = Layer(
            layers_of(plan, batch, patches, options.device), heads, width // heads, DTYPES[dtype], options.device
        )
        expected = layer.step(attend_by_rectangles)
        for name in list(ways):
            try:
                error = layer.error(ways[name], expected)
            except RuntimeError as refusal:
                notes.append(f"{name}: {str(refusal).splitlines()[0]}")
                del ways[name]
                times.pop(name, None)
                continue
            if not error <= TOLERANCE[dtype]:
                raise SystemExit(f"{name} is wrong: {case} {dtype} batch {batch}, error {error:.1e}")
        del expected
        steps = {name: partial(layer.step, ways[name]) for name in times}
        if options.graph:
            steps = {name: captured(step) for name, step in steps.items()}
        for name, value in milliseconds(steps, options.repeats, options.device).items():
            times[name].append(value)
    measured = machine("torch", device=options.device)
    shape = {"case": case, "dtype": dtype, "batch": batch, "graph": options.graph, "plans": options.plans}
    base = mean(times["rectangles"])
    print(f"{case:12} {dtype:5} {batch:6}", end="")
    for name, values in times.items():
        print(f"   {name} {mean(values):.3f} ({mean(values) / base:.2f})", end="")
    print("".join(f"\n    {note}" for note in notes), flush=True)
    figures = [{"way": name, "ms": mean(values), "ratio": mean(values) / base} for name, values in times.items()]
    return [shape | figure | measured for figure in figures]


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--batches", nargs="+", type=whole_number, default=[128, 1024], help="multiples of the 8 groups")
    add("--plans", type=whole_number, default=2, help="how many of the 16 plans of the default objective")
    add("--repeats", type=whole_number, default=20)
    add("--graph", action="store_true", help="time replays of CUDA graphs: no launches by the host")
    add("--tune", action="store_true", help="also other block sizes and warps of the kernel")
    add("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu tries the ways that do without")
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in training: the rectangles are not cuDNN's
    print("ms of forward and backward (ratio to the rectangles), mean of plans, each the median of interleaved repeats")
    rows = []
    for case in options.cases:
        for dtype in options.dtypes:
            for batch in options.batches:
                rows += measure(options, case, dtype, batch)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
