"""Time the attention of one layer, forward and backward, in the forms that a packed matrix allows.

rectangles     F.scaled_dot_product_attention for each rectangle, with concatenated keys, as model/packed.py does it
cudnn          the same with the cuDNN backend
varlen         torch.nn.attention.varlen: one call for the inner queries, one for those that read z, which are gathered
kernel         model/triton_attention.py

Every form has its values and gradients compared with those of the rectangles before it is timed.
"""

import sys
from pathlib import Path

# This checkout first: an environment shared by two checkouts must not import the code of the other one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from statistics import mean, median
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.masks import Plan, make_plans
from model.objective import ObjectiveConfig
from model.packed import Layout, Rectangle, Stream

try:
    from model import triton_attention
except ImportError:
    triton_attention = None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

PATCHES = 64
CASES = {"case1": (128, 4), "case2": (256, 8), "celeba_base": (768, 12)}  # width and heads
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-4}

EXAMPLES = """\
examples:
  python benchmarks/attention.py --out attention.jsonl
  python benchmarks/attention.py --graph --cases case2 --dtypes bf16 --tune
  python benchmarks/attention.py --device cpu --cases case1 --dtypes fp32 --batches 8 --plans 1 --repeats 3
"""


class Phase:
    """One phase of biglearn_u for one plan: who reads whom, as rectangles, as sequences and as varlen indices."""

    def __init__(self, number: int, plan: Plan, batch: int, device: str):
        self.layout, self.kept = Layout(), Layout()
        groups = range(len(plan.groups))
        observing = [g for g in groups if plan.groups[g][0]]
        add = self.layout.add
        # Each sample of a part: (inner queries, z, asking queries, keys); z is a query and a key.
        parts: list[tuple[Stream | None, Stream, Stream | None, Stream | None]]
        if number == 1:
            known = [add(batch, n_S + n_T) for n_S, n_T in plan.groups]
            observed = [add(batch, plan.groups[g][0]) for g in observing]
            parts = [(stream, add(batch, 1), None, stream) for stream in known + observed]
            if len(observing) < len(plan.groups):
                parts.append((None, add(1, 1), None, None))
        else:
            observed = {g: self.kept.add(batch, plan.groups[g][0]) for g in observing}
            z = [add(batch, 1) for _ in groups]
            parts = [(None, z[g], add(batch, plan.groups[g][1]), observed.get(g)) for g in groups]

        def reads(queries: Stream, keys: Stream | None, z: Stream) -> Rectangle:
            if number == 1:
                return Rectangle(queries, (z,) if keys is None else (keys, z))
            return Rectangle(queries, (z,), None if keys is None else keys.number)

        self.rectangles = [Rectangle(inner, (keys,)) for inner, _, _, keys in parts if inner]
        self.rectangles += [reads(z, keys, z) for _, z, _, keys in parts]
        self.rectangles += [reads(asking, keys, z) for _, z, asking, keys in parts if asking]
        assert [r.queries.number for r in self.rectangles] == list(range(len(self.layout)))
        lines = np.concatenate([self._lines(*part) for part in parts])
        self.sequences = torch.tensor(lines, dtype=torch.int32, device=device)
        self.max_keys = int(lines[:, 6].max())
        self.max_queries = int((lines[:, 1] + 1 + lines[:, 4]).max())
        self._index_varlen(lines, device)

    @property
    def rows(self) -> int:
        return sum(stream.rows for stream in self.layout)

    @property
    def kept_rows(self) -> int:
        return sum(stream.rows for stream in self.kept)

    def _lines(self, inner, z, asking, keys) -> np.ndarray:
        """The sequences of one part, as model/triton_attention.py wants them."""
        sample = np.arange(z.batch)

        def start_and_size(stream: Stream | None, layout: Layout) -> list[np.ndarray]:
            if stream is None:
                return [0 * sample, 0 * sample]
            first = sum(s.rows for s in layout[: stream.number])
            return [first + sample * stream.tokens, 0 * sample + stream.tokens]

        z_row, _ = start_and_size(z, self.layout)
        of_keys = start_and_size(keys, self.kept or self.layout)
        columns = [*start_and_size(inner, self.layout), z_row, *start_and_size(asking, self.layout), *of_keys, z_row]
        return np.stack(columns, axis=1)

    def _index_varlen(self, lines: np.ndarray, device: str) -> None:
        """Inner queries are the first rows, and their own keys. What reads z is gathered, from kept keys and own."""

        def limits(sizes: np.ndarray) -> Tensor:
            return torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32, device=device)

        self.n_inner = int(lines[:, 1].sum())
        self.inner_limits = limits(lines[lines[:, 1] > 0, 1])
        queries = [[z, *range(start, start + n)] for _, _, z, start, n, *_ in lines.tolist()]
        keys = [[*range(start, start + n), self.kept_rows + z] for *_, start, n, z in lines.tolist()]
        self.asking_rows = torch.tensor([*chain.from_iterable(queries)], device=device)
        self.asking_places = torch.argsort(self.asking_rows)
        self.asking_key_rows = torch.tensor([*chain.from_iterable(keys)], device=device)
        self.asking_limits, self.asking_key_limits = limits(lines[:, 4] + 1), limits(lines[:, 6] + 1)
        self.most_asking, self.most_asking_keys = int(lines[:, 4].max()) + 1, self.max_keys + 1


