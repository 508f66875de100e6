"""Transformer blocks on packed rows: only the tokens that somebody wants, without padding and without masks.

The tokens of all mask groups and streams lie one after the other as the rows of one matrix, so that every linear
layer is one product; every attention is a plain rectangle of one group. Rows that nobody asks get no query, rows
that nobody reads no key and no value, and in the last layer only what is read is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.transformer import Block


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

    def split(self, x_NK: Tensor, first: int = 0, stop: int | None = None) -> list[Tensor]:
        """The rows of each stream from number `first` on, whose row is the first of x_NK.

        One split, because its backward is one concatenation; that of a slice fills a whole matrix with zeros.
        """
        return x_NK.split([stream.rows for stream in self[first:stop]])


@dataclass(frozen=True)
class Rectangle:
    """A stream reads the keys of the same samples in others, and maybe in one that an earlier phase kept."""

    queries: Stream
    keys: tuple[Stream, ...]
    kept: int | None = None  # number of the kept stream


KeysAndValues = tuple[Tensor, Tensor]  # (batch, heads, tokens, width of a head) each


def run(
    blocks: Sequence[Block],
    x_NE: Tensor,
    layout: Layout,
    rectangles: Sequence[Rectangle],
    *,
    first_read: int,
    keep: tuple[Stream, ...] = (),
    kept: Sequence[Sequence[KeysAndValues]] = (),
) -> tuple[Tensor, list[list[KeysAndValues]]]:
    """Packed rows through the blocks; those of the streams from number `first_read` on come out.

    rectangles: one for each stream, in their order. keep: streams whose keys and values are returned, for each
    block. kept: what an earlier run returned; `Rectangle.kept` counts its streams.
    """
    returned = []
    read = layout[: 1 + max(stream.number for rectangle in rectangles for stream in rectangle.keys)]
    key_rows = sum(stream.rows for stream in read)
    for depth, block in enumerate(blocks):
        is_last = depth == len(blocks) - 1
        first = first_read if is_last else 0
        first_row = sum(stream.rows for stream in layout[:first])
        q_NHK, k_NHK, v_NHK = block.attn.project(block.norm1(x_NE), first_row, key_rows)
        queries = [_by_sample(x, s) for x, s in zip(layout.split(q_NHK, first), layout[first:], strict=True)]
        keys, values = (
            [_by_sample(x, s) for x, s in zip(layout.split(x_NHK, stop=len(read)), read, strict=True)]
            for x_NHK in (k_NHK, v_NHK)
        )
        answers = []
        for rectangle in rectangles[first:]:
            of_keys = [keys[stream.number] for stream in rectangle.keys]
            of_values = [values[stream.number] for stream in rectangle.keys]
            if rectangle.kept is not None:
                kept_keys, kept_values = kept[depth][rectangle.kept]
                of_keys, of_values = [kept_keys, *of_keys], [kept_values, *of_values]
            q_BHNK = queries[rectangle.queries.number - first]
            y_BHNK = F.scaled_dot_product_attention(q_BHNK, _joined(of_keys), _joined(of_values))
            answers.append(y_BHNK.transpose(1, 2).flatten(2).flatten(0, 1))
        returned.append([(keys[stream.number], values[stream.number]) for stream in keep])
        x_NE = x_NE[first_row:] + block.attn.proj(torch.cat(answers))
        x_NE = x_NE + block.mlp(block.norm2(x_NE))
    return x_NE, returned


def _by_sample(x_NHK: Tensor, stream: Stream) -> Tensor:
    """(batch, heads, tokens, width of a head)."""
    return x_NHK.unflatten(0, (stream.batch, stream.tokens)).transpose(1, 2)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
