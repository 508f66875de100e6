"""The objective of a plan in `query_only` mode, for the tokens that somebody wants and no others.

Who attends to whom is the table of model/attention.py. Because mask tokens and z are never keys of x_S or x_{S∪T},
an ELBO has two phases through the layers:

1. x_{S∪T} -> posterior and x_S -> prior, each with its z-query;
2. with z drawn: z and [M] at T. In biglearn_u, x_S is the stream of the prior: its keys and values are used again;
   biglearn_t sends it through its second trunk.

The tokens of all groups and streams lie one after the other as the rows of one matrix, so that every linear layer is
one product; every attention is a plain rectangle of one group. In the last layer of a phase only what is read is
computed, elsewhere only keys and values; and all samples with empty S share one row, p(z). Row by row the results
are those of `encode` and `decode`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.biglearn import BigLearnVAE
from model.masks import Plan
from model.objective import ElboTerms, gaussian_kl
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

    def split(self, x_NK: Tensor, first: int = 0) -> list[Tensor]:
        """The rows of each stream from number `first` on, whose row is the first of x_NK.

        One split, because its backward is one concatenation; that of a slice fills a whole matrix with zeros.
        """
        return x_NK.split([stream.rows for stream in self[first:]])


@dataclass(frozen=True)
class Rectangle:
    """A stream reads the keys of the same samples in others, and maybe in one that an earlier phase kept."""

    queries: Stream
    keys: tuple[Stream, ...]
    kept: int | None = None  # number of the kept stream


KeysAndValues = tuple[Tensor, Tensor]  # (batch, heads, tokens, width of a head) each


def packed_elbo_terms(
    model: BigLearnVAE, x_BLD: Tensor, plan: Plan, order_BL: Tensor, noise_BZ: Tensor, *, standard_prior: bool
) -> ElboTerms:
    """What `elbo_terms` gives for a batch whose samples are the plan's groups one after the other, in equal shares.

    order_BL: the places of each sample; the first |S| are S, the next |T| are T. The rest as in `elbo_terms`.
    """
    batch = len(x_BLD) // len(plan.groups)
    groups = list(enumerate(plan.groups))
    of_group = [slice(g * batch, (g + 1) * batch) for g, _ in groups]
    observing = [g for g, (n_S, _) in groups if n_S]
    with_prior = [] if standard_prior else observing
    shares_prior = not standard_prior and len(observing) < len(groups)
    assert not (standard_prior and observing), "only the joint VAE has the prior N(0, I), and it observes nothing"

    # Phase 1. The rows: x_{S∪T} of every group; x_S of the groups that have a prior; z-queries; the one of p(z).
    places = [order_BL[rows, : n_S + n_T] for rows, (_, (n_S, n_T)) in zip(of_group, groups, strict=True)]
    patches = [
        x_BLD[rows].gather(1, place_BN[..., None].expand(-1, -1, x_BLD.shape[-1]))
        for rows, place_BN in zip(of_group, places, strict=True)
    ]
    n_queries = len(x_BLD) + batch * len(with_prior) + shares_prior
    tokens_NE = model.embed(
        x_ND=torch.cat([x.flatten(0, 1) for x in patches]),
        place_N=torch.cat([place_BN.flatten() for place_BN in places]),
        z_queries=n_queries,
    )
    layout = Layout()
    known = [layout.add(batch, n_S + n_T) for _, (n_S, n_T) in groups]
    seen = [part.unflatten(0, (batch, -1)) for part in layout.split(tokens_NE[:-n_queries])]
    observed = {g: layout.add(batch, plan.groups[g][0]) for g in with_prior}
    posterior_query = [layout.add(batch, 1) for _ in groups]
    prior_query = {g: layout.add(batch, 1) for g in with_prior}
    shared_query = [layout.add(1, 1)] if shares_prior else []
    tokens_NE = torch.cat(
        [
            tokens_NE[:-n_queries],
            *(seen[g][:, : plan.groups[g][0]].flatten(0, 1) for g in with_prior),
            tokens_NE[-n_queries:],
        ]
    )
    rectangles = [
        *(Rectangle(stream, (stream,)) for stream in known),
        *(Rectangle(stream, (stream,)) for stream in observed.values()),
        *(Rectangle(query, (stream, query)) for query, stream in zip(posterior_query, known, strict=True)),
        *(Rectangle(query, (observed[g], query)) for g, query in prior_query.items()),
        *(Rectangle(query, (query,)) for query in shared_query),
    ]
    is_universal = model.method == "biglearn_u"
    encoder = model.trunk if is_universal else model.encoder
    answers_QE, kept = run(
        encoder.blocks,
        tokens_NE,
        layout,
        rectangles,
        first_read=posterior_query[0].number,
        keep=tuple(observed.values()) if is_universal else (),
    )
    mu_QZ, logvar_QZ = model.z_distribution(answers_QE)
    mu_q, logvar_q = mu_QZ[: len(x_BLD)], logvar_QZ[: len(x_BLD)]  # the posterior's queries come first
    if standard_prior:
        mu_p, logvar_p = torch.zeros_like(mu_q), torch.zeros_like(logvar_q)
    else:

        def of_prior(answers_QZ: Tensor) -> Tensor:
            """Then those of the groups that observe; where S is empty, all samples share the last row, p(z)."""
            own = iter(answers_QZ[len(x_BLD) :].split(batch))
            return torch.cat([next(own) if n_S else answers_QZ[-1:].expand(batch, -1) for n_S, _ in plan.groups])

        mu_p, logvar_p = of_prior(mu_QZ), of_prior(logvar_QZ)
    z_BZ = mu_q + (0.5 * logvar_q).exp() * noise_BZ

    # Phase 2. The rows: x_S again where it has a trunk of its own; z; [M] at T.
    layout = Layout()
    repeats = [] if is_universal else observing
    observed = {g: layout.add(batch, plan.groups[g][0]) for g in repeats}
    z_streams = [layout.add(batch, 1) for _ in groups]
    wanted = [layout.add(batch, n_T) for _, (_, n_T) in groups]
    tokens_NE = model.embed(
        masked_place_N=torch.cat([p[:, n_S:].flatten() for p, (_, (n_S, _)) in zip(places, groups, strict=True)]),
        z_BZ=z_BZ,
    )
    masked_NE, z_BE = tokens_NE.split([len(tokens_NE) - len(x_BLD), len(x_BLD)])
    again = [seen[g][:, : plan.groups[g][0]].flatten(0, 1) for g in repeats]
    kept_as = {g: i for i, g in enumerate(with_prior)} if is_universal else {}

    def reads(queries: Stream, g: int) -> Rectangle:
        own = (observed[g], z_streams[g]) if g in observed else (z_streams[g],)
        return Rectangle(queries, own, kept_as.get(g))

    rectangles = [
        *(Rectangle(stream, (stream,)) for stream in observed.values()),
        *(reads(stream, g) for g, stream in enumerate(z_streams)),
        *(reads(stream, g) for g, stream in enumerate(wanted)),
    ]
    decoder = model.trunk if is_universal else model.decoder
    packed_NE = torch.cat([*again, z_BE, masked_NE])
    answers_NE, _ = run(decoder.blocks, packed_NE, layout, rectangles, first_read=wanted[0].number, kept=kept)
    target_ND = torch.cat([x[:, n_S:].flatten(0, 1) for x, (_, (n_S, _)) in zip(patches, groups, strict=True)])
    error_N = (model.x_head(answers_NE).float() - target_ND).square().sum(-1)
    parts = error_N.split([batch * n_T for _, (_, n_T) in groups])
    sse_B = torch.cat([part.view(batch, -1).sum(1) for part in parts])
    return ElboTerms(-0.5 * sse_B, gaussian_kl(mu_q, logvar_q, mu_p, logvar_p))


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
    for depth, block in enumerate(blocks):
        is_last = depth == len(blocks) - 1
        first = first_read if is_last else 0
        first_row = sum(stream.rows for stream in layout[:first])
        q_NHK, k_NHK, v_NHK = block.attn.project(block.norm1(x_NE), first_row)
        queries = [_by_sample(x, s) for x, s in zip(layout.split(q_NHK, first), layout[first:], strict=True)]
        keys, values = (
            [_by_sample(x, s) for x, s in zip(layout.split(x_NHK), layout, strict=True)] for x_NHK in (k_NHK, v_NHK)
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
