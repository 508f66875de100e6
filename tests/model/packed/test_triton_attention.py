"""The attention kernels against a loop over sequences, and on a GPU against F.scaled_dot_product_attention.

Without a GPU, Triton's interpreter runs them (tests/conftest.py); its products of bfloat16 are wrong, so bf16
is for the GPU.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="there is no Triton for this platform")

from model.packed.triton_kernel import sequence_attention  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS = 2

# Each sequence: (n_inner, has a z-query, n_asking, n_keys); the inner queries are the keys, unless keys are kept.
ENCODE = [(3, True, 0, 3), (17, True, 0, 17), (1, True, 0, 1), (0, True, 0, 0)]
CASES = {
    "encode": (ENCODE, False),
    "encode, every block full": ([(64, True, 0, 64), (16, True, 0, 16), (32, True, 0, 32)], False),
    "decode with kept keys": ([(0, True, 5, 3), (0, True, 33, 31), (0, True, 16, 0), (0, True, 1, 63)], True),
    "decode with inner queries": ([(3, True, 5, 3), (31, True, 33, 31), (0, True, 16, 0), (63, True, 1, 63)], False),
    "last layer of encode": ([(0, True, 0, n) for *_, n in ENCODE], False),
    "last layer of decode": ([(0, False, 5, 3), (0, False, 33, 31), (0, False, 16, 0)], False),
    "last layer of decode with kept keys": ([(0, False, 5, 3), (0, False, 33, 31), (0, False, 16, 0)], True),
    "nobody asks": ([(0, False, 0, 7), (2, True, 1, 2)], False),
    "only z": ([(0, True, 0, 0)] * 3, False),
    "more keys than 64": ([(65, True, 2, 65), (7, True, 60, 7)], False),
}
LONG = {  # more than 128 keys somewhere: the whole launch goes over blocks of keys
    "long encode": ([(129, True, 0, 129), (0, True, 0, 0), (1, True, 0, 1)], False),
    "long decode with kept keys": ([(0, True, 9, 200), (0, True, 70, 3), (0, True, 2, 0)], True),
    "long decode with inner queries": ([(129, True, 4, 129), (3, True, 40, 3), (0, True, 16, 0)], False),
    "long last layer of encode": ([(0, True, 0, 300), (0, True, 0, 64), (0, True, 0, 0)], False),
    "long last layer of decode": ([(0, False, 5, 129), (0, False, 70, 31), (0, False, 2, 0)], False),
    "nobody asks for many keys": ([(0, False, 0, 129), (2, True, 1, 2)], False),
}
CASES |= LONG


class Problem:
    """Inputs of sequences whose rows lie as a plan has them, with rows that are nobody's between them."""

    def __init__(self, sequences, kept: bool, dtype=torch.float32, width: int = 16, heads: int = HEADS):
        n_inner, has_z, n_asking, n_keys = (list(sizes) for sizes in zip(*sequences, strict=True))
        spare = 2  # rows that nobody reads, after the keys
        total, asking, observed = sum(n_keys), sum(n_asking), sum(n_inner)
        n_rows = (0 if kept else total + spare) + len(sequences) + asking
        generator = torch.Generator().manual_seed(0)

        def rows(n: int) -> tuple[Tensor, Tensor, Tensor]:
            """q, k and v of a fused product: views whose rows are not contiguous."""
            qkv = torch.randn(n, 3 * heads * width, generator=generator).to(DEVICE, dtype)
            return qkv.unflatten(1, (3, heads, width)).unbind(1)

        q_all, self.k, self.v = rows(n_rows)
        self.q = q_all[: observed + sum(has_z) + asking]
        _, *self.kept = rows(total + spare) if kept else (None,)
        self.dy = torch.randn(self.q.shape, generator=generator).to(DEVICE, dtype)
        self.max_keys, self.max_queries = max(n_keys), max(i + 1 + a for i, _, a, _ in sequences)
        z_key, lines = 0 if kept else total + spare, []
        inner_at, z_at, asking_at, key_at = 0, observed, observed + sum(has_z), 0
        for inner, z, ask, keys in sequences:
            lines.append((inner_at, inner, z_at if z else -1, asking_at, ask, key_at, keys, z_key))
            inner_at, z_at, asking_at = inner_at + inner, z_at + z, asking_at + ask
            key_at, z_key = key_at + keys, z_key + 1
        self.lines = lines
        self.sequences = torch.tensor(lines, dtype=torch.int32, device=DEVICE)

    def inputs(self, dtype=None) -> list[Tensor]:
        """q, k, v, and maybe kept k and kept v, as leaves with their strides."""
        return [x.detach().to(dtype or x.dtype).requires_grad_() for x in (self.q, self.k, self.v, *self.kept)]

    def kernel(self, q, k, v, kept_k=None, kept_v=None) -> Tensor:
        bounds = {"max_keys": self.max_keys, "max_queries": self.max_queries}
        return sequence_attention(q, k, v, self.sequences, kept_k_MHK=kept_k, kept_v_MHK=kept_v, **bounds)

    def reference(self, q, k, v, kept_k=None, kept_v=None, attention=None) -> Tensor:
        """One sequence after the other, by the definition."""
        attention = attention or softmax_attention
        y = torch.zeros_like(q)
        for inner_start, n_inner, z_query, asking_start, n_asking, key_start, n_keys, z_key in self.lines:
            keys, values = (k, v) if kept_k is None else (kept_k, kept_v)
            keys, values = keys[key_start : key_start + n_keys], values[key_start : key_start + n_keys]
            inner = torch.arange(inner_start, inner_start + n_inner)
            asking = torch.arange(asking_start, asking_start + n_asking)
            asking = torch.cat([torch.tensor([z_query][: z_query + 1], dtype=torch.int64), asking]).to(DEVICE)
            if n_inner:
                y = y.index_copy(0, inner.to(DEVICE), attention(q[inner], keys, values))
            if len(asking):
                keys, values = torch.cat([keys, k[z_key, None]]), torch.cat([values, v[z_key, None]])
                y = y.index_copy(0, asking, attention(q[asking], keys, values))
        return y

    def outcome(self, attend, dtype=None, **options) -> list[Tensor]:
        """y and the gradients of all inputs."""
        inputs = self.inputs(dtype)
        y = attend(*inputs, **options)
        return [y.detach(), *torch.autograd.grad(y, inputs, self.dy.to(y.dtype))]


