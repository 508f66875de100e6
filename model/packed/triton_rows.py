"""What the attention kernels share: one head of rows of a matrix, the queries of a sequence, scores.

A block of rows is (N, BLOCK_W), float32 vectors are (BLOCK_W,): BLOCK_W is the width of a head rounded up to what
products take (`padded_width`), with zeros behind the width. The lines of `sequences` are those of triton_kernel.py.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
FP32_PRODUCTS = tl.constexpr("ieee")  # what fp32 inputs are multiplied in


@triton.constexpr_function
def padded_width(width):
    return max(16, triton.next_power_of_2(width))  # 16: the least that tl.dot takes


@triton.jit
def columns(WIDTH: tl.constexpr):
    return tl.arange(0, padded_width(WIDTH))


@triton.jit
def is_element(is_row_N, WIDTH: tl.constexpr):
    """Which elements of a block are there, of the rows that are."""
    return is_row_N[:, None] & (columns(WIDTH) < WIDTH)[None, :]


@triton.jit
def pointers(rows, row_N, row_stride, head, head_stride, WIDTH: tl.constexpr):
    return rows + head * head_stride + row_N.to(tl.int64)[:, None] * row_stride + columns(WIDTH)[None, :]


@triton.jit
def load_rows(rows, row_N, is_row_N, row_stride, head, head_stride, WIDTH: tl.constexpr):
    """A block of rows, zeros where there is none."""
    return tl.load(
        pointers(rows, row_N, row_stride, head, head_stride, WIDTH), mask=is_element(is_row_N, WIDTH), other=0.0
    )


@triton.jit
def store_rows(rows, row_N, is_row_N, head, block_NK, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """A block to where it is in a contiguous matrix (rows, heads, width), in its dtype."""
    tl.store(
        pointers(rows, row_N, HEADS * WIDTH, head, WIDTH, WIDTH),
        block_NK.to(rows.dtype.element_ty),
        mask=is_element(is_row_N, WIDTH),
    )


@triton.jit
def load_vector(rows, row, row_stride, head, head_stride, WIDTH: tl.constexpr):
    """A single row in float32."""
    vector = rows + head * head_stride + row.to(tl.int64) * row_stride + columns(WIDTH)
    return tl.load(vector, mask=columns(WIDTH) < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def store_vector(rows, row, head, vector_K, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """A single row to where it is in a contiguous matrix (rows, heads, width), in its dtype."""
    offset_K = (row.to(tl.int64) * HEADS + head) * WIDTH + columns(WIDTH)
    tl.store(rows + offset_K, vector_K.to(rows.dtype.element_ty), mask=columns(WIDTH) < WIDTH)


@triton.jit
def count_queries(sequence):
    return tl.load(sequence + 1) + (tl.load(sequence + 2) >= 0).to(tl.int32) + tl.load(sequence + 4)


@triton.jit
def query_rows(sequence, position_Q):
    """The queries at positions in a sequence, inner ones, then z, then asking ones: their rows; who reads z."""
    inner_start, n_inner = tl.load(sequence), tl.load(sequence + 1)
    z_query, asking_start = tl.load(sequence + 2), tl.load(sequence + 3)
    first_asking = n_inner + (z_query >= 0).to(tl.int32)
    row_Q = tl.where(position_Q < n_inner, inner_start + position_Q, z_query)
    row_Q = tl.where(position_Q < first_asking, row_Q, asking_start + position_Q - first_asking)
    return row_Q, position_Q >= n_inner


@triton.jit
def load_queries(q, q_row, q_head, sequence, start, n_queries, head, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr):
    """A block of the queries of a sequence, from position start on: which are there, their rows, who reads z; q."""
    position_Q = start + tl.arange(0, BLOCK_Q)
    is_query_Q = position_Q < n_queries
    row_Q, reads_z_Q = query_rows(sequence, position_Q)
    return is_query_Q, row_Q, reads_z_Q, load_rows(q, row_Q, is_query_Q, q_row, head, q_head, WIDTH)


@triton.jit
def load_keys(
    k, v, k_row, k_head, v_row, v_head, key_start, n_keys, start, head, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """A block of the keys of a sequence, from position start on: which are there, their rows; keys and values."""
    position_N = start + tl.arange(0, BLOCK_K)
    is_key_N, row_N = position_N < n_keys, key_start + position_N
    k_NK = load_rows(k, row_N, is_key_N, k_row, head, k_head, WIDTH)
    return is_key_N, row_N, k_NK, load_rows(v, row_N, is_key_N, v_row, head, v_head, WIDTH)


@triton.jit
def score_gradients(p_QN, dy_QK, v_NK, delta_Q):
    """ds = p (dp - delta), where dp = dy v, in the dtype of v."""
    dp_QN = tl.dot(dy_QK, tl.trans(v_NK), input_precision=FP32_PRODUCTS)
    return (p_QN * (dp_QN - delta_Q[:, None])).to(v_NK.dtype)


@triton.jit
def scores_of_keys(q_QK, k_NK, is_key_N, scale):
    """(Q, N) in units of log 2, -inf where there is no key."""
    score_QN = tl.dot(q_QK, tl.trans(k_NK), input_precision=FP32_PRODUCTS) * (scale * LOG2_E)
    return tl.where(is_key_N[None, :], score_QN, float("-inf"))


@triton.jit
def scores_of_z(q_QK, z_k_K, reads_z_Q, scale):
    """(Q,) in units of log 2, -inf where z is not read."""
    score_z_Q = tl.sum(q_QK.to(tl.float32) * z_k_K[None, :], 1) * (scale * LOG2_E)
    return tl.where(reads_z_Q, score_z_Q, float("-inf"))
