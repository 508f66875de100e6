"""Attention of all sequences of a packed matrix, in one launch forward and one backward (Triton).

Who attends to whom is the table of model/attention.py. A sequence is one segment of one sample: some keys that follow
one another, a row z, and the queries that read them. One program computes one head of one sequence. All its keys fit
into one block, so the softmax needs no second pass; z is a vector beside that block, because 64 keys and z would
fill one of 128. No row is written by two programs: nothing is atomic, and results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.packed.plan import TRITON_HEAD_WIDTHS, TRITON_MOST_KEYS, PackedLayer

LARGEST_BLOCK_Q = 32  # queries of one product; the usual 2 to 65 would waste much of larger ones

LOG2_E = tl.constexpr(1.4426950408889634)
FP32_PRODUCTS = tl.constexpr("ieee")  # what fp32 inputs are multiplied in


def attend_in_one_launch(
    layer: PackedLayer, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: tuple | None
) -> tuple[Tensor, tuple | None]:
    """As model.transformer.Attend, for layers that have `sequences`."""
    sequences_S8, max_keys, max_queries = layer.sequences
    kept_k_MHK, kept_v_MHK = kept or (None, None)
    y_QHK = sequence_attention(
        q_QHK,
        k_NHK,
        v_NHK,
        sequences_S8,
        max_keys=max_keys,
        max_queries=max_queries,
        kept_k_MHK=kept_k_MHK,
        kept_v_MHK=kept_v_MHK,
    )
    keep = layer.keys[layer.keep]
    rows = slice(keep[0].start, keep[-1].stop) if keep else slice(0)
    return y_QHK, (k_NHK[rows], v_NHK[rows]) if keep else None


def sequence_attention(
    q_QHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    sequences_S8: Tensor,
    *,
    max_keys: int,
    max_queries: int,
    kept_k_MHK: Tensor | None = None,
    kept_v_MHK: Tensor | None = None,
) -> Tensor:
    """Softmax attention with the scale 1/sqrt(width of a head): y_QHK, contiguous, in the dtype of q.

    q_QHK: (query rows, heads, width of a head); k_NHK, v_NHK: (key rows, heads, width). kept_k_MHK, kept_v_MHK:
    keys and values that an earlier phase left, (kept rows, heads, width). All float32 or all bfloat16, with any
    strides but a contiguous last dimension.

    sequences_S8: int32, contiguous, one line for each sequence; starts and z are numbers of rows:

        inner_start, n_inner, z_query, asking_start, n_asking, key_start, n_keys, z_key

    The n_inner inner queries read the n_keys keys. The query z_query (-1: there is none) and the n_asking asking
    queries read these keys and the row z_key of k. The keys are rows of kept_k if that is given, else of k. Every row
    of q belongs to one sequence, every row of k and of kept_k to at most one; where n_keys is 0, so is n_inner.

    max_keys, max_queries: bounds of n_keys and of n_inner + 1 + n_asking, known without asking the device. A larger
    n_keys gives wrong results, a larger number of queries only costs time.

    Raises ValueError for shapes, dtypes and strides other than these, widths not in TRITON_HEAD_WIDTHS, max_keys
    over TRITON_MOST_KEYS.
    """
    _check(q_QHK, k_NHK, v_NHK, sequences_S8, max_keys, kept_k_MHK, kept_v_MHK)
    return _SequenceAttention.apply(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, max_keys, max_queries)


def _check(q_QHK, k_NHK, v_NHK, sequences_S8, max_keys, kept_k_MHK, kept_v_MHK) -> None:
    if (kept_k_MHK is None) != (kept_v_MHK is None):
        raise ValueError("kept keys and kept values come together")
    rows = {"q": q_QHK, "k": k_NHK, "v": v_NHK, "kept k": kept_k_MHK, "kept v": kept_v_MHK}
    rows = {name: x for name, x in rows.items() if x is not None}
    for name, x in rows.items():
        if x.dim() != 3 or x.shape[1:] != q_QHK.shape[1:]:
            raise ValueError(f"{name} {tuple(x.shape)} is not (rows, heads, width of a head) as q {tuple(q_QHK.shape)}")
        if x.dtype != q_QHK.dtype or x.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"{name} is {x.dtype}, q {q_QHK.dtype}; all are float32 or all are bfloat16")
        if x.stride(2) != 1:
            raise ValueError(f"the last dimension of {name} is not contiguous")
    if len(k_NHK) != len(v_NHK) or (kept_k_MHK is not None and len(kept_k_MHK) != len(kept_v_MHK)):
        raise ValueError("there are as many values as keys")
    if sequences_S8.dtype != torch.int32 or sequences_S8.shape[1:] != (8,) or not sequences_S8.is_contiguous():
        raise ValueError("sequences is not a contiguous int32 tensor of shape (sequences, 8)")
    if q_QHK.shape[2] not in TRITON_HEAD_WIDTHS:
        raise ValueError(f"the width of a head is {q_QHK.shape[2]}, not one of {TRITON_HEAD_WIDTHS}")
    if not 0 <= max_keys <= TRITON_MOST_KEYS:
        raise ValueError(f"max_keys is {max_keys}, not 0 to {TRITON_MOST_KEYS}")


class _SequenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, max_keys, max_queries):
        y_QHK = torch.empty(q_QHK.shape, dtype=q_QHK.dtype, device=q_QHK.device)
        lse_QH = torch.empty(q_QHK.shape[:2], dtype=torch.float32, device=q_QHK.device)
        ctx.save_for_backward(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, y_QHK, lse_QH)
        ctx.options = _launch_options(q_QHK, max_keys, max_queries)
        inputs = _inputs(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8)
        if grid := len(sequences_S8) * q_QHK.shape[1]:
            _forward_kernel[(grid,)](*inputs, y_QHK, lse_QH, **ctx.options)
        return y_QHK

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_QHK):
        q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, y_QHK, lse_QH = ctx.saved_tensors
        dq_QHK = torch.empty_like(y_QHK)
        # Zeros, because some rows are nobody's keys; keys and values at once, because every fill is a launch.
        dk_NHK, dv_NHK = y_QHK.new_zeros(2, *k_NHK.shape)
        dkept_k_MHK = dkept_v_MHK = None
        if kept_k_MHK is not None:
            dkept_k_MHK, dkept_v_MHK = y_QHK.new_zeros(2, *kept_k_MHK.shape)
        outputs = (dq_QHK, *((dk_NHK, dv_NHK) if dkept_k_MHK is None else (dkept_k_MHK, dkept_v_MHK)), dk_NHK, dv_NHK)
        inputs = _inputs(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8)
        if grid := len(sequences_S8) * q_QHK.shape[1]:
            _backward_kernel[(grid,)](*inputs, y_QHK, lse_QH, dy_QHK.contiguous(), *outputs, **ctx.options)
        return dq_QHK, dk_NHK, dv_NHK, dkept_k_MHK, dkept_v_MHK, None, None, None


def _inputs(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8) -> tuple:
    """The arguments that both kernels have: where z is read, where keys are read, and all strides."""
    keys = (k_NHK, v_NHK) if kept_k_MHK is None else (kept_k_MHK, kept_v_MHK)
    tensors = (q_QHK, *keys, k_NHK, v_NHK)
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    return *tensors, *strides, sequences_S8, q_QHK.shape[2] ** -0.5


def _launch_options(q_QHK: Tensor, max_keys: int, max_queries: int) -> dict[str, int]:
    heads, width = q_QHK.shape[1:]
    block_k = max(16, triton.next_power_of_2(max_keys))  # 16: the least that tl.dot takes
    fits_four_warps = q_QHK.dtype == torch.bfloat16 and block_k * width <= 64 * 64  # else registers spill
    return {
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_Q": max(16, min(LARGEST_BLOCK_Q, triton.next_power_of_2(max_queries))),
        "BLOCK_K": block_k,
        "num_warps": 4 if fits_four_warps else 8,
        "num_stages": 1,  # a loop of one to three rounds has nothing to pipeline
    }


@triton.jit
def _pointers(rows, row_N, row_stride, head, head_stride, WIDTH: tl.constexpr):
    """Pointers to one head of rows of a matrix, (N, WIDTH)."""
    return rows + head * head_stride + row_N.to(tl.int64)[:, None] * row_stride + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _vector(rows, row, row_stride, head, head_stride, WIDTH: tl.constexpr):
    """One head of one row of a matrix, (WIDTH,) float32."""
    return tl.load(rows + head * head_stride + row.to(tl.int64) * row_stride + tl.arange(0, WIDTH)).to(tl.float32)


@triton.jit
def _n_queries(sequence):
    return tl.load(sequence + 1) + (tl.load(sequence + 2) >= 0).to(tl.int32) + tl.load(sequence + 4)


@triton.jit
def _queries(sequence, position_Q):
    """The queries at positions in a sequence, inner ones, then z, then asking ones: their rows; who reads z."""
    inner_start, n_inner = tl.load(sequence), tl.load(sequence + 1)
    z_query, asking_start = tl.load(sequence + 2), tl.load(sequence + 3)
    first_asking = n_inner + (z_query >= 0).to(tl.int32)
    row_Q = tl.where(position_Q < n_inner, inner_start + position_Q, z_query)
    row_Q = tl.where(position_Q < first_asking, row_Q, asking_start + position_Q - first_asking)
    return row_Q, position_Q >= n_inner


@triton.jit
def _read_keys(
    k, v, z_k, z_v, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head, sequence, head,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the queries of a sequence read: the rows of its keys and which of them are there; z; keys and values."""
    row_N = tl.load(sequence + 5) + tl.arange(0, BLOCK_K)
    is_key_N = tl.arange(0, BLOCK_K) < tl.load(sequence + 6)
    row_z = tl.load(sequence + 7)
    k_NK = tl.load(_pointers(k, row_N, k_row, head, k_head, WIDTH), mask=is_key_N[:, None], other=0.0)
    v_NK = tl.load(_pointers(v, row_N, v_row, head, v_head, WIDTH), mask=is_key_N[:, None], other=0.0)
    z_k_K = _vector(z_k, row_z, z_k_row, head, z_k_head, WIDTH)
    z_v_K = _vector(z_v, row_z, z_v_row, head, z_v_head, WIDTH)
    return row_N, is_key_N, row_z, k_NK, v_NK, z_k_K, z_v_K


