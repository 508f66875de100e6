"""The phases of `dense` mode: every pass has all L+1 tokens, and all of them read one another."""

from dataclasses import replace

import torch

from model.packed.plan import Group, Phase, Reading, Rows, places_of


def dense_phases(groups: list[Group], own: list[int], has_shared: bool) -> tuple[Phase, Phase]:
    """Passes of all L+1 tokens: x_{S∪T}, x_S and, once for all groups without S, nothing; then x_S with z."""
    z = slice(groups[0].patches, groups[0].patches + 1)
    encode = [(group, group.n_S + group.n_T, z) for group in groups] + [(groups[g], groups[g].n_S, z) for g in own]
    encode += [(replace(groups[0], sample_B=groups[0].sample_B[:1]), 0, z)] if has_shared else []
    decode = [(group, group.n_S, slice(group.n_S, group.n_S + group.n_T)) for group in groups]
    return _phase(encode), _phase(decode)


def _phase(passes: list[tuple[Group, int, slice]]) -> Phase:
    """passes: a group, how many of its places are known, and which tokens of [known, [M], z] are read at the end."""
    patches = passes[0][0].patches
    known = [group.ranks(0, n) for group, n, _ in passes]
    masked = [group.ranks(n, patches) for group, n, _ in passes]
    rows = Rows()
    x = [rows.add(*rank_BN.shape) for rank_BN in known]
    z = [rows.add(len(rank_BN), 1) for rank_BN in known]
    m = [rows.add(*rank_BN.shape) for rank_BN in masked]
    order = [torch.cat([segment.index_BN() for segment in of_pass], 1) for of_pass in zip(x, m, z, strict=True)]

    rows = Rows()
    everything = rows.add(sum(segment.batch for segment in z), patches + 1)
    inner = rows.layer([Reading((everything,), (everything,))])

    rows = Rows()
    index = everything.index_BN().split([segment.batch for segment in z])
    others = [
        torch.cat([i_BN[:, : w.start], i_BN[:, w.stop :]], 1) for i_BN, (*_, w) in zip(index, passes, strict=True)
    ]
    wanted = [i_BN[:, w] for i_BN, (*_, w) in zip(index, passes, strict=True)]
    segments = [rows.add(*i_BN.shape) for i_BN in others + wanted]
    readings = [Reading((w,), (o, w)) for o, w in zip(segments[: len(passes)], segments[len(passes) :], strict=True)]
    order_last_N = torch.cat([i_BN.flatten() for i_BN in others + wanted])
    last = rows.layer(readings, segments[len(passes)].start, order_N=order_last_N)
    n_z, order_N = everything.batch, torch.cat(order).flatten()
    return Phase(places_of(known, patches), n_z, places_of(masked, patches), inner, last, order_N)
