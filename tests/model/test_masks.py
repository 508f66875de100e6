"""Plans and masks: sizes, distribution, independence of ranks."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from scipy.stats import beta, kstest

from model.masks import (
    SHAPES,
    STANDARD_MASKS,
    Plan,
    drawn_masks,
    joint_plans,
    local_positions,
    make_plans,
    mask_sizes,
    observed_of_kind,
    plan_masks,
    plan_order,
    standard_mask,
)
from model.objective import ObjectiveConfig

L = 64


def test_sizes_at_the_ends():
    n_S, n_T = mask_sizes(np.array([0, 0.999, 1, 0]), np.array([0, 1, 0.5, 1]), L)
    assert n_S.tolist() == [0, 63, 63, 0]
    assert n_T.tolist() == [1, 1, 1, 64]


def test_plans_follow_the_two_betas_and_are_a_pure_function_of_the_seed():
    objective = ObjectiveConfig(plans=64)
    plans = make_plans(objective, L, seed=1)
    assert plans == make_plans(objective, L, seed=1)
    assert plans != make_plans(objective, L, seed=2)
    sizes = np.array([plan.groups for plan in plans])
    assert ((sizes[..., 0] + sizes[..., 1] <= L) & (sizes[..., 1] >= 1)).all()
    u = np.random.default_rng(0).random((2, 400_000))
    n_S, n_T = mask_sizes(beta.ppf(u[0], *objective.s_beta), beta.ppf(u[1], *objective.t_beta), L)
    assert sizes[..., 0].mean() == pytest.approx(n_S.mean(), rel=0.02)
    assert sizes[..., 1].mean() == pytest.approx(n_T.mean(), rel=0.02)


def test_the_cycle_is_stratified_over_both_quantiles():
    """With uniform ratios, L large: each of the groups x plans strata of the S-quantile is taken exactly once."""
    plans = make_plans(ObjectiveConfig(s_beta=(1, 1), t_beta=(1, 1)), 10**6, seed=0)
    sizes = np.array([size for plan in plans for size in plan.groups], dtype=float)
    for quantile in (sizes[:, 0] / 10**6, sizes[:, 1] / (10**6 - sizes[:, 0])):
        assert sorted(np.floor(quantile * 128 - 1e-3).clip(0).astype(int).tolist()) == list(range(128))


def test_every_plan_holds_small_and_large_sets():
    """Stratified: the largest |S| of each plan lies in the top eighth of the Beta, the smallest in the bottom one."""
    for plan in make_plans(ObjectiveConfig(), L, seed=3):
        sizes = sorted(n_S for n_S, _ in plan.groups)
        assert sizes[0] <= L * beta.ppf(1 / 8, 0.5, 3) < L * beta.ppf(7 / 8, 0.5, 3) <= sizes[-1] + 1


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_joint_probability_is_the_share_of_the_joint_task(share):
    plans = make_plans(ObjectiveConfig(joint_probability=share, s_beta=(50, 50)), L, seed=0)
    joint = [size == (0, L) for plan in plans for size in plan.groups]
    assert np.mean(joint) == share


def test_the_other_groups_follow_the_betas_whatever_the_joint_probability():
    """The extra share comes out of all sizes alike, not out of the small ones."""
    sizes = {}
    for share in (0.0, 0.5):
        plans = make_plans(ObjectiveConfig(joint_probability=share, plans=64, s_beta=(4, 4)), L, seed=0)
        sizes[share] = [n_S for plan in plans for n_S, n_T in plan.groups if (n_S, n_T) != (0, L)]
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(sizes[0.5], quantile) == pytest.approx(np.quantile(sizes[0.0], quantile), abs=1.5)


def test_the_vae_has_the_joint_task_alone():
    assert [plan.groups for plan in joint_plans(L)] == [((0, L),)]


def test_masks_have_the_planned_sizes_and_do_not_overlap():
    plan = make_plans(ObjectiveConfig(), L, seed=0)[0]
    observed_BL, target_BL = plan_masks(plan, torch.arange(40), L, seed=0)
    assert not (observed_BL & target_BL).any()
    assert observed_BL.sum(1).view(8, 5).tolist() == [[n_S] * 5 for n_S, _ in plan.groups]
    assert target_BL.sum(1).view(8, 5).tolist() == [[n_T] * 5 for _, n_T in plan.groups]


def test_places_are_uniform_and_change_with_every_image():
    plan = make_plans(ObjectiveConfig(groups=1, s_beta=(50, 50), t_beta=(50, 50)), L, seed=0)[0]
    observed_BL, target_BL = plan_masks(plan, torch.arange(20_000), L, seed=0)
    for mask_BL in (observed_BL, target_BL):
        frequency_L = mask_BL.double().mean(0)
        assert (frequency_L - frequency_L.mean()).abs().max() < 0.02
    assert len(observed_BL.unique(dim=0)) == 20_000


def test_evaluation_draws_from_the_true_betas():
    observed_BL, target_BL = drawn_masks(ObjectiveConfig(s_beta=(2, 2), t_beta=(2, 3)), torch.arange(20_000), L, seed=0)
    n_S = observed_BL.sum(1).numpy()
    jitter = np.random.default_rng(0).random(len(n_S))
    assert kstest((n_S + jitter) / L, beta(2, 2).cdf).statistic < 0.02
    n_T = target_BL.sum(1).numpy()
    assert ((n_T - 0.5) / (L - n_S)).mean() == pytest.approx(2 / 5, abs=0.02)


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_shares_divide_every_group_equally_and_groups_do_not_depend_on_them(shares):
    groups, batch = 4, 32
    positions = [local_positions(96, batch, groups, share, shares).view(groups, -1) for share in range(shares)]
    together = torch.cat(positions, dim=1).sort(dim=1).values  # group after group, whatever the shares
    assert together.tolist() == torch.arange(96, 128).view(groups, -1).tolist()
    assert all(p.shape[1] == batch // groups // shares for p in positions)
    assert all((p % shares == share).all() for share, p in enumerate(positions))  # of lanes of its own


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(AssertionError):
        local_positions(0, 30, 4, 0, 2)


@pytest.mark.parametrize("kind", SHAPES)
def test_kinds_of_masks_leave_the_share_they_are_asked_for(kind):
    index_B = torch.arange(200)
    for s_ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
        observed_BL = observed_of_kind(kind, s_ratio, index_B, 64, seed=0)
        assert observed_BL.float().mean().item() == pytest.approx(s_ratio, abs=0.07)
        assert (observed_BL.sum(1) == observed_BL[0].sum()).all()
    half_BL = observed_of_kind(kind, 0.5, index_B, 64, seed=0)
    assert torch.equal(observed_of_kind(kind, 0.5, index_B[50:60], 64, seed=0), half_BL[50:60])
    assert len(half_BL.unique(dim=0)) >= 4
    assert not torch.equal(half_BL, observed_of_kind(kind, 0.5, index_B, 64, seed=1))


def test_standard_masks():
    """Fixed shapes are the same for every image; random ones have the size that is said, and follow the image alone."""
    index_B = torch.arange(50)
    of_64 = {name: standard_mask(name, index_B, 64) for name in STANDARD_MASKS}
    for name, n_S in (("half seen", 32), ("fifth seen", 12)):
        assert (of_64[name].sum(1) == n_S).all()
        assert len(of_64[name].unique(dim=0)) == 50
        assert torch.equal(standard_mask(name, index_B[20:30], 64), of_64[name][20:30])
    picture = "11111111\n" * 2 + "11000011\n" * 4 + "11111111\n" * 2
    assert rows_of(of_64["centre missing"][7]) == picture
    assert rows_of(of_64["lower half missing"][7]) == "11111111\n" * 4 + "00000000\n" * 4
    assert rows_of(standard_mask("centre missing", index_B, 16)[0]) == "1111\n1001\n1001\n1111\n"


@pytest.mark.parametrize("side", range(1, 10))
def test_standard_masks_leave_something_missing_on_every_grid(side):
    for name in STANDARD_MASKS:
        observed_BL = standard_mask(name, torch.arange(5), side * side)
        assert observed_BL.shape == (5, side * side)
        assert not observed_BL.all(1).any()
    if side > 2:
        assert standard_mask("centre missing", torch.arange(1), side * side).any()
    assert rows_of(standard_mask("lower half missing", torch.arange(1), 9)[0]) == "111\n000\n000\n"


def rows_of(observed_L: torch.Tensor) -> str:
    side = round(len(observed_L) ** 0.5)
    return "".join("".join(str(int(seen)) for seen in row) + "\n" for row in observed_L.view(side, side))


def test_shapes_of_kinds():
    """A block is a square, a half a band at a side, a stroke hangs together."""
    index_B = torch.arange(50)

    def missing(kind: str, s_ratio: float) -> torch.Tensor:
        return ~observed_of_kind(kind, s_ratio, index_B, 64, seed=0).view(-1, 8, 8)

    for hole in missing("block", 0.75):
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 4
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    for hole in missing("half", 0.5):
        assert any(torch.equal(hole.rot90(k), torch.arange(8)[:, None].expand(8, 8) < 4) for k in range(4))
    for hole in missing("stroke", 0.7):
        reached = torch.zeros_like(hole)
        reached.view(-1)[hole.view(-1).nonzero()[0]] = True
        for _ in range(64):
            spread = torch.nn.functional.max_pool2d(reached[None, None].float(), 3, 1, 1)[0, 0] > 0
            reached = spread & hole
        assert torch.equal(reached, hole)


def is_connected(chosen_L: torch.Tensor) -> bool:
    """Whether each chosen place can be reached from each other by steps to one of four neighbours."""
    side = round(len(chosen_L) ** 0.5)
    return label(chosen_L.view(side, side).numpy())[1] == 1


@pytest.mark.parametrize("patches", [16, 64])
def test_connected_sets_are_half_planes_blocks_and_all_but_a_block(patches):
    """S of exactly the plan's size, connected, or what it leaves out is; T anywhere else."""
    plan = Plan(tuple((n_S, 2) for n_S in range(1, patches - 1)))
    observed_BL, target_BL = plan_masks(plan, torch.arange(20 * len(plan.groups)), patches, 0, connected_share=1.0)
    sizes = [n_S for n_S, _ in plan.groups for _ in range(20)]
    assert observed_BL.sum(1).tolist() == sizes
    assert (target_BL.sum(1) == 2).all()
    assert not (observed_BL & target_BL).any()
    connected = [is_connected(chosen_L) for chosen_L in observed_BL]
    assert all(one or is_connected(~chosen_L) for one, chosen_L in zip(connected, observed_BL, strict=True))
    assert 0.6 < np.mean(connected) < 0.98
    free_BL = ~observed_BL[: 20 * patches // 4]
    apart = [is_connected(chosen_L) for chosen_L in target_BL[: len(free_BL)]]
    assert np.mean(apart) < 0.5  # two targets lie side by side only by chance


def test_connected_sets_come_in_the_share_asked_for_and_leave_the_others_as_they_were():
    plan, index_B = Plan(((12, 20),)), torch.arange(4000)
    plain, mixed = (plan_masks(plan, index_B, L, 3, share)[0] for share in (0.0, 0.3))
    changed_B = (plain != mixed).any(1)
    assert changed_B.float().mean().item() == pytest.approx(0.3, abs=0.03)
    connected_B = torch.tensor([is_connected(chosen_L) or is_connected(~chosen_L) for chosen_L in mixed])
    assert connected_B[changed_B].all()


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_sets_depend_on_the_seed_and_the_place_in_the_sequence_alone(share):
    """Not on the batch that an image is in, nor on the rank that has it."""
    plan, index_B = Plan(((7, 9),)), torch.arange(100, 160)
    order_BL, n_S_B, n_T_B = plan_order(plan, index_B, L, 3, share)
    assert (n_S_B.unique().tolist(), n_T_B.unique().tolist()) == ([7], [9])
    assert (order_BL.sort(1).values == torch.arange(L)).all()
    for mine_B in (index_B[5:6], index_B.flip(0)[:20], index_B[1::2]):
        found_BL, _, _ = plan_order(plan, mine_B, L, 3, share)
        assert torch.equal(found_BL, order_BL[mine_B - 100])
    assert not torch.equal(plan_order(plan, index_B, L, 4, share)[0], order_BL)
