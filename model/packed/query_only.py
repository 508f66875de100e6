"""The phases of `query_only` mode, whose mask tokens and z are never keys of x_S or x_{S∪T} (model/attention.py).

1. x_{S∪T} -> posterior and x_S -> prior, each with its z-query;
2. with z drawn: z and [M] at T. With one trunk, x_S is that of the prior: its keys and values are used again; a second
   trunk has x_S go through it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from model.packed.plan import Group, PackedLayer, Phase, Reading, Rows, Segment, places_of

Segments = tuple[Segment, ...]


@dataclass(frozen=True)
class _Part:
    """Segments of the same samples in `query_only` mode, by who reads whom.

    The tokens of `inner` read one another. z and each token of `asking` read inner and z; nobody reads `asking`.
    kept: instead of those of inner, keys and values that the phase before kept for this segment of its own.
    """

    z: Segment
    inner: Segment | None = None
    asking: Segment | None = None
    kept: Segment | None = None

    @property
    def readings(self) -> tuple[Reading, Reading]:
        inner, asking = ((segment,) if segment else () for segment in (self.inner, self.asking))
        return Reading(inner, inner), Reading((self.z, *asking), (*inner, self.z), self.kept)


def query_only_phases(groups: list[Group], own: list[int], has_shared: bool, one_trunk: bool) -> tuple[Phase, Phase]:
    """own: the groups that have a prior of their own; has_shared: the others share p(z)."""
    patches, batch = groups[0].patches, len(groups[0].sample_B)
    entering = [group.S_and_T for group in groups] + [groups[g].S for g in own]
    rows = Rows()
    segments = [rows.add(*rank_BN.shape) for rank_BN in entering]
    parts = [_Part(rows.add(batch, 1), inner=segment) for segment in segments]
    parts += [_Part(rows.add(1, 1))] if has_shared else []
    seen = dict(zip(own, segments[len(groups) :], strict=True))
    keep = tuple(seen.values()) if one_trunk else ()
    most, last = _layers(rows, parts, parts[0].z.start, rows[-1].stop, keep=keep)
    encode = Phase(places_of(entering, patches), rows[-1].stop - parts[0].z.start, places_of([], patches), most, last)

    again = [] if one_trunk else [g for g, group in enumerate(groups) if group.n_S]
    rows = Rows()
    inner = {g: rows.add(*groups[g].S.shape) for g in again}
    z = [rows.add(batch, 1) for _ in groups]
    asking = [rows.add(*group.T.shape) for group in groups]
    kept = seen if one_trunk else {}
    parts = [_Part(z[g], inner.get(g), asking[g], kept.get(g)) for g in range(len(groups))]
    most, last = _layers(rows, parts, asking[0].start, asking[0].start, kept=keep)
    entering, masked = [groups[g].S for g in again], [group.T for group in groups]
    return encode, Phase(places_of(entering, patches), batch * len(groups), places_of(masked, patches), most, last)


def _layers(
    rows: Rows, parts: list[_Part], first_read: int, n_keys: int, keep: Segments = (), kept: Segments = ()
) -> Iterator[PackedLayer]:
    """All but the last, and the last one, of which the rows from first_read on are read."""
    readings = [*chain.from_iterable(part.readings for part in parts)]
    for first_query in (0, first_read):
        sequences = _sequences(parts, first_query, kept)
        yield rows.layer(readings, first_query, n_keys, keep=keep, kept=kept, sequences=sequences)


def _sequences(parts: list[_Part], first_query: int, kept: Segments) -> tuple[Tensor, int, int]:
    """A line for each sample of each part. Rows of queries count from first_query on, those that are kept from 0."""
    tables, n_keys, n_queries = [], [], []
    for part in parts:
        sample_B = torch.arange(part.z.batch)

        def start_and_size(segment: Segment | None, origin: int = 0, sample_B: Tensor = sample_B) -> tuple:
            if segment is None or segment.start < origin:
                return torch.zeros_like(sample_B), torch.zeros_like(sample_B)
            return segment.start - origin + sample_B * segment.tokens, torch.full_like(sample_B, segment.tokens)

        inner, asking = start_and_size(part.inner, first_query), start_and_size(part.asking, first_query)
        asks = part.z.start >= first_query
        z_query_B = start_and_size(part.z, first_query)[0] if asks else torch.full_like(sample_B, -1)
        keys = start_and_size(part.kept, kept[0].start) if part.kept else start_and_size(part.inner)
        z_key_B = start_and_size(part.z)[0]
        tables.append(torch.stack([*inner, z_query_B, *asking, *keys, z_key_B], dim=1))
        n_keys.append((part.kept or part.inner or Segment(0, 0, 0)).tokens)
        asked = [segment for segment in (part.inner, part.z, part.asking) if segment and segment.start >= first_query]
        n_queries.append(sum(segment.tokens for segment in asked))
    return torch.cat(tables).int(), max(n_keys), max(n_queries)
