"""The objective of a plan, without computing anything twice or in vain: what training uses in both modes.

The results are those of `elbo_terms` (model/objective.py), the readable form, row by row. The samples of a batch are
the plan's groups one after the other, in equal shares; order_BL holds the places of each sample: the first |S| are S,
the next |T| are T.

In `query_only` mode (the table of model/attention.py) mask tokens and z are never keys of x_S or x_{S∪T}, so an ELBO
has two phases through the layers:

1. x_{S∪T} -> posterior and x_S -> prior, each with its z-query;
2. with z drawn: z and [M] at T. In biglearn_u, x_S is the stream of the prior: its keys and values are used again;
   biglearn_t sends it through its second trunk.

In `dense` mode every pass needs all L+1 tokens. Both encodes are one batch, the last layer computes what is read.
In both modes all samples with empty S share one prior, p(z).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.biglearn import BigLearnModel
from model.masks import Plan
from model.objective import ElboTerms, gaussian_kl
from model.packed import Attend, Layout, Part, Phase, attend_by_rectangles, run
from model.transformer import Trunk


@dataclass(frozen=True)
class _Group:
    """The samples of one mask group. place_BL: all places, S first, then T. x_BND: the patches of S and T."""

    n_S: int
    n_T: int
    place_BL: Tensor
    x_BND: Tensor

    @property
    def x_BTD(self) -> Tensor:
        return self.x_BND[:, self.n_S :]


def fused_elbo_terms(
    model: BigLearnModel,
    x_BLD: Tensor,
    plan: Plan,
    order_BL: Tensor,
    noise_BZ: Tensor,
    *,
    standard_prior: bool,
    attend: Attend = attend_by_rectangles,
) -> ElboTerms:
    """What `elbo_terms` gives for a batch whose S and T are those of the plan; the rest as there.

    standard_prior: only for plans whose S is always empty. attend: the attention of `query_only` (model/packed.py).
    """
    assert not (standard_prior and any(n_S for n_S, _ in plan.groups)), "only the joint VAE has the prior N(0, I)"
    groups = []
    shares = zip(plan.groups, x_BLD.chunk(len(plan.groups)), order_BL.chunk(len(plan.groups)), strict=True)
    for (n_S, n_T), x_of_group_BLD, place_BL in shares:
        index_BND = place_BL[:, : n_S + n_T, None].expand(-1, -1, x_BLD.shape[-1])
        groups.append(_Group(n_S, n_T, place_BL, x_of_group_BLD.gather(1, index_BND)))
    if model.config.mask_tokens == "query_only":
        return _query_only_terms(model, groups, noise_BZ, standard_prior, attend)
    return _dense_terms(model, groups, noise_BZ, standard_prior)


def _query_only_terms(
    model: BigLearnModel, groups: list[_Group], noise_BZ: Tensor, standard_prior: bool, attend: Attend
) -> ElboTerms:
    samples = len(noise_BZ)
    batch = samples // len(groups)
    observing = [g for g, group in enumerate(groups) if group.n_S]
    with_prior = [] if standard_prior else observing
    shares_prior = not standard_prior and len(observing) < len(groups)

    # Phase 1. The rows: x_{S∪T} of every group; x_S of the groups that have a prior; z-queries; the one of p(z).
    n_queries = samples + batch * len(with_prior) + shares_prior
    tokens_NE = model.embed(
        x_ND=torch.cat([group.x_BND.flatten(0, 1) for group in groups]),
        place_N=torch.cat([group.place_BL[:, : group.n_S + group.n_T].flatten() for group in groups]),
        z_queries=n_queries,
    )
    known_NE, query_QE = tokens_NE.split([len(tokens_NE) - n_queries, n_queries])
    known_parts = known_NE.split([batch * (group.n_S + group.n_T) for group in groups])
    seen = [
        known_of_group_NE.unflatten(0, (batch, -1))[:, : group.n_S].flatten(0, 1)
        for known_of_group_NE, group in zip(known_parts, groups, strict=True)
    ]
    layout = Layout()
    known = [layout.add(batch, group.n_S + group.n_T) for group in groups]
    observed = {g: layout.add(batch, groups[g].n_S) for g in with_prior}
    posteriors = [Part(layout.add(batch, 1), inner=stream) for stream in known]
    priors = [Part(layout.add(batch, 1), inner=stream) for stream in observed.values()]
    shared_prior = [Part(layout.add(1, 1))] if shares_prior else []
    is_universal = model.method == "biglearn_u"
    keep = tuple(observed.values()) if is_universal else ()
    parts = (*posteriors, *priors, *shared_prior)
    phase = Phase(tuple(layout), parts, first_read=posteriors[0].z.number, keep=keep)
    packed_NE = torch.cat([known_NE, *(seen[g] for g in with_prior), query_QE])
    answers_QE, kept = run(model.encoding_trunk.blocks, packed_NE, phase, attend)
    distributions = _distributions(model, answers_QE, groups, samples, standard_prior)

    # Phase 2. The rows: x_S again where it has a trunk of its own; z; [M] at T.
    again = {} if is_universal else {g: groups[g].n_S for g in observing}
    layout = Layout()
    repeated = {g: layout.add(batch, n_S) for g, n_S in again.items()}
    z = [layout.add(batch, 1) for _ in groups]
    wanted = [layout.add(batch, group.n_T) for group in groups]
    kept_of = observed if is_universal else {}
    parts = tuple(Part(z[g], repeated.get(g), wanted[g], kept_of.get(g)) for g in range(len(groups)))
    phase = Phase(tuple(layout), parts, first_read=wanted[0].number, kept=keep)
    tokens_NE = model.embed(
        masked_place_N=torch.cat([group.place_BL[:, group.n_S : group.n_S + group.n_T].flatten() for group in groups]),
        z_BZ=_draw(distributions, noise_BZ),
    )
    masked_NE, z_BE = tokens_NE.split([len(tokens_NE) - samples, samples])
    packed_NE = torch.cat([*(seen[g] for g in again), z_BE, masked_NE])
    answers_NE, _ = run(model.decoding_trunk.blocks, packed_NE, phase, attend, kept)
    return _terms(model, answers_NE, groups, distributions)


def _dense_terms(model: BigLearnModel, groups: list[_Group], noise_BZ: Tensor, standard_prior: bool) -> ElboTerms:
    samples = len(noise_BZ)
    batch, patches = samples // len(groups), model.patches
    with_prior = [] if standard_prior else [g for g, group in enumerate(groups) if group.n_S]
    shares_prior = not standard_prior and len(with_prior) < len(groups)

    # What the three passes are put together from: the patches of S and T, and [M] at all places but those of S.
    known_place_N = torch.cat([group.place_BL[:, : group.n_S + group.n_T].flatten() for group in groups])
    masked_place_N = torch.cat([group.place_BL[:, group.n_S :].flatten() for group in groups])
    everywhere_L = torch.arange(patches, device=noise_BZ.device)
    n_queries = samples + batch * len(with_prior) + shares_prior
    tokens_NE = model.embed(
        x_ND=torch.cat([group.x_BND.flatten(0, 1) for group in groups]),
        place_N=known_place_N,
        masked_place_N=torch.cat([masked_place_N, everywhere_L]),
        z_queries=n_queries,
    )
    known_NE, masked_NE, nothing_LE, query_QE = tokens_NE.split(
        [len(known_place_N), len(masked_place_N), patches, n_queries]
    )
    known = known_NE.split([batch * (group.n_S + group.n_T) for group in groups])
    masked = masked_NE.split([batch * (patches - group.n_S) for group in groups])
    known, masked = ([part.unflatten(0, (batch, -1)) for part in parts] for parts in (known, masked))
    given_S = [torch.cat([x[:, : g.n_S], m], 1) for g, x, m in zip(groups, known, masked, strict=True)]
    given_both = [torch.cat([x, m[:, g.n_T :]], 1) for g, x, m in zip(groups, known, masked, strict=True)]

    # Both encodes. Everything attends to everything, so the order of the tokens does not matter.
    given = [*given_both, *(given_S[g] for g in with_prior), *([nothing_LE[None]] if shares_prior else [])]
    h_BNE = _all_but_last_layer(model.encoding_trunk, torch.cat([torch.cat(given), query_QE[:, None]], 1))
    others_BLE, query_BNE = h_BNE.split([patches, 1], dim=1)
    answers_QE = _last_layer(model.encoding_trunk, [others_BLE], [query_BNE])
    distributions = _distributions(model, answers_QE, groups, samples, standard_prior)

    # The decode.
    z_BE = model.embed(z_BZ=_draw(distributions, noise_BZ))
    h_BNE = _all_but_last_layer(model.decoding_trunk, torch.cat([torch.cat(given_S), z_BE[:, None]], 1))
    others, wanted = [], []
    for group, h_of_group_BNE in zip(groups, h_BNE.split(batch), strict=True):
        observed_BNE, wanted_BTE, rest_BNE = h_of_group_BNE.split(
            [group.n_S, group.n_T, patches + 1 - group.n_S - group.n_T], dim=1
        )
        others.append(torch.cat([observed_BNE, rest_BNE], 1))
        wanted.append(wanted_BTE)
    return _terms(model, _last_layer(model.decoding_trunk, others, wanted), groups, distributions)


def _all_but_last_layer(trunk: Trunk, h_BNE: Tensor) -> Tensor:
    for block in trunk.blocks[:-1]:
        h_BNE = block(h_BNE, None)
    return h_BNE


def _last_layer(trunk: Trunk, others: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """The wanted tokens after the last layer, group after group, (rows, E); each group attends to all of itself."""
    block = trunk.blocks[-1]
    packed_NE = torch.cat([x_BNE.flatten(0, 1) for x_BNE in (*others, *wanted)])
    n_others = [x_BNE.shape[:2].numel() for x_BNE in others]
    n_wanted = [x_BNE.shape[:2].numel() for x_BNE in wanted]
    first = sum(n_others)
    q_QHK, k_NHK, v_NHK = block.before_attention(packed_NE, first, len(packed_NE))

    def of_group(parts: Sequence[Tensor], like: list[Tensor]) -> list[Tensor]:
        return [x.unflatten(0, x_BNE.shape[:2]).transpose(1, 2) for x, x_BNE in zip(parts, like, strict=True)]

    queries = of_group(q_QHK.split(n_wanted), wanted)
    keys, values = (of_group(x_NHK.split(n_others + n_wanted), others + wanted) for x_NHK in (k_NHK, v_NHK))
    answers = []
    for g, q_BHTK in enumerate(queries):
        k_BHNK, v_BHNK = (torch.cat([x[g], x[g + len(others)]], dim=2) for x in (keys, values))
        answers.append(F.scaled_dot_product_attention(q_BHTK, k_BHNK, v_BHNK).transpose(1, 2).flatten(0, 1))
    return block.after_attention(packed_NE[first:], torch.cat(answers))


@dataclass(frozen=True)
class _Distributions:
    """Posterior q and prior p of each sample, (B, Z) float32 each."""

    mu_q: Tensor
    logvar_q: Tensor
    mu_p: Tensor
    logvar_p: Tensor


def _distributions(
    model: BigLearnModel, answers_QE: Tensor, groups: list[_Group], samples: int, standard_prior: bool
) -> _Distributions:
    """From the z-queries: those of the posteriors, of the priors of the groups that observe, of p(z)."""
    mu_QZ, logvar_QZ = model.z_distribution(answers_QE)
    mu_q, logvar_q = mu_QZ[:samples], logvar_QZ[:samples]
    if standard_prior:
        return _Distributions(mu_q, logvar_q, torch.zeros_like(mu_q), torch.zeros_like(logvar_q))
    batch = samples // len(groups)

    def of_prior(value_QZ: Tensor) -> Tensor:
        own = iter(value_QZ[samples:].split(batch))
        return torch.cat([next(own) if group.n_S else value_QZ[-1:].expand(batch, -1) for group in groups])

    return _Distributions(mu_q, logvar_q, of_prior(mu_QZ), of_prior(logvar_QZ))


def _draw(distributions: _Distributions, noise_BZ: Tensor) -> Tensor:
    return distributions.mu_q + (0.5 * distributions.logvar_q).exp() * noise_BZ


def _terms(model: BigLearnModel, answers_NE: Tensor, groups: list[_Group], distributions: _Distributions) -> ElboTerms:
    """answers_NE: the tokens of T of each sample, group after group."""
    target_ND = torch.cat([group.x_BTD.flatten(0, 1) for group in groups])
    error_N = (model.x_head(answers_NE).float() - target_ND).square().sum(-1)
    of_groups = error_N.split([len(group.x_BND) * group.n_T for group in groups])
    sse_B = torch.cat([e_N.view(-1, group.n_T).sum(1) for e_N, group in zip(of_groups, groups, strict=True)])
    q_p = (distributions.mu_q, distributions.logvar_q, distributions.mu_p, distributions.logvar_p)
    return ElboTerms(-0.5 * sse_B, gaussian_kl(*q_p), distributions.mu_q, distributions.logvar_q)