def softmax_attention(q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
    score_HQN = torch.einsum("qhk,nhk->hqn", q_QHK, k_NHK) / q_QHK.shape[-1] ** 0.5
    return torch.einsum("hqn,nhk->qhk", score_HQN.softmax(-1), v_NHK)


def sdpa(q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor) -> Tensor:
    y_1HQK = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q_QHK, k_NHK, v_NHK)))
    return y_1HQK[0].transpose(0, 1)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_definition(case):
    problem = Problem(*CASES[case])
    y, *gradients = problem.outcome(problem.kernel)
    expected, *expected_gradients = problem.outcome(problem.reference)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sequence", [(19, True, 7, 19), (0, True, 7, 140)])
@pytest.mark.parametrize("width", [8, 32, 40, 64])
def test_widths(width, sequence):
    problem = Problem([sequence], False, width=width, heads=3)
    for value, expected in zip(problem.outcome(problem.kernel), problem.outcome(problem.reference), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_rows_that_are_nobodys_have_gradients_of_zero(kept):
    problem = Problem([(0, True, 4, 3), (0, True, 6, 0)], kept)
    _, _, dk, dv, *dkept = problem.outcome(problem.kernel)
    for of_keys, of_z in zip(dkept or (dk, dv), (dk, dv), strict=True):
        z_rows = slice(0, 2) if kept else slice(5, 7)
        assert of_keys[:3].abs().sum((1, 2)).all()
        assert of_z[z_rows].abs().sum((1, 2))[0]
        assert not of_keys[3:5].any()
        assert not of_z[z_rows.stop :].any()


@pytest.mark.parametrize("keys", [5, 129])
def test_scores_of_any_size_are_finite(keys):
    problem = Problem([(5, True, 3, 5), (0, True, 2, keys)], False)
    problem.q = problem.q * 1e4
    y, *gradients = problem.outcome(problem.kernel)
    torch.testing.assert_close(y, problem.outcome(problem.reference)[0], rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_no_sequences():
    q = torch.zeros(0, HEADS, 16, device=DEVICE, requires_grad=True)
    k = torch.ones(3, HEADS, 16, device=DEVICE, requires_grad=True)
    none = torch.zeros(0, 8, dtype=torch.int32, device=DEVICE)
    y = sequence_attention(q, k, k, none, max_keys=0, max_queries=0)
    assert y.shape == (0, HEADS, 16)
    y.sum().backward()
    assert not k.grad.any()


def test_a_gradient_of_any_strides():
    """That of a sum is expanded: all its strides are zero."""
    problem = Problem(ENCODE, False)
    outcomes = [torch.autograd.grad(f(*(x := problem.inputs())).sum(), x) for f in (problem.kernel, problem.reference)]
    for gradient, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_do_not_fit_are_refused():
    q = torch.zeros(4, HEADS, 16, device=DEVICE)
    line = torch.tensor([(0, 3, 3, 0, 0, 0, 3, 3)], dtype=torch.int32, device=DEVICE)
    bounds = {"max_keys": 3, "max_queries": 4}
    for message, args, others in [
        ("width", (q[..., :12],) * 3, {}),
        ("width", (q.repeat(1, 1, 9),) * 3, {}),
        ("float64", (q.double(),) * 3, {}),
        ("bfloat16", (q, q.bfloat16(), q), {}),
        ("heads", (q, q[:, :1], q), {}),
        ("heads", (q[0], q, q), {}),
        ("not contiguous", (q, q, torch.zeros(4, 16, HEADS, device=DEVICE).transpose(1, 2)), {}),
        ("as many", (q, q, q[:2]), {}),
        ("as many", (q, q, q), {"kept_k_MHK": q, "kept_v_MHK": q[:2]}),
        ("together", (q, q, q), {"kept_k_MHK": q}),
        ("kept k", (q, q, q), {"kept_k_MHK": q[..., :8], "kept_v_MHK": q}),
    ]:
        with pytest.raises(ValueError, match=message):
            sequence_attention(*args, line, **(bounds | others))
    for lines in (line.long(), line[:, :7], line[0], line.repeat(1, 2)[:, ::2]):
        with pytest.raises(ValueError, match="sequences"):
            sequence_attention(q, q, q, lines, **bounds)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float32, 32), (torch.float32, 64), *((torch.bfloat16, width) for width in (32, 40, 64, 128))],
)
@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_sdpa(case, width, dtype):
    problem = Problem(*CASES[case], dtype=dtype, width=width, heads=8)
    exact = problem.outcome(problem.reference, torch.float64)
    ours = problem.outcome(problem.kernel)
    theirs = problem.outcome(problem.reference, attention=sdpa)
    floor = 1e-6 if dtype == torch.float32 else 1e-3  # where SDPA is exact, as with a single key
    for value, other, truth in zip(ours, theirs, exact, strict=True):
        assert value.dtype == dtype
        assert (value - truth).norm() <= 1.5 * (other - truth).norm() + floor * max(1.0, truth.norm().item())


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["decode with inner queries", "long decode with inner queries"])
def test_two_runs_agree_bit_for_bit(case):
    problem = Problem(*CASES[case], dtype=torch.bfloat16, width=64, heads=8)
    for value, again in zip(problem.outcome(problem.kernel), problem.outcome(problem.kernel), strict=True):
        assert torch.equal(value, again)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["encode", "decode with kept keys", "long decode with kept keys"])
def test_a_cuda_graph_can_hold_it(case):
    problem = Problem(*CASES[case], dtype=torch.bfloat16, width=32)
    expected = problem.outcome(problem.kernel)  # compiles
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        problem.outcome(problem.kernel)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = problem.outcome(problem.kernel)
    for value in captured:
        value.fill_(float("nan"))
    graph.replay()
    for value, other in zip(captured, expected, strict=True):
        assert torch.equal(value, other)