@triton.jit
def _scores(q_QK, k_NK, z_k_K, is_key_N, reads_z_Q, scale):
    """Scores of the keys (Q, N) and of z (Q,) in units of log 2, -inf where nothing is read."""
    score_QN = tl.dot(q_QK, tl.trans(k_NK), input_precision=FP32_PRODUCTS) * (scale * LOG2_E)
    score_z_Q = tl.sum(q_QK.to(tl.float32) * z_k_K[None, :], 1) * (scale * LOG2_E)
    return tl.where(is_key_N[None, :], score_QN, float("-inf")), tl.where(reads_z_Q, score_z_Q, float("-inf"))


@triton.jit
def _forward_kernel(
    q, k, v, z_k, z_v,
    q_row, q_head, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
    sequences, scale, y, lse,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    sequence, head = sequences + tl.program_id(0) // HEADS * 8, tl.program_id(0) % HEADS
    n_queries = _n_queries(sequence)
    if n_queries == 0:
        return
    row_N, is_key_N, row_z, k_NK, v_NK, z_k_K, z_v_K = _read_keys(
        k, v, z_k, z_v, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
        sequence, head, WIDTH, BLOCK_K,
    )  # fmt: skip
    for start in range(0, n_queries, BLOCK_Q):
        position_Q = start + tl.arange(0, BLOCK_Q)
        is_query_Q = position_Q < n_queries
        row_Q, reads_z_Q = _queries(sequence, position_Q)
        q_QK = tl.load(_pointers(q, row_Q, q_row, head, q_head, WIDTH), mask=is_query_Q[:, None], other=0.0)
        score_QN, score_z_Q = _scores(q_QK, k_NK, z_k_K, is_key_N, reads_z_Q, scale)
        highest_Q = tl.maximum(tl.max(score_QN, 1), score_z_Q)
        p_QN = tl.exp2(score_QN - highest_Q[:, None])
        p_z_Q = tl.exp2(score_z_Q - highest_Q)
        sum_Q = tl.sum(p_QN, 1) + p_z_Q
        y_QK = tl.dot(p_QN.to(v_NK.dtype), v_NK, input_precision=FP32_PRODUCTS) + p_z_Q[:, None] * z_v_K[None, :]
        y_pointers = _pointers(y, row_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
        tl.store(y_pointers, (y_QK / sum_Q[:, None]).to(y.dtype.element_ty), mask=is_query_Q[:, None])
        tl.store(lse + row_Q * HEADS + head, highest_Q + tl.log2(sum_Q), mask=is_query_Q)


@triton.jit
def _backward_kernel(
    q, k, v, z_k, z_v,
    q_row, q_head, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
    sequences, scale, y, lse, dy, dq, dk, dv, dz_k, dz_v,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """With p the softmax and dp = dy v: ds = p (dp - sum(dy y)), dq = ds k, dk = ds q, dv = p dy.

    y, dy and the gradients are contiguous.
    """
    sequence, head = sequences + tl.program_id(0) // HEADS * 8, tl.program_id(0) % HEADS
    n_queries = _n_queries(sequence)
    if n_queries == 0:
        return
    row_N, is_key_N, row_z, k_NK, v_NK, z_k_K, z_v_K = _read_keys(
        k, v, z_k, z_v, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
        sequence, head, WIDTH, BLOCK_K,
    )  # fmt: skip
    dk_NK = tl.zeros((BLOCK_K, WIDTH), tl.float32)
    dv_NK = tl.zeros((BLOCK_K, WIDTH), tl.float32)
    dz_k_K = tl.zeros((WIDTH,), tl.float32)
    dz_v_K = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, n_queries, BLOCK_Q):
        position_Q = start + tl.arange(0, BLOCK_Q)
        is_query_Q = position_Q < n_queries
        row_Q, reads_z_Q = _queries(sequence, position_Q)
        # Where there is no query, q, y and dy are zero, and so is what it adds to every gradient.
        q_QK = tl.load(_pointers(q, row_Q, q_row, head, q_head, WIDTH), mask=is_query_Q[:, None], other=0.0)
        y_pointers = _pointers(y, row_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
        dy_pointers = _pointers(dy, row_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
        y_QK = tl.load(y_pointers, mask=is_query_Q[:, None], other=0.0).to(tl.float32)
        dy_QK = tl.load(dy_pointers, mask=is_query_Q[:, None], other=0.0)
        lse_Q = tl.load(lse + row_Q * HEADS + head, mask=is_query_Q, other=0.0)
        score_QN, score_z_Q = _scores(q_QK, k_NK, z_k_K, is_key_N, reads_z_Q, scale)
        p_QN = tl.exp2(score_QN - lse_Q[:, None])
        p_z_Q = tl.exp2(score_z_Q - lse_Q)
        delta_Q = tl.sum(dy_QK.to(tl.float32) * y_QK, 1)
        dp_QN = tl.dot(dy_QK, tl.trans(v_NK), input_precision=FP32_PRODUCTS)
        ds_QN = (p_QN * (dp_QN - delta_Q[:, None])).to(k_NK.dtype)
        ds_z_Q = p_z_Q * (tl.sum(dy_QK.to(tl.float32) * z_v_K[None, :], 1) - delta_Q)
        dq_QK = tl.dot(ds_QN, k_NK, input_precision=FP32_PRODUCTS) + ds_z_Q[:, None] * z_k_K[None, :]
        dq_pointers = _pointers(dq, row_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
        tl.store(dq_pointers, (dq_QK * scale).to(dq.dtype.element_ty), mask=is_query_Q[:, None])
        dv_NK += tl.dot(tl.trans(p_QN.to(dy_QK.dtype)), dy_QK, input_precision=FP32_PRODUCTS)
        dk_NK += tl.dot(tl.trans(ds_QN), q_QK, input_precision=FP32_PRODUCTS)
        dz_v_K += tl.sum(p_z_Q[:, None] * dy_QK.to(tl.float32), 0)
        dz_k_K += tl.sum(ds_z_Q[:, None] * q_QK.to(tl.float32), 0)
    dk_pointers = _pointers(dk, row_N, HEADS * WIDTH, head, WIDTH, WIDTH)
    dv_pointers = _pointers(dv, row_N, HEADS * WIDTH, head, WIDTH, WIDTH)
    tl.store(dk_pointers, (dk_NK * scale).to(dk.dtype.element_ty), mask=is_key_N[:, None])
    tl.store(dv_pointers, dv_NK.to(dv.dtype.element_ty), mask=is_key_N[:, None])
    z_offset_K = (row_z.to(tl.int64) * HEADS + head) * WIDTH + tl.arange(0, WIDTH)
    tl.store(dz_k + z_offset_K, (dz_k_K * scale).to(dz_k.dtype.element_ty))
    tl.store(dz_v + z_offset_K, dz_v_K.to(dz_v.dtype.element_ty))
