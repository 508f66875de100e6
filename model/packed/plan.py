"""What follows from the mask sizes of a step alone, and is therefore computed once: `PackedPlan`.

The tokens of all samples lie one after the other as the rows of one matrix, without padding, so that every linear
layer is one product. An ELBO takes two passes through the layers, which are the `Phase`s of a plan: encode, for
posteriors and priors, and decode. A `PackedLayer` says which rows ask and which are asked: rows that nobody reads get
no key and no value, and in the last layer only what is read at the end asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.transformer import Layer

TRITON_HEAD_WIDTHS = range(8, 129, 8)  # what model/packed/triton_kernel.py takes; here: Triton is not everywhere


def kernel_misfit(mask_tokens: str, head_width: int) -> str | None:
    """Why attention in one launch cannot serve a model; None where it can."""
    if mask_tokens != "query_only":
        return f"serves model.mask_tokens=query_only alone, not {mask_tokens}"
    if head_width not in TRITON_HEAD_WIDTHS:
        widths = f"a multiple of {TRITON_HEAD_WIDTHS.step} up to {TRITON_HEAD_WIDTHS[-1]}"
        return f"needs heads whose width is {widths}, and model.embed_dim / model.num_heads is {head_width}"
    return None


@dataclass(frozen=True)
class Segment:
    """Rows that follow one another, from `start` on: `tokens` tokens of each of `batch` samples."""

    start: int
    batch: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens

    @property
    def stop(self) -> int:
        return self.start + self.rows

    def index_BN(self) -> Tensor:
        return self.start + torch.arange(self.rows).view(self.batch, self.tokens)


@dataclass(frozen=True)
class Reading:
    """Each token of the segments `queries` reads all tokens of its sample in `kept`, then in `keys`.

    kept: a segment of the phase before, whose keys and values were kept.
    """

    queries: tuple[Segment, ...]
    keys: tuple[Segment, ...]
    kept: Segment | None = None


@dataclass(frozen=True)
class Rectangle:
    """A reading in a layer: the numbers of its segments there, among those that ask, are asked and are kept."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    kept: int | None


@dataclass(frozen=True, eq=False)
class PackedLayer(Layer):
    """Who reads whom among the packed rows.

    queries, keys: the segments that ask and are asked. keep: which of keys the next phase reads, in whose layers they
    are `kept`. sequences: the readings as model/packed/triton_kernel.py takes them, a table (S, 8), the most keys and
    the most queries of its lines.
    """

    queries: tuple[Segment, ...] = ()
    keys: tuple[Segment, ...] = ()
    readings: tuple[Rectangle, ...] = ()
    keep: slice = field(default_factory=lambda: slice(0))
    kept: tuple[Segment, ...] = ()
    sequences: tuple[Tensor, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Places:
    """Some places of some samples. rank_N: where they stand in order_BL, one sample after the other.

    first_N: where the first patch of each one's image stands among the patches of all images.
    """

    rank_N: Tensor
    first_N: Tensor


@dataclass(frozen=True, eq=False)
class Phase:
    """One pass through a trunk: rows of patches, then n_z of z or its queries, then of [M].

    order_N: in which order they go in; None: this one. last: the last layer; inner: all others.
    """

    patches: Places
    n_z: int
    masked: Places
    inner: PackedLayer
    last: PackedLayer
    order_N: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PackedPlan:
    """A plan for so many samples, the groups one after the other, each an equal share of them.

    Encode answers with the posteriors of all samples, then with priors; `priors` has the rows of each group's among
    these answers, a single one for p(z); none where the prior is fixed. Decode answers with the patches at `targets`.
    """

    encode: Phase
    decode: Phase
    priors: tuple[slice, ...]
    targets: Places


# What plans are made of


@dataclass(frozen=True, eq=False)
class Group:
    """The samples of one mask group, and where places of each stand in order_BL, (B, places): first S, then T."""

    sample_B: Tensor
    patches: int
    n_S: int
    n_T: int

    @property
    def S(self) -> Tensor:
        return self.ranks(0, self.n_S)

    @property
    def T(self) -> Tensor:
        return self.ranks(self.n_S, self.n_S + self.n_T)

    @property
    def S_and_T(self) -> Tensor:
        return self.ranks(0, self.n_S + self.n_T)

    def ranks(self, start: int, stop: int) -> Tensor:
        return self.sample_B[:, None] * self.patches + torch.arange(start, stop)


def places_of(ranks: Sequence[Tensor], patches: int) -> Places:
    rank_N = torch.cat([rank_BN.flatten() for rank_BN in ranks]) if ranks else torch.arange(0)
    return Places(rank_N, rank_N - rank_N % patches)


class Rows(list[Segment]):
    """The segments of a phase, one after the other."""

    def add(self, batch: int, tokens: int) -> Segment:
        self.append(Segment(self[-1].stop if self else 0, batch, tokens))
        return self[-1]

    def layer(
        self,
        readings: Sequence[Reading],
        first_query: int = 0,
        n_keys: int | None = None,
        keep: Sequence[Segment] = (),
        kept: Sequence[Segment] = (),
        **more: Any,
    ) -> PackedLayer:
        """Of the readings only what the rows from first_query on ask."""
        n_keys = self[-1].stop if n_keys is None else n_keys
        queries = tuple(segment for segment in self if segment.start >= first_query)
        keys = tuple(segment for segment in self if segment.stop <= n_keys)
        rectangles = []
        for reading in readings:
            asking = tuple(queries.index(segment) for segment in reading.queries if segment in queries)
            asked = tuple(keys.index(segment) for segment in reading.keys)
            if asking:
                rectangles.append(Rectangle(asking, asked, kept.index(reading.kept) if reading.kept else None))
        first_kept = keys.index(keep[0]) if keep else 0
        return PackedLayer(
            first_query,
            n_keys,
            queries=queries,
            keys=keys,
            readings=tuple(rectangles),
            keep=slice(first_kept, first_kept + len(keep)),
            kept=tuple(kept),
            **more,
        )
