"""Attention of sequences of few keys: one program computes one head of one sequence.

All its keys fit into one block, so the softmax needs no second pass and keys and values are loaded once; z is a vector
beside that block, because 64 keys and z would fill one of 128.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.packed.triton_rows import (
    FP32_PRODUCTS,
    count_queries,
    load_keys,
    load_queries,
    load_rows,
    load_vector,
    padded_width,
    score_gradients,
    scores_of_keys,
    scores_of_z,
    store_rows,
    store_vector,
)

MOST_KEYS = 128
LARGEST_BLOCK_Q = 32  # queries of one product; the usual 2 to 65 would waste much of larger ones


def launch_options(q_QHK: Tensor, max_keys: int, max_queries: int) -> dict[str, int]:
    """For forward and backward."""
    heads, width = q_QHK.shape[1:]
    block_k = max(16, triton.next_power_of_2(max_keys))  # 16: the least that tl.dot takes
    fits_four_warps = q_QHK.dtype == torch.bfloat16 and block_k * padded_width(width) <= 64 * 64  # else registers spill
    return {
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_Q": max(16, min(LARGEST_BLOCK_Q, triton.next_power_of_2(max_queries))),
        "BLOCK_K": block_k,
        "num_warps": 4 if fits_four_warps else 8,
        "num_stages": 1,  # a loop of one to five rounds has nothing to pipeline
    }


def forward(inputs: tuple, sequences: int, y_QHK: Tensor, lse_QH: Tensor, options: dict[str, int]) -> None:
    """Fill y and the logarithms (base 2) of the sums of its softmax."""
    _forward_kernel[(sequences * y_QHK.shape[1],)](*inputs, y_QHK, lse_QH, **options)


def backward(
    inputs: tuple, sequences: int, y_QHK: Tensor, lse_QH: Tensor, dy_QHK: Tensor, gradients: tuple[Tensor, ...],
    options: dict[str, int],
) -> None:  # fmt: skip
    """Fill the gradients of q, of keys and values, and of z's, where they are asked for."""
    _backward_kernel[(sequences * y_QHK.shape[1],)](*inputs, y_QHK, lse_QH, dy_QHK, *gradients, **options)


