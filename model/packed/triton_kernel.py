"""Attention of all sequences of a packed matrix, in one launch forward and one or two backward (Triton).

Who attends to whom is the table of model/attention.py. A sequence is one segment of one sample: some keys that follow
one another, a row z, and the queries that read them. Where all keys of a sequence fit into one block, the kernels are
those of triton_short.py, else those of triton_long.py. No row is written by two programs: nothing is atomic, and
results repeat bit for bit.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.packed import triton_long, triton_short
from model.packed.plan import TRITON_HEAD_WIDTHS, PackedLayer


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

    max_keys, max_queries: bounds of n_keys and of the queries of a sequence, known without asking the device; more
    than these give wrong results.

    Raises ValueError for shapes, dtypes and strides other than these and widths not in TRITON_HEAD_WIDTHS.
    """
    _check(q_QHK, k_NHK, v_NHK, sequences_S8, kept_k_MHK, kept_v_MHK)
    return _SequenceAttention.apply(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, max_keys, max_queries)


def _check(q_QHK, k_NHK, v_NHK, sequences_S8, kept_k_MHK, kept_v_MHK) -> None:
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
        raise ValueError(f"the width of a head is {q_QHK.shape[2]}, no multiple of 8 up to {TRITON_HEAD_WIDTHS[-1]}")


class _SequenceAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, max_keys, max_queries):
        y_QHK = torch.empty(q_QHK.shape, dtype=q_QHK.dtype, device=q_QHK.device)
        lse_QH = torch.empty(q_QHK.shape[:2], dtype=torch.float32, device=q_QHK.device)
        ctx.save_for_backward(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8, y_QHK, lse_QH)
        ctx.kernels = triton_short if max_keys <= triton_short.MOST_KEYS else triton_long
        ctx.options = ctx.kernels.launch_options(q_QHK, max_keys, max_queries)
        inputs = _inputs(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8)
        if len(q_QHK):
            ctx.kernels.forward(inputs, len(sequences_S8), y_QHK, lse_QH, ctx.options)
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
        gradients = (dq_QHK, *((dk_NHK, dv_NHK) if dkept_k_MHK is None else (dkept_k_MHK, dkept_v_MHK)), dk_NHK, dv_NHK)
        inputs = _inputs(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8)
        if len(q_QHK):
            saved = y_QHK, lse_QH, dy_QHK.contiguous()
            ctx.kernels.backward(inputs, len(sequences_S8), *saved, gradients, ctx.options)
        return dq_QHK, dk_NHK, dv_NHK, dkept_k_MHK, dkept_v_MHK, None, None, None


def _inputs(q_QHK, k_NHK, v_NHK, kept_k_MHK, kept_v_MHK, sequences_S8) -> tuple:
    """The arguments that all kernels have: where z is read, where keys are read, and all strides."""
    keys = (k_NHK, v_NHK) if kept_k_MHK is None else (kept_k_MHK, kept_v_MHK)
    tensors = (q_QHK, *keys, k_NHK, v_NHK)
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    return *tensors, *strides, sequences_S8, q_QHK.shape[2] ** -0.5
