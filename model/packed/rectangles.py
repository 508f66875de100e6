"""Attention on packed rows as plain rectangles: a call of SDPA for each reading of a layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.packed.plan import PackedLayer, Segment


def attend_by_rectangles(
    layer: PackedLayer, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: Any
) -> tuple[Tensor, list]:
    """As model.transformer.Attend."""
    queries = _by_segment(q_QHK, layer.queries)
    read = list(zip(*(_by_segment(x_NHK, layer.keys) for x_NHK in (k_NHK, v_NHK)), strict=True))
    answers: list[Any] = [None] * len(queries)
    for reading in layer.readings:
        of_kept = [] if reading.kept is None else [kept[reading.kept]]
        k_BHNK, v_BHNK = map(_joined, zip(*of_kept, *(read[n] for n in reading.keys), strict=True))
        asking = [queries[n] for n in reading.queries]
        y_BHNK = F.scaled_dot_product_attention(_joined(asking), k_BHNK, v_BHNK)
        for n, y in zip(reading.queries, y_BHNK.split([q.shape[2] for q in asking], dim=2), strict=True):
            answers[n] = y
    y_QHK = torch.cat([y_BHNK.transpose(1, 2).flatten(0, 1) for y_BHNK in answers])
    return y_QHK, read[layer.keep]


def _by_segment(x_NHK: Tensor, segments: Sequence[Segment]) -> list[Tensor]:
    """The rows of each segment as (batch, heads, tokens, width of a head).

    One split, because its backward is one concatenation; that of a slice fills a whole matrix with zeros.
    """
    parts = x_NHK.split([segment.rows for segment in segments])
    return [x.unflatten(0, (s.batch, s.tokens)).transpose(1, 2) for s, x in zip(segments, parts, strict=True)]


def _joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
