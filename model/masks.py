"""Which patches are observed (S) and which are to be predicted (T): Definition 1 and Algorithm 1 of the paper.

|S| and |T| follow from two Beta-distributed ratios. During training they come from plans: a plan fixes the sizes
of every group of the batch, so shapes are static and every rank does the same work. Evaluation draws the ratios
for every image. Where S and T lie in an image is a pure function of (seed, position in the training sequence).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from data import randomness

EVALUATION_SEED = 20_240_229  # every run is evaluated with the same masks and noise


@dataclass(frozen=True)
class Plan:
    """The mask sizes of one step: the batch is cut into equal groups, each with its (|S|, |T|)."""

    groups: tuple[tuple[int, int], ...]


class MaskLaw(Protocol):
    """How S and T are drawn, as `ObjectiveConfig` says it."""

    @property
    def s_beta(self) -> tuple[float, float]: ...
    @property
    def t_beta(self) -> tuple[float, float]: ...
    @property
    def joint_probability(self) -> float: ...
    @property
    def groups(self) -> int: ...
    @property
    def plans(self) -> int: ...


def mask_sizes(s_ratio: np.ndarray, t_ratio: np.ndarray, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """(|S|, |T|) from ratios in [0, 1]: |S| = min(floor(L s), L-1), |T| = max(1, ceil(t (L - |S|)))."""
    n_S = np.minimum(np.floor(patches * np.asarray(s_ratio)), patches - 1).astype(np.int64)
    n_T = np.maximum(1, np.ceil(np.asarray(t_ratio) * (patches - n_S))).astype(np.int64)
    return n_S, n_T


def make_plans(objective: MaskLaw, patches: int, seed: int) -> tuple[Plan, ...]:
    """The cycle of plans of a run; step k trains on plans[k % len(plans)].

    The quantiles (u, v) of the S- and T-ratio of all groups are a Latin hypercube over the cycle, and those of one
    plan are one over its groups: every step sees small and large S, and the cycle as a whole follows the two
    Betas closely. `objective.joint_probability` is the extra share of the joint task (S empty, T everything).
    """
    group_G, plan_P = (torch.arange(n, device="cpu") for n in (objective.groups, objective.plans))

    def stratified_quantiles(name: str) -> np.ndarray:
        stratum_PG = randomness.permutation(seed, f"{name} strata", plan_P, len(group_G))
        cell_GP = randomness.permutation(seed, f"{name} cells", group_G, len(plan_P))
        cell_GP = (cell_GP + randomness.uniform(seed, f"{name} jitter", group_G, len(plan_P)).double()) / len(plan_P)
        return ((stratum_PG + cell_GP.T.gather(1, stratum_PG)) / len(group_G)).numpy()

    u_PG, v_PG = stratified_quantiles("S-ratio"), stratified_quantiles("T-ratio")
    p = objective.joint_probability
    is_joint_PG = u_PG < p
    u_PG = np.clip((u_PG - p) / (1 - p), 0, 1) if p < 1 else u_PG
    n_S, n_T = mask_sizes(betaincinv(*objective.s_beta, u_PG), betaincinv(*objective.t_beta, v_PG), patches)
    n_S, n_T = np.where(is_joint_PG, 0, n_S), np.where(is_joint_PG, patches, n_T)
    return tuple(Plan(tuple(zip(s.tolist(), t.tolist(), strict=True))) for s, t in zip(n_S, n_T, strict=True))


def joint_plans(patches: int) -> tuple[Plan, ...]:
    """The plans of the joint VAE: always S empty, T everything."""
    return (Plan(((0, patches),)),)


def local_positions(first: int, batch_size: int, groups: int, share: int, shares: int) -> Tensor:
    """Positions in the training sequence that one of `shares` equal shares (rank x accumulation) of a batch holds.

    The batch is the positions first .. first + batch_size - 1; group g is its g-th block. A share takes every
    `shares`-th position, group after group: int64 (batch_size / shares,). Which image belongs to which group does not
    depend on the number of shares; from batch to batch a share goes on in the same lanes of `data.order.order.Woven`.
    """
    per_group = batch_size // groups
    per_share = per_group // shares
    assert per_share * shares * groups == batch_size, (batch_size, groups, shares)
    start_G = first + torch.arange(groups) * per_group + share
    return (start_G[:, None] + torch.arange(per_share) * shares).flatten()


def place_masks(n_S_B: Tensor, n_T_B: Tensor, index_B: Tensor, patches: int, seed: int) -> tuple[Tensor, Tensor]:
    """Uniformly random disjoint S and T of the given sizes: (observed_BL, target_BL), both bool."""
    rank_BL = randomness.permutation(seed, "masks", index_B, patches)
    observed_BL = rank_BL < n_S_B[:, None]
    return observed_BL, ~observed_BL & (rank_BL < (n_S_B + n_T_B)[:, None])


def place_order(index_B: Tensor, patches: int, seed: int) -> Tensor:
    """The places of each sample in the order in which `place_masks` takes them: first S, then T. (B, L) int64."""
    return randomness.permutation(seed, "masks", index_B, patches).argsort(dim=1)


def plan_order(
    plan: Plan, index_B: Tensor, patches: int, seed: int, connected_share: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The places of a batch whose B samples are the plan's groups one after the other, in equal shares.

    Returns the places of each sample, first S, then T, (B, L) int64, and |S| and |T|, (B,) int64. S and T lie anywhere,
    as `place_order` has them; but in a random share of the samples S is connected: a half-plane, a block, or what a
    block leaves, which is in several corners where it is little. T lies anywhere outside S even then.
    """
    per_group = len(index_B) // len(plan.groups)
    # Made on the device: a list would be sent there, for which the host waits.
    n_S_B, n_T_B = (
        torch.cat([torch.full((per_group,), size, device=index_B.device) for size in sizes])
        for sizes in zip(*plan.groups, strict=True)
    )
    rank_BL = randomness.permutation(seed, "masks", index_B, patches)
    if connected_share:
        is_connected_B = randomness.uniform(seed, "connected", index_B, 1)[:, 0] < connected_share
        shape_rank_BL = _connected_rank(index_B, math.isqrt(patches), seed)
        # Where S is connected: its places by their rank in the shape, then all others by their random one.
        connected_BL = torch.where(shape_rank_BL < n_S_B[:, None], shape_rank_BL, patches + rank_BL)
        rank_BL = torch.where(is_connected_B[:, None], connected_BL, rank_BL)
    return rank_BL.argsort(dim=1), n_S_B, n_T_B