@triton.jit
def _read_keys(
    k, v, z_k, z_v, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head, sequence, head,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the queries of a sequence read: the rows of its keys and which of them are there; z; keys and values."""
    key_start, n_keys = tl.load(sequence + 5), tl.load(sequence + 6)
    is_key_N, row_N, k_NK, v_NK = load_keys(
        k, v, k_row, k_head, v_row, v_head, key_start, n_keys, 0, head, WIDTH, BLOCK_K
    )
    row_z = tl.load(sequence + 7)
    z_k_K = load_vector(z_k, row_z, z_k_row, head, z_k_head, WIDTH)
    z_v_K = load_vector(z_v, row_z, z_v_row, head, z_v_head, WIDTH)
    return row_N, is_key_N, row_z, k_NK, v_NK, z_k_K, z_v_K


@triton.jit
def _forward_kernel(
    q, k, v, z_k, z_v,
    q_row, q_head, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
    sequences, scale, y, lse,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    sequence, head = sequences + tl.program_id(0) // HEADS * 8, tl.program_id(0) % HEADS
    n_queries = count_queries(sequence)
    if n_queries == 0:
        return
    row_N, is_key_N, row_z, k_NK, v_NK, z_k_K, z_v_K = _read_keys(
        k, v, z_k, z_v, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
        sequence, head, WIDTH, BLOCK_K,
    )  # fmt: skip
    for start in range(0, n_queries, BLOCK_Q):
        is_query_Q, row_Q, reads_z_Q, q_QK = load_queries(
            q, q_row, q_head, sequence, start, n_queries, head, WIDTH, BLOCK_Q
        )
        score_QN = scores_of_keys(q_QK, k_NK, is_key_N, scale)
        score_z_Q = scores_of_z(q_QK, z_k_K, reads_z_Q, scale)
        highest_Q = tl.maximum(tl.max(score_QN, 1), score_z_Q)
        p_QN = tl.exp2(score_QN - highest_Q[:, None])
        p_z_Q = tl.exp2(score_z_Q - highest_Q)
        sum_Q = tl.sum(p_QN, 1) + p_z_Q
        y_QK = tl.dot(p_QN.to(v_NK.dtype), v_NK, input_precision=FP32_PRODUCTS) + p_z_Q[:, None] * z_v_K[None, :]
        store_rows(y, row_Q, is_query_Q, head, y_QK / sum_Q[:, None], HEADS, WIDTH)
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
    n_queries = count_queries(sequence)
    if n_queries == 0:
        return
    row_N, is_key_N, row_z, k_NK, v_NK, z_k_K, z_v_K = _read_keys(
        k, v, z_k, z_v, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
        sequence, head, WIDTH, BLOCK_K,
    )  # fmt: skip
    dk_NK = tl.zeros((BLOCK_K, padded_width(WIDTH)), tl.float32)
    dv_NK = tl.zeros((BLOCK_K, padded_width(WIDTH)), tl.float32)
    dz_k_K = tl.zeros((padded_width(WIDTH),), tl.float32)
    dz_v_K = tl.zeros((padded_width(WIDTH),), tl.float32)
    for start in range(0, n_queries, BLOCK_Q):
        # Where there is no query, q, y and dy are zero, and so is what it adds to every gradient.
        is_query_Q, row_Q, reads_z_Q, q_QK = load_queries(
            q, q_row, q_head, sequence, start, n_queries, head, WIDTH, BLOCK_Q
        )
        y_QK = load_rows(y, row_Q, is_query_Q, HEADS * WIDTH, head, WIDTH, WIDTH).to(tl.float32)
        dy_QK = load_rows(dy, row_Q, is_query_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
        lse_Q = tl.load(lse + row_Q * HEADS + head, mask=is_query_Q, other=0.0)
        score_QN = scores_of_keys(q_QK, k_NK, is_key_N, scale)
        score_z_Q = scores_of_z(q_QK, z_k_K, reads_z_Q, scale)
        p_QN = tl.exp2(score_QN - lse_Q[:, None])
        p_z_Q = tl.exp2(score_z_Q - lse_Q)
        delta_Q = tl.sum(dy_QK.to(tl.float32) * y_QK, 1)
        ds_QN = score_gradients(p_QN, dy_QK, v_NK, delta_Q)
        ds_z_Q = p_z_Q * (tl.sum(dy_QK.to(tl.float32) * z_v_K[None, :], 1) - delta_Q)
        dq_QK = tl.dot(ds_QN, k_NK, input_precision=FP32_PRODUCTS) + ds_z_Q[:, None] * z_k_K[None, :]
        store_rows(dq, row_Q, is_query_Q, head, dq_QK * scale, HEADS, WIDTH)
        dv_NK += tl.dot(tl.trans(p_QN.to(dy_QK.dtype)), dy_QK, input_precision=FP32_PRODUCTS)
        dk_NK += tl.dot(tl.trans(ds_QN), q_QK, input_precision=FP32_PRODUCTS)
        dz_v_K += tl.sum(p_z_Q[:, None] * dy_QK.to(tl.float32), 0)
        dz_k_K += tl.sum(ds_z_Q[:, None] * q_QK.to(tl.float32), 0)
    store_rows(dk, row_N, is_key_N, head, dk_NK * scale, HEADS, WIDTH)
    store_rows(dv, row_N, is_key_N, head, dv_NK, HEADS, WIDTH)
    store_vector(dz_k, row_z, head, dz_k_K * scale, HEADS, WIDTH)
    store_vector(dz_v, row_z, head, dz_v_K, HEADS, WIDTH)
