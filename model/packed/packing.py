"""From a plan to a packed one. In both modes all samples with empty S share one prior, p(z)."""

import torch

from model.masks import Plan
from model.method import Method
from model.packed.dense import dense_phases
from model.packed.plan import Group, PackedPlan, places_of
from model.packed.query_only import query_only_phases


def pack(plan: Plan, samples: int, patches: int, *, dense: bool, method: Method) -> PackedPlan:
    """The plan for so many samples of so many patches, with its tensors on the default device."""
    learned = method.is_conditional
    assert learned or not any(n_S for n_S, _ in plan.groups), "a fixed prior is no p(z | x_S)"
    batch = samples // len(plan.groups)
    sample_GB = torch.arange(batch * len(plan.groups)).view(-1, batch)
    groups = [Group(sample_B, patches, *sizes) for sample_B, sizes in zip(sample_GB, plan.groups, strict=True)]
    own = [g for g, group in enumerate(groups) if group.n_S]
    has_shared = learned and len(own) < len(groups)
    if dense:
        encode, decode = dense_phases(groups, own, has_shared)
    else:
        encode, decode = query_only_phases(groups, own, has_shared, one_trunk=method.trunks == 1)
    of_own = {g: slice(samples + n * batch, samples + (n + 1) * batch) for n, g in enumerate(own)}
    of_none = slice(encode.n_z - 1, encode.n_z)
    priors = tuple(of_own.get(g, of_none) for g in range(len(groups))) if learned else ()
    return PackedPlan(encode, decode, priors, places_of([group.T for group in groups], patches))