def _connected_rank(index_B: Tensor, side: int, seed: int) -> Tensor:
    """In which order a growing shape covers the places of each sample: (B, L) int64, 0 to L-1.

    A third each: a half-plane with a random direction; a block around a random place; the complement of such a block,
    whose first places are those that the block would cover last. In integers alone, the same on every device.
    """
    u_B5 = randomness.uniform(seed, "shapes", index_B, 5)
    place_L = torch.arange(side * side, device=index_B.device)
    row_L, column_L = place_L // side, place_L % side
    slope_B2 = (u_B5[:, :2] * 2001).long() - 1000
    along_BL = slope_B2[:, :1] * row_L + slope_B2[:, 1:] * column_L
    centre_B2 = (u_B5[:, 2:4] * side).long()
    down_BL, right_BL = (row_L - centre_B2[:, :1]).abs(), (column_L - centre_B2[:, 1:]).abs()
    # Squares; in the next larger square the nearest places come first, so that all that is covered is connected.
    from_centre_BL = torch.maximum(down_BL, right_BL) * 2 * side * side + down_BL.square() + right_BL.square()
    kind_B1 = (u_B5[:, 4:] * 3).long()
    key_BL = torch.where(kind_B1 == 0, along_BL, torch.where(kind_B1 == 1, from_centre_BL, -from_centre_BL))
    return key_BL.argsort(dim=1, stable=True).argsort(dim=1)


