"""The objective on packed rows against the readable one: values and gradients, for every plan, in both modes."""

from importlib.util import find_spec

import pytest
import torch

from model.biglearn import BigLearnModel, ModelConfig
from model.masks import Plan, plan_masks, plan_order
from model.objective import elbo_terms
from model.packed.objective import packed_elbo_terms
from model.packed.packing import pack
from model.packed.rectangles import attend_by_rectangles
from model.transformer import Attend

PATCHES, DIM = 16, 12
PLANS = {
    "a bit of everything": Plan(((0, 16), (0, 3), (1, 15), (5, 4), (12, 2), (15, 1))),
    "joint only": Plan(((0, 16),)),
    "marginal only": Plan(((0, 5), (0, 1))),
    "conditional only": Plan(((3, 13), (8, 8))),
    "all of S but one": Plan(((15, 1),)),
    "one target of one": Plan(((1, 1), (0, 1))),
}


def make(method: str, mode: str, dtype=torch.float32, patches: int = PATCHES, depth: int = 2) -> BigLearnModel:
    """depth: of the encoder, and of the decoder."""
    torch.manual_seed(0)
    config = ModelConfig(
        embed_dim=32,
        encoder_depth=depth,
        decoder_depth=depth,
        num_heads=2,
        latent_dim=6,
        mask_tokens=mode,
    )
    model = BigLearnModel(config, method, DIM, patches)
    with torch.no_grad():
        for p in model.parameters():  # nothing is zero, so everything shows
            p.add_(0.1 * torch.randn_like(p))
    return model.to(dtype)


def both(
    method: str, mode: str, plan: Plan, dtype=torch.float32, attend: Attend = attend_by_rectangles, device: str = "cpu",
    samples: int = 3, patches: int = PATCHES, depth: int = 2,
):  # fmt: skip
    """(terms, gradients) of the packed form and of the oracle, on so many samples of each group."""
    size = samples * len(plan.groups)
    index_B = torch.arange(100, 100 + size, device=device)
    x_BLD = torch.rand(size, patches, DIM, generator=torch.Generator().manual_seed(1))
    noise_BZ = torch.randn(size, 6, generator=torch.Generator().manual_seed(2))
    x_BLD = x_BLD.to(device, dtype)
    noise_BZ = noise_BZ.to(device, torch.float32 if dtype == torch.bfloat16 else dtype)
    outcomes = []
    for packed in (True, False):
        model = make(method, mode, dtype, patches, depth).to(device)
        if packed:
            order_BL, _, _ = plan_order(plan, index_B, patches, seed=3, connected_share=0.5)
            how = {"dense": mode == "dense", "method": model.method}
            with torch.device(device):
                packed_plan = pack(plan, size, patches, **how)
            terms = packed_elbo_terms(model, x_BLD, packed_plan, order_BL, noise_BZ, attend)
        else:
            masks = plan_masks(plan, index_B, patches, seed=3, connected_share=0.5)
            terms = elbo_terms(model, x_BLD, *masks, noise_BZ)
        terms.elbo_B(0.7).mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        outcomes.append(((terms.reconstruction_B, terms.kl_B, terms.posterior.mu_BZ), gradients))
    return outcomes


MARGINAL = ("joint only", "marginal only")  # S is empty: what a vae can be asked
METHODS, MODES = ("vae", "biglearn_t", "biglearn_u"), ("query_only", "dense")
CASES = [(method, plan) for method in METHODS for plan in (MARGINAL if method == "vae" else PLANS)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("method", "plan"), CASES)
def test_terms_and_gradients_are_those_of_encode_and_decode(method, plan, mode):
    expect_equal(*both(method, mode, PLANS[plan], torch.float64), tolerance=1e-6)


needs_triton = pytest.mark.skipif(
    not torch.cuda.is_available() and find_spec("triton") is None, reason="Triton is there on Linux alone"
)
WHERE = {"device": "cuda" if torch.cuda.is_available() else "cpu"}  # there in Triton's interpreter


@needs_triton
@pytest.mark.parametrize(
    ("method", "plan"),
    [  # biglearn_t differs from biglearn_u in the keys that it does not keep, whatever the plan
        pytest.param(method, plan, marks=pytest.mark.exhaustive if method == "biglearn_t" and number > 0 else ())
        for method in METHODS
        for number, plan in enumerate(MARGINAL if method == "vae" else PLANS)
    ],
)
def test_attention_in_one_launch_gives_the_same(method, plan):
    from model.packed.triton_kernel import attend_in_one_launch

    # Both of biglearn_u's layers are in one trunk; of biglearn_t's trunks each has a first and a last.
    problem = {"plan": PLANS[plan], "samples": 2, "depth": 1 if method == "biglearn_u" else 2, **WHERE}
    packed, _ = both(method, "query_only", attend=attend_in_one_launch, **problem)
    _, oracle = both(method, "query_only", dtype=torch.float64, **problem)
    expect_equal(packed, oracle, tolerance=3e-5)


@needs_triton
def test_so_it_does_with_more_patches_than_a_block_has_keys():
    from model.packed.triton_kernel import attend_in_one_launch

    plan = Plan(((0, 6), (132, 2), (2, 8)))
    problem = {"plan": plan, "samples": 1, "patches": 144, "depth": 1, **WHERE}
    packed, _ = both("biglearn_u", "query_only", attend=attend_in_one_launch, **problem)
    _, oracle = both("biglearn_u", "query_only", dtype=torch.float64, **problem)
    expect_equal(packed, oracle, tolerance=3e-5)


def expect_equal(packed, oracle, tolerance: float) -> None:
    (terms, gradients), (expected, expected_gradients) = packed, oracle
    for value_B, expected_B in zip(terms, expected, strict=True):
        expect_near(value_B, expected_B, tolerance)
    for name, gradient in gradients.items():
        assert gradient is not None, name  # ZeRO and DDP wait for all of them
        expect_near(gradient, expected_gradients[name], tolerance)


def expect_near(value, expected, tolerance: float) -> None:
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(value.to(expected.dtype), expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_as_near_to_float64_as_the_oracle_is(method, mode):
    plan = PLANS["joint only" if method == "vae" else "a bit of everything"]
    (exact, _), _ = both(method, mode, plan, torch.float64)
    outcomes = both(method, mode, plan, torch.bfloat16)
    errors = [
        sum(
            ((value_B.double() - exact_B).norm() / exact_B.norm()).item()
            for value_B, exact_B in zip(t, exact, strict=True)
        )
        for t, _ in outcomes
    ]
    assert errors[0] < 1.5 * errors[1] + 0.01
    assert errors[0] < 0.2
