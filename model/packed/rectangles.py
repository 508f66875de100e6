"""Attention on packed rows as plain rectangles: a call of SDPA for each reading of a layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.packed.plan import PackedLayer, Segment


def attend_by_rectangles(
    layer: PackedLayer, q_QHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, kept: Any
) -> tuple[Tensor, dict]:
    """As model.transformer.Attend."""
    queries = _by_segment(q_QHK, layer.queries)
    keys, values = (_by_segment(x_NHK, layer.keys) for x_NHK in (k_NHK, v_NHK))
    answers: dict[Segment, Tensor] = {}
    for reading in layer.readings:
        of_kept = [kept[reading.kept]] if reading.kept else []
        read = of_kept + [(keys[segment], values[segment]) for segment in reading.keys]
        k_BHNK, v_BHNK = (_joined(parts) for parts in zip(*read, strict=True))
        y_BHNK = F.scaled_dot_product_attention(_joined([queries[s] for s in reading.queries]), k_BHNK, v_BHNK)
        answers |= zip(reading.queries, y_BHNK.split([s.tokens for s in reading.queries], dim=2), strict=True)
    y_QHK = torch.cat([answers[segment].transpose(1, 2).flatten(0, 1) for segment in layer.queries])
    return y_QHK, {segment: (keys[segment], values[segment]) for segment in layer.keep}


def _by_segment(x_NHK: Tensor, segments: Sequence[Segment]) -> dict[Segment, Tensor]:
    """The rows of each segment as (batch, heads, tokens, width of a head).

    One split, because its backward is one concatenation; that of a slice fills a whole matrix with zeros.
    """
    parts = x_NHK.split([segment.rows for segment in segments])
    return {s: x.unflatten(0, (s.batch, s.tokens)).transpose(1, 2) for s, x in zip(segments, parts, strict=True)}


def _joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
