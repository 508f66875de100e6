"""Attention of sequences of any number of keys, in blocks of keys.

Forward, one program computes one head of a block of queries: it keeps the largest score and the sum so far, and scales
what it has when a larger score comes. z is the first of the keys: the softmax of who reads it starts with it. The
backward is two launches. In the first a program has a block of queries and goes over the keys, for dq; in the second a
block of keys and goes over the queries, for dk and dv. What a block of queries gives to the gradients of z is left by
the first and added up by the second, in the order of the blocks.
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


def launch_options(q_QHK: Tensor, max_keys: int, max_queries: int) -> dict[str, int]:
    """For forward and backward."""
    heads, width = q_QHK.shape[1:]
    is_bf16 = q_QHK.dtype == torch.bfloat16
    block = 64 if is_bf16 else 32
    fits_four_warps = is_bf16 and padded_width(width) <= 64  # else registers spill
    return {
        "max_keys": max_keys,
        "max_queries": max_queries,
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_Q": max(16, min(block, triton.next_power_of_2(max_queries))),
        "BLOCK_K": block,
        "num_warps": 4 if fits_four_warps else 8,
        "num_stages": 2 if is_bf16 else 1,
    }


def forward(inputs: tuple, sequences: int, y_QHK: Tensor, lse_QH: Tensor, options: dict[str, int]) -> None:
    """Fill y and the logarithms (base 2) of the sums of its softmax."""
    query_blocks = triton.cdiv(options["max_queries"], options["BLOCK_Q"])
    _forward_kernel[(sequences * y_QHK.shape[1] * query_blocks,)](*inputs, y_QHK, lse_QH, **options)


def backward(
    inputs: tuple, sequences: int, y_QHK: Tensor, lse_QH: Tensor, dy_QHK: Tensor, gradients: tuple[Tensor, ...],
    options: dict[str, int],
) -> None:  # fmt: skip
    """Fill the gradients of q, of keys and values, and of z's, where they are asked for."""
    heads, width = y_QHK.shape[1:]
    query_programs = sequences * heads * triton.cdiv(options["max_queries"], options["BLOCK_Q"])
    key_programs = sequences * heads * triton.cdiv(options["max_keys"], options["BLOCK_K"])
    dq_QHK, *others = gradients
    shared = (lse_QH, dy_QHK, torch.empty_like(lse_QH), lse_QH.new_empty(query_programs, 2, width))
    _query_gradients_kernel[(query_programs,)](*inputs, y_QHK, *shared, dq_QHK, **options)
    _key_gradients_kernel[(key_programs,)](*inputs, *shared, *others, **options)


@triton.jit
def _place(sequences, max_rows, BLOCK: tl.constexpr, HEADS: tl.constexpr):
    """Which line, head and block a program has. The blocks of a head are neighbours: they read the same rows."""
    blocks = tl.cdiv(max_rows, BLOCK)
    of_head, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    return sequences + of_head // HEADS * 8, of_head % HEADS, block