Form = Callable[..., Tensor]  # (phase, q, k, v, kept k, kept v) -> y; all (rows, heads, width of a head)


def rectangles(phase: Phase, q: Tensor, k: Tensor, v: Tensor, kept_k: Tensor, kept_v: Tensor) -> Tensor:
    def by_sample(x_NHK: Tensor, layout: Layout) -> list[Tensor]:
        parts = zip(layout.split(x_NHK), layout, strict=True)
        return [part.unflatten(0, (stream.batch, stream.tokens)).transpose(1, 2) for part, stream in parts]

    queries, keys, values = (by_sample(x, phase.layout) for x in (q, k, v))
    kept_keys, kept_values = (by_sample(x, phase.kept) for x in (kept_k, kept_v))

    def joined(own: list[Tensor], kept: list[Tensor], rectangle: Rectangle) -> Tensor:
        parts = [] if rectangle.kept is None else [kept[rectangle.kept]]
        parts += [own[stream.number] for stream in rectangle.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    answers = []
    for r in phase.rectangles:
        k_BHNK, v_BHNK = joined(keys, kept_keys, r), joined(values, kept_values, r)
        y_BHNK = F.scaled_dot_product_attention(queries[r.queries.number], k_BHNK, v_BHNK)
        answers.append(y_BHNK.transpose(1, 2).flatten(0, 1))
    return torch.cat(answers)


def cudnn(*args) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return rectangles(*args)


def varlen(phase: Phase, q: Tensor, k: Tensor, v: Tensor, kept_k: Tensor, kept_v: Tensor) -> Tensor:
    n, most = phase.n_inner, phase.max_keys
    answers = []
    if n:
        answers.append(varlen_attn(q[:n], k[:n], v[:n], phase.inner_limits, phase.inner_limits, most, most))
    if phase.kept:
        k, v = torch.cat([kept_k, k]), torch.cat([kept_v, v])
    y = varlen_attn(
        q.index_select(0, phase.asking_rows),
        k.index_select(0, phase.asking_key_rows),
        v.index_select(0, phase.asking_key_rows),
        phase.asking_limits,
        phase.asking_key_limits,
        phase.most_asking,
        phase.most_asking_keys,
    )
    return torch.cat([*answers, y.index_select(0, phase.asking_places)])


def kernel(phase: Phase, q: Tensor, k: Tensor, v: Tensor, kept_k: Tensor, kept_v: Tensor) -> Tensor:
    kept = {"kept_k_MHK": kept_k, "kept_v_MHK": kept_v} if phase.kept else {}
    bounds = {"max_keys": phase.max_keys, "max_queries": phase.max_queries}
    return triton_attention.sequence_attention(q, k, v, phase.sequences, **bounds, **kept)


def tuned(block_q: int, warps: int) -> Form:
    """The kernel with another size of a block of queries and another number of warps."""
    usual = triton_attention._launch_options

    def form(*args) -> Tensor:
        def options(*sizes):
            return usual(*sizes) | {"BLOCK_Q": block_q, "num_warps": warps}

        with mock.patch.object(triton_attention, "_launch_options", options):
            return kernel(*args)

    return form


def forms_for(device: str, dtype: str, tune: bool) -> tuple[dict[str, Form], list[str]]:
    """The forms that can run here, rectangles first, and notes about the others."""
    forms, notes = {"rectangles": rectangles}, []
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # far too slow to time, but it can be compared
    if device == "cuda" and dtype == "bf16":
        forms["cudnn"] = cudnn
        if varlen_attn is None:
            notes.append("varlen: this torch has no torch.nn.attention.varlen")
        else:
            forms["varlen"] = varlen
    else:
        notes.append("cudnn, varlen: only on a GPU in bf16")
    if triton_attention is None or not (device == "cuda" or interpreted):
        notes.append("kernel: it needs Triton and a GPU")
    else:
        forms["kernel"] = kernel
        if tune:
            forms |= {f"kernel q{q} w{w}": tuned(q, w) for q in (16, 32, 64) for w in (2, 4, 8)}
    return forms, notes


class Problem:
    """A phase with numbers in it: fused products as leaves, so the time has the stacking of their gradients."""

    def __init__(self, phase: Phase, heads: int, width: int, dtype: torch.dtype, device: str):
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        self.phase = phase
        self.qkv_N3HK = normal(phase.rows, 3, heads, width).requires_grad_()
        self.kept_M2HK = normal(phase.kept_rows, 2, heads, width).requires_grad_()
        self.dy_NHK = normal(phase.rows, heads, width)

    def step(self, form: Form) -> tuple[Tensor, ...]:
        """y and the gradients."""
        y = form(self.phase, *self.qkv_N3HK.unbind(1), *self.kept_M2HK.unbind(1))
        leaves = [self.qkv_N3HK, self.kept_M2HK] if self.phase.kept else [self.qkv_N3HK]
        return y.detach(), *torch.autograd.grad(y, leaves, self.dy_NHK)

    def error(self, form: Form, expected: tuple[Tensor, ...]) -> float:
        outcome = self.step(form)
        return max(
            ((value - other).float().norm() / other.float().norm()).item()
            for value, other in zip(outcome, expected, strict=True)
        )


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


def measure(args, case: str, dtype: str, batch: int, number: int) -> list[dict]:
    """The rows of one shape: for each form the mean over the plans."""
    width, heads = CASES[case]
    objective = ObjectiveConfig()
    forms, notes = forms_for(args.device, dtype, args.tune)
    times = {name: [] for name in forms}
    for plan in make_plans(objective, PATCHES, seed=0)[: args.plans]:
        phase = Phase(number, plan, batch // objective.groups, args.device)
        problem = Problem(phase, heads, width // heads, DTYPES[dtype], args.device)
        expected = problem.step(rectangles)
        for name in list(forms):
            try:
                error = problem.error(forms[name], expected)
            except RuntimeError as refusal:
                notes.append(f"{name}: {str(refusal).splitlines()[0]}")
                del forms[name], times[name]
                continue
            if not error <= TOLERANCE[dtype]:
                raise SystemExit(f"{name} is wrong: {case} {dtype} batch {batch} phase {number}, error {error:.1e}")
        del expected
        steps = {name: (lambda form=form, problem=problem: problem.step(form)) for name, form in forms.items()}
        if args.graph:
            steps = {name: captured(step) for name, step in steps.items()}
        for name, value in milliseconds(steps, args.repeats, args.device).items():
            times[name].append(value)
    shape = {"case": case, "dtype": dtype, "batch": batch, "phase": number, "graph": args.graph, "plans": args.plans}
    base = mean(times["rectangles"])
    print(f"{case:12} {dtype:5} {batch:6} phase {number}", end="")
    for name, values in times.items():
        print(f"   {name} {mean(values):.3f} ({mean(values) / base:.2f})", end="")
    print("".join(f"\n    {note}" for note in notes), flush=True)
    return [shape | {"form": name, "ms": mean(values), "ratio": mean(values) / base} for name, values in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1024], help="multiples of the 8 groups")
    parser.add_argument("--plans", type=int, default=2, help="how many of the 16 plans of the default objective")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--graph", action="store_true", help="time replays of CUDA graphs: no launches by the host")
    parser.add_argument("--tune", action="store_true", help="also other block sizes and warps of the kernel")
    parser.add_argument("--out", type=Path, help="JSON lines")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu tries the forms that do without")
    print("ms of forward and backward (ratio to the rectangles), mean of plans, each the median of interleaved repeats")
    with args.out.open("w") if args.out else nullcontext() as out:
        for case in args.cases:
            for dtype in args.dtypes:
                for batch in args.batches:
                    for number in (1, 2):
                        for row in measure(args, case, dtype, batch, number):
                            if out:
                                print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main()
