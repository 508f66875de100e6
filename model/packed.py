"""Transformer blocks on packed rows: only the tokens that somebody wants, without padding and without masks.

The tokens of all mask groups and streams lie one after the other as the rows of one matrix, so that every linear
layer is one product. Rows that nobody asks get no query, rows that nobody reads no key and no value, and in the last
layer only what is read is computed. Attention is `Rectangles`, a call of SDPA for each stream, or the one launch of
model/triton_attention.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from model.transformer import Block

TRITON_HEAD_WIDTHS = (16, 32, 64, 128)  # here, because Triton is not everywhere


@dataclass(frozen=True)
class Stream:
    """A block of rows of the packed matrix: `tokens` tokens of each of `batch` samples. number: its place there."""

    number: int
    batch: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


class Layout(list[Stream]):
    """The streams of a packed matrix, one after the other."""

    def add(self, batch: int, tokens: int) -> Stream:
        self.append(Stream(len(self), batch, tokens))
        return self[-1]


@dataclass(frozen=True)
class Part:
    """Streams of the same samples, by who reads whom.

    The tokens of `inner` read one another. z and each token of `asking` read inner and z; nobody reads `asking`.
    kept: instead of those of inner, keys and values that an earlier phase kept for this stream of its own.
    """

    z: Stream
    inner: Stream | None = None
    asking: Stream | None = None
    kept: Stream | None = None


@dataclass(frozen=True)
class Phase:
    """What goes through the layers together.

    Of the streams, the last are read at the end, from number `first_read` on; those of the `asking` come after all
    others. keep: streams that follow one another, whose keys and values the next phase reads; there they are `kept`.
    """

    streams: tuple[Stream, ...]
    parts: tuple[Part, ...]
    first_read: int
    keep: tuple[Stream, ...] = ()
    kept: tuple[Stream, ...] = ()

    @property
    def n_keys(self) -> int:
        """How many streams have keys and values."""
        return len(self.streams) - sum(part.asking is not None for part in self.parts)


# (q_QHK, k_NHK, v_NHK, phase, number of the first stream with queries, kept) -> (y_QHK, kept for the next phase)
Attend = Callable[[Tensor, Tensor, Tensor, Phase, int, object], tuple[Tensor, object]]


def run(
    blocks: Sequence[Block], x_NE: Tensor, phase: Phase, attend: Attend, kept: Sequence = ()
) -> tuple[Tensor, list]:
    """Packed rows through the blocks; those that are read at the end come out.

    kept: what the run of an earlier phase returned beside them, for its keep.
    """
    keeps = []
    key_rows = _rows(phase.streams[: phase.n_keys])
    for depth, block in enumerate(blocks):
        first = phase.first_read if depth == len(blocks) - 1 else 0
        first_row = _rows(phase.streams[:first])
        qkv = block.before_attention(x_NE, first_row, key_rows)
        y_QHK, keep = attend(*qkv, phase, first, kept[depth] if kept else None)
        keeps.append(keep)
        x_NE = block.after_attention(x_NE[first_row:], y_QHK)
    return x_NE, keeps


def _rows(streams: Sequence[Stream]) -> int:
    return sum(stream.rows for stream in streams)


def attend_by_rectangles(
    q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, phase: Phase, first: int, kept: dict | None
) -> tuple[Tensor, dict]:
    """Attention as plain rectangles, one for each stream that reads (z and asking read the same)."""
    queries = _by_stream(q_QHK, phase.streams[first:])
    keys, values = (_by_stream(x_NHK, phase.streams[: phase.n_keys]) for x_NHK in (k_NHK, v_NHK))
    answers = {}
    for part in phase.parts:
        k_BHNK, v_BHNK = (keys.get(part.inner), values.get(part.inner)) if part.kept is None else kept[part.kept]
        if part.inner in queries:
            answers[part.inner] = F.scaled_dot_product_attention(queries[part.inner], k_BHNK, v_BHNK)
        readers = [stream for stream in (part.z, part.asking) if stream in queries]
        k_BHNK, v_BHNK = _joined([k_BHNK, keys[part.z]]), _joined([v_BHNK, values[part.z]])
        y_BHNK = F.scaled_dot_product_attention(_joined([queries[s] for s in readers]), k_BHNK, v_BHNK)
        answers |= zip(readers, y_BHNK.split([stream.tokens for stream in readers], dim=2), strict=True)
    y_QHK = torch.cat([answers[stream].transpose(1, 2).flatten(0, 1) for stream in phase.streams[first:]])
    return y_QHK, {stream: (keys[stream], values[stream]) for stream in phase.keep}


def _by_stream(x_NHK: Tensor, streams: Sequence[Stream]) -> dict[Stream, Tensor]:
    """The rows of each stream as (batch, heads, tokens, width of a head).

    One split, because its backward is one concatenation; that of a slice fills a whole matrix with zeros.
    """
    parts = x_NHK.split([stream.rows for stream in streams])
    return {s: x.unflatten(0, (s.batch, s.tokens)).transpose(1, 2) for s, x in zip(streams, parts, strict=True)}


def _joined(parts: list[Tensor | None]) -> Tensor:
    present = [part for part in parts if part is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim=2)


def attend_in_one_launch(
    q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, phase: Phase, first: int, kept: tuple | None
) -> tuple[Tensor, tuple | None]:
    """Attention of all parts by the kernel of model/triton_attention.py."""
    from model.triton_attention import sequence_attention  # Triton is there where CUDA is

    sequences_S8, max_keys, max_queries = sequence_table(phase, first, q_QHK.device)
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
    if not phase.keep:
        return y_QHK, None
    start = _rows(phase.streams[: phase.keep[0].number])
    rows = slice(start, start + _rows(phase.keep))
    return y_QHK, (k_NHK[rows], v_NHK[rows])


@cache  # plans repeat, and a captured graph reads the table for ever
def sequence_table(phase: Phase, first: int, device: torch.device) -> tuple[Tensor, int, int]:
    """The table of `sequence_attention` for queries from stream `first` on, and its bounds of keys and queries."""

    def start_and_size(stream: Stream | None, origin: int) -> tuple[Tensor, Tensor]:
        """The first row in each sample, counted from stream `origin` on, and the number of tokens."""
        if stream is None or stream.number < origin:
            return zero_B, zero_B
        return _rows(phase.streams[origin : stream.number]) + sample_B * stream.tokens, zero_B + stream.tokens

    tables = []
    for part in phase.parts:
        sample_B = torch.arange(part.z.batch, device="cpu")
        zero_B = torch.zeros_like(sample_B)
        z_query_B = start_and_size(part.z, first)[0] if part.z.number >= first else zero_B - 1
        if part.kept is None:
            keys = start_and_size(part.inner, 0)
        else:
            before = _rows(phase.kept[: phase.kept.index(part.kept)])
            keys = before + sample_B * part.kept.tokens, zero_B + part.kept.tokens
        z_key_B = start_and_size(part.z, 0)[0]
        columns = [*start_and_size(part.inner, first), z_query_B, *start_and_size(part.asking, first), *keys, z_key_B]
        tables.append(torch.stack(columns, dim=1))
    table_S8 = torch.cat(tables).int()
    max_queries = (table_S8[:, 1] + (table_S8[:, 2] >= 0) + table_S8[:, 4]).max().item()
    return table_S8.to(device), table_S8[:, 6].max().item(), max_queries