@triton.jit(do_not_specialize=["max_keys", "max_queries"])
def _forward_kernel(
    q, k, v, z_k, z_v,
    q_row, q_head, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
    sequences, scale, y, lse, max_keys, max_queries,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    sequence, head, block = _place(sequences, max_queries, BLOCK_Q, HEADS)
    n_queries, key_start, n_keys = count_queries(sequence), tl.load(sequence + 5), tl.load(sequence + 6)
    if block * BLOCK_Q >= n_queries:
        return
    is_query_Q, row_Q, reads_z_Q, q_QK = load_queries(
        q, q_row, q_head, sequence, block * BLOCK_Q, n_queries, head, WIDTH, BLOCK_Q
    )
    z_k_K = load_vector(z_k, tl.load(sequence + 7), z_k_row, head, z_k_head, WIDTH)
    z_v_K = load_vector(z_v, tl.load(sequence + 7), z_v_row, head, z_v_head, WIDTH)
    # Who does not read z starts at -inf, which is left with the first block: every inner query has a key in it.
    highest_Q = scores_of_z(q_QK, z_k_K, reads_z_Q, scale)
    sum_Q = reads_z_Q.to(tl.float32)
    y_QK = sum_Q[:, None] * z_v_K[None, :]
    for start in range(0, n_keys, BLOCK_K):
        is_key_N, _, k_NK, v_NK = load_keys(
            k, v, k_row, k_head, v_row, v_head, key_start, n_keys, start, head, WIDTH, BLOCK_K
        )
        score_QN = scores_of_keys(q_QK, k_NK, is_key_N, scale)
        higher_Q = tl.maximum(highest_Q, tl.max(score_QN, 1))
        p_QN = tl.exp2(score_QN - higher_Q[:, None])
        shrink_Q = tl.exp2(highest_Q - higher_Q)
        sum_Q = sum_Q * shrink_Q + tl.sum(p_QN, 1)
        y_QK = y_QK * shrink_Q[:, None] + tl.dot(p_QN.to(v_NK.dtype), v_NK, input_precision=FP32_PRODUCTS)
        highest_Q = higher_Q
    store_rows(y, row_Q, is_query_Q, head, y_QK / sum_Q[:, None], HEADS, WIDTH)
    tl.store(lse + row_Q * HEADS + head, highest_Q + tl.log2(sum_Q), mask=is_query_Q)


@triton.jit(do_not_specialize=["max_keys", "max_queries"])
def _query_gradients_kernel(
    q, k, v, z_k, z_v,
    q_row, q_head, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
    sequences, scale, y, lse, dy, delta, dz, dq, max_keys, max_queries,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """With p the softmax, dp = dy v and delta = sum(dy y): ds = p (dp - delta), dq = ds k.

    dz (programs, 2, width): what these queries give to the gradients of z's key and value, before the scale.
    """
    sequence, head, block = _place(sequences, max_queries, BLOCK_Q, HEADS)
    n_queries, key_start, n_keys = count_queries(sequence), tl.load(sequence + 5), tl.load(sequence + 6)
    if block * BLOCK_Q >= n_queries:
        return
    # Where there is no query, q, y and dy are zero, and so is what it adds to every gradient.
    is_query_Q, row_Q, reads_z_Q, q_QK = load_queries(
        q, q_row, q_head, sequence, block * BLOCK_Q, n_queries, head, WIDTH, BLOCK_Q
    )
    y_QK = load_rows(y, row_Q, is_query_Q, HEADS * WIDTH, head, WIDTH, WIDTH).to(tl.float32)
    dy_QK = load_rows(dy, row_Q, is_query_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
    lse_Q = tl.load(lse + row_Q * HEADS + head, mask=is_query_Q, other=0.0)
    delta_Q = tl.sum(dy_QK.to(tl.float32) * y_QK, 1)
    tl.store(delta + row_Q * HEADS + head, delta_Q, mask=is_query_Q)

    z_k_K = load_vector(z_k, tl.load(sequence + 7), z_k_row, head, z_k_head, WIDTH)
    z_v_K = load_vector(z_v, tl.load(sequence + 7), z_v_row, head, z_v_head, WIDTH)
    p_z_Q = tl.exp2(scores_of_z(q_QK, z_k_K, reads_z_Q, scale) - lse_Q)
    ds_z_Q = p_z_Q * (tl.sum(dy_QK.to(tl.float32) * z_v_K[None, :], 1) - delta_Q)
    store_vector(dz, tl.program_id(0), 0, tl.sum(ds_z_Q[:, None] * q_QK.to(tl.float32), 0), 2, WIDTH)
    store_vector(dz, tl.program_id(0), 1, tl.sum(p_z_Q[:, None] * dy_QK.to(tl.float32), 0), 2, WIDTH)

    dq_QK = ds_z_Q[:, None] * z_k_K[None, :]
    for start in range(0, n_keys, BLOCK_K):
        is_key_N, _, k_NK, v_NK = load_keys(
            k, v, k_row, k_head, v_row, v_head, key_start, n_keys, start, head, WIDTH, BLOCK_K
        )
        p_QN = tl.exp2(scores_of_keys(q_QK, k_NK, is_key_N, scale) - lse_Q[:, None])
        ds_QN = score_gradients(p_QN, dy_QK, v_NK, delta_Q)
        dq_QK += tl.dot(ds_QN, k_NK, input_precision=FP32_PRODUCTS)
    store_rows(dq, row_Q, is_query_Q, head, dq_QK * scale, HEADS, WIDTH)


@triton.jit(do_not_specialize=["max_keys", "max_queries"])
def _key_gradients_kernel(
    q, k, v, z_k, z_v,
    q_row, q_head, k_row, k_head, v_row, v_head, z_k_row, z_k_head, z_v_row, z_v_head,
    sequences, scale, lse, dy, delta, dz, dk, dv, dz_k, dz_v, max_keys, max_queries,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dk = ds q, dv = p dy. The first program of a head adds up those of z."""
    sequence, head, block = _place(sequences, max_keys, BLOCK_K, HEADS)
    n_queries, key_start, n_keys = count_queries(sequence), tl.load(sequence + 5), tl.load(sequence + 6)
    if block == 0:
        dz_k_K = tl.zeros((padded_width(WIDTH),), tl.float32)
        dz_v_K = tl.zeros((padded_width(WIDTH),), tl.float32)
        first = tl.program_id(0) // tl.cdiv(max_keys, BLOCK_K) * tl.cdiv(max_queries, BLOCK_Q)
        for query_block in range(tl.cdiv(n_queries, BLOCK_Q)):
            dz_k_K += load_vector(dz, first + query_block, 2 * WIDTH, 0, WIDTH, WIDTH)
            dz_v_K += load_vector(dz, first + query_block, 2 * WIDTH, 1, WIDTH, WIDTH)
        store_vector(dz_k, tl.load(sequence + 7), head, dz_k_K * scale, HEADS, WIDTH)
        store_vector(dz_v, tl.load(sequence + 7), head, dz_v_K, HEADS, WIDTH)
    if block * BLOCK_K >= n_keys:
        return
    is_key_N, row_N, k_NK, v_NK = load_keys(
        k, v, k_row, k_head, v_row, v_head, key_start, n_keys, block * BLOCK_K, head, WIDTH, BLOCK_K
    )
    dk_NK = tl.zeros((BLOCK_K, padded_width(WIDTH)), tl.float32)
    dv_NK = tl.zeros((BLOCK_K, padded_width(WIDTH)), tl.float32)
    for start in range(0, n_queries, BLOCK_Q):
        is_query_Q, row_Q, _, q_QK = load_queries(q, q_row, q_head, sequence, start, n_queries, head, WIDTH, BLOCK_Q)
        dy_QK = load_rows(dy, row_Q, is_query_Q, HEADS * WIDTH, head, WIDTH, WIDTH)
        lse_Q = tl.load(lse + row_Q * HEADS + head, mask=is_query_Q, other=0.0)
        delta_Q = tl.load(delta + row_Q * HEADS + head, mask=is_query_Q, other=0.0)
        p_QN = tl.exp2(scores_of_keys(q_QK, k_NK, is_key_N, scale) - lse_Q[:, None])
        ds_QN = score_gradients(p_QN, dy_QK, v_NK, delta_Q)
        dv_NK += tl.dot(tl.trans(p_QN.to(dy_QK.dtype)), dy_QK, input_precision=FP32_PRODUCTS)
        dk_NK += tl.dot(tl.trans(ds_QN), q_QK, input_precision=FP32_PRODUCTS)
    store_rows(dk, row_N, is_key_N, head, dk_NK * scale, HEADS, WIDTH)
    store_rows(dv, row_N, is_key_N, head, dv_NK, HEADS, WIDTH)