def plan_masks(
    plan: Plan, index_B: Tensor, patches: int, seed: int, connected_share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """S and T of `plan_order` as masks: (observed_BL, target_BL), both bool."""
    order_BL, n_S_B, n_T_B = plan_order(plan, index_B, patches, seed, connected_share)
    rank_BL = order_BL.argsort(dim=1)
    observed_BL = rank_BL < n_S_B[:, None]
    return observed_BL, ~observed_BL & (rank_BL < (n_S_B + n_T_B)[:, None])


def drawn_masks(objective: MaskLaw, index_B: Tensor, patches: int, seed: int) -> tuple[Tensor, Tensor]:
    """S and T with sizes drawn for every sample from the true Betas: what evaluation uses."""
    u_B2 = randomness.uniform(seed, "mask sizes", index_B, 2).cpu().double().numpy()
    n_S, n_T = mask_sizes(betaincinv(*objective.s_beta, u_B2[:, 0]), betaincinv(*objective.t_beta, u_B2[:, 1]), patches)
    device = index_B.device
    return place_masks(torch.as_tensor(n_S, device=device), torch.as_tensor(n_T, device=device), index_B, patches, seed)


SHAPES = ("random", "block", "half", "stroke")


def observed_of_kind(kind: str, s_ratio: float, index_B: Tensor, patches: int, seed: int) -> Tensor:
    """The observed patches of one of SHAPES, what is missing being most of a share 1 - s_ratio: bool (B, L).

    random: |S| = floor(s_ratio L) patches anywhere, at least none and at most all. block: a missing square. half: a
    band along one of the four sides is missing. stroke: what a thick wandering line covers is missing, as many
    patches as in `random`. A function of (seed, index of the image).
    """
    side, n_S = math.isqrt(patches), int(s_ratio * patches + 1e-6)
    row_L, column_L = torch.arange(patches, device=index_B.device) // side, torch.arange(patches) % side
    column_L = column_L.to(index_B.device)
    if kind == "random":
        return place_masks(torch.full_like(index_B, n_S), torch.zeros_like(index_B), index_B, patches, seed)[0]
    if kind == "block":
        length = round(side * (1 - s_ratio) ** 0.5)
        corner_B2 = (randomness.uniform(seed, "block", index_B, 2) * (side - length + 1)).long()
        below_BL, right_BL = row_L - corner_B2[:, :1], column_L - corner_B2[:, 1:]
        return ~((below_BL >= 0) & (below_BL < length) & (right_BL >= 0) & (right_BL < length))
    if kind == "half":
        depth_4L = torch.stack([row_L, side - 1 - row_L, column_L, side - 1 - column_L])
        from_B = (randomness.uniform(seed, "half", index_B, 1)[:, 0] * 4).long()
        return depth_4L[from_B] >= round(side * (1 - s_ratio))
    if kind == "stroke":
        return _stroke_order(index_B, side, seed).argsort(1).argsort(1) >= patches - n_S
    raise ValueError(f"no shape of masks is called {kind!r}; known are {', '.join(SHAPES)}")


STANDARD_MASKS = ("half seen", "fifth seen", "centre missing", "lower half missing")


def standard_mask(name: str, index_B: Tensor, patches: int) -> Tensor:
    """The observed patches of one of STANDARD_MASKS, by which models are compared: bool (B, L), never all of them.

    half seen, fifth seen: so many patches anywhere, rounded down, a function of the index of the image alone. centre
    missing: the middle half of the rows and of the columns of patches. lower half missing. Of an odd number of rows or
    columns the larger part is missing.
    """
    if name in ("half seen", "fifth seen"):
        n_S_B = torch.full_like(index_B, patches // {"half seen": 2, "fifth seen": 5}[name])
        return place_masks(n_S_B, torch.zeros_like(n_S_B), index_B, patches, EVALUATION_SEED)[0]
    side = math.isqrt(patches)
    place_N = torch.arange(side, device=index_B.device)
    if name == "centre missing":
        length = (side + 1) // 2
        first = (side - length) // 2
        is_middle_N = (place_N >= first) & (place_N < first + length)
        observed_NN = ~(is_middle_N[:, None] & is_middle_N)
    else:
        assert name == "lower half missing", name
        observed_NN = (place_N < side // 2)[:, None].expand(side, side)
    return observed_NN.flatten().expand(len(index_B), -1)


def _stroke_order(index_B: Tensor, side: int, seed: int) -> Tensor:
    """When a wandering line first covers each patch, (B, L); where it does not come, later than everywhere it does."""
    steps = 8 * side * side
    turn_BS = randomness.uniform(seed, "stroke", index_B, steps + 3)
    at_B2 = (turn_BS[:, :2] * side).long()
    heading_B = (turn_BS[:, 2] * 4).long()
    moves_42 = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]], device=index_B.device)
    late_BL = steps + randomness.uniform(seed, "stroke end", index_B, side * side) * steps
    first_BL = late_BL
    row_B = torch.arange(len(index_B), device=index_B.device)
    for step in range(steps):
        place_B = at_B2[:, 0] * side + at_B2[:, 1]
        first_BL = first_BL.index_put((row_B, place_B), first_BL[row_B, place_B].clamp(max=step))
        u_B = turn_BS[:, step + 3]
        heading_B = (heading_B + (u_B < 0.15).long() - (u_B > 0.85).long()) % 4
        at_B2 = (at_B2 + moves_42[heading_B]).clamp(0, side - 1)
    return first_BL
