"""The models: parameter counts, what each distribution of Table 1 depends on, gradients."""

import pytest
import torch

from data import randomness
from model.biglearn import BigLearnModel, ModelConfig
from model.masks import place_masks
from model.objective import elbo_terms

METHODS = ("vae", "biglearn_t", "biglearn_u")
MODES = ("dense", "query_only")
L, D, Z = 16, 12, 5

# layers of encoder and decoder, embed_dim, latent_dim, token_dim, mlp_ratio, heads, parameters (paper Tables 3, 4)
COUNTS = {
    "case 1": (4, 4, 128, 32, 48, 2, 4, 1_269_104),
    "case 2": (4, 4, 256, 32, 48, 2, 8, 4_962_928),
    "case 3": (4, 4, 256, 64, 48, 2, 8, 5_012_144),
    "case 4": (6, 4, 512, 128, 48, 2, 16, 24_125_744),
    "celeba": (6, 6, 768, 128, 512, 4, 12, 94_311_168),
}


def small_model(method: str, mode: str) -> BigLearnModel:
    torch.manual_seed(3)
    sizes = {"embed_dim": 16, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 2, "latent_dim": Z}
    config = ModelConfig(**sizes, mask_tokens=mode, residual_init="xavier")  # else no token sees another at first
    return BigLearnModel(config, method, token_dim=D, patches=L)


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, L, D, generator=torch.Generator().manual_seed(4))


def subsets(count: int, n_S: int, n_T: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.full((count,), n_S), torch.full((count,), n_T)
    return place_masks(*sizes, torch.arange(count), L, seed=5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", COUNTS)
def test_parameter_counts_are_the_papers(case, method):
    encoder, decoder, width, z, token_dim, ratio, heads, expected = COUNTS[case]
    config = ModelConfig(
        embed_dim=width, encoder_depth=encoder, decoder_depth=decoder, num_heads=heads, mlp_ratio=ratio, latent_dim=z
    )
    with torch.device("meta"):
        model = BigLearnModel(config, method, token_dim=token_dim, patches=64)
    assert sum(p.numel() for p in model.parameters()) == expected


def patches_read(output: torch.Tensor, x_BLD: torch.Tensor) -> torch.Tensor:
    """(B, L) bool: the patches whose content the output depends on."""
    (gradient,) = torch.autograd.grad(output.square().sum(), x_BLD, allow_unused=True)
    return torch.zeros(x_BLD.shape[:2], dtype=torch.bool) if gradient is None else gradient.abs().sum(-1) > 0


@pytest.mark.parametrize(
    ("n_S", "n_T"),
    [(0, L), (0, 5), (L, 0), (6, 4), (6, L - 6), (L - 1, 1)],
    ids=["p(z)", "p(z), T marginal", "p(z|x)", "p(z|x_S)", "S and T are all", "one missing"],
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_table_1_every_distribution_reads_exactly_what_it_is_given(method, mode, n_S, n_T):
    """p(z | x_A) reads x_A; p(x_T | z, x_S) reads z and x_S: for A of S, S∪T, nothing and everything."""
    model, x_BLD = small_model(method, mode), images().requires_grad_()
    observed_BL, target_BL = subsets(len(x_BLD), n_S, n_T)
    for given_BL in (observed_BL, observed_BL | target_BL):
        mu_BZ, logvar_BZ = model.encode(x_BLD, given_BL)
        assert mu_BZ.shape == logvar_BZ.shape == (len(x_BLD), Z)
        assert torch.equal(patches_read(mu_BZ, x_BLD), given_BL)
    if n_T:
        z_BZ = torch.randn(len(x_BLD), Z).requires_grad_()
        wanted_BT = target_BL.nonzero()[:, 1].view(len(x_BLD), n_T)
        mean_BTD = model.decode(z_BZ, x_BLD, observed_BL, wanted_BT)
        assert mean_BTD.shape == (len(x_BLD), n_T, D)
        assert torch.equal(patches_read(mean_BTD, x_BLD), observed_BL)
        (z_gradient,) = torch.autograd.grad(model.decode(z_BZ, x_BLD, observed_BL, wanted_BT).sum(), z_BZ)
        assert (z_gradient != 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_prior_is_one_distribution_for_all_images(method, mode):
    mu_BZ, _ = small_model(method, mode).encode(images(), torch.zeros(3, L, dtype=torch.bool))
    torch.testing.assert_close(mu_BZ, mu_BZ[:1].expand_as(mu_BZ))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_outputs_ignore_the_content_of_unobserved_patches(method, mode):
    model, x_BLD = small_model(method, mode), images()
    observed_BL, _ = subsets(3, 6, 1)
    other_BLD = torch.where(observed_BL[..., None], x_BLD, torch.rand_like(x_BLD) * 100)
    z_BZ = torch.randn(3, Z)
    assert torch.equal(model.encode(x_BLD, observed_BL)[0], model.encode(other_BLD, observed_BL)[0])
    missing_BT = (~observed_BL).nonzero()[:, 1].view(3, -1)
    assert torch.equal(
        model.decode(z_BZ, x_BLD, observed_BL, missing_BT), model.decode(z_BZ, other_BLD, observed_BL, missing_BT)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_decode_does_not_depend_on_the_choice_of_targets(method, mode):
    model, x_BLD, z_BZ = small_model(method, mode), images(), torch.randn(3, Z)
    observed_BL, target_BL = subsets(3, 0, 5)
    wanted_BT = target_BL.nonzero()[:, 1].view(3, 5)
    all_BLD = model.decode(z_BZ, x_BLD, observed_BL)
    some_BTD = model.decode(z_BZ, x_BLD, observed_BL, wanted_BT)
    torch.testing.assert_close(some_BTD, all_BLD[target_BL].view(3, 5, D))


def test_query_only_targets_do_not_see_one_another():
    """An output at t is a function of z, x_S and t alone: mask tokens are queries, never keys."""
    model, x_BLD, z_BZ = small_model("biglearn_u", "query_only"), images(), torch.randn(3, Z)
    observed_BL, _ = subsets(3, 6, 1)
    before = model.decode(z_BZ, x_BLD, observed_BL)
    model.embed.position_LE[3].neg_()  # another token at place 3 changes the output at place 3 alone ...
    changed_BL = (model.decode(z_BZ, x_BLD, observed_BL) - before).abs().sum(-1) > 1e-6
    for b in range(3):
        if not observed_BL[b, 3]:
            assert changed_BL[b].nonzero().flatten().tolist() == [3]
    dense = small_model("biglearn_u", "dense")
    before = dense.decode(z_BZ, x_BLD, observed_BL)
    dense.embed.position_LE[3].neg_()  # ... whereas in the dense reference everything attends to everything
    assert ((dense.decode(z_BZ, x_BLD, observed_BL) - before).abs().sum(-1) > 1e-6).all()


def test_query_only_stream_of_x_S_is_the_same_in_encode_and_decode():
    """x_S never reads z nor [M], so the universal trunk may compute it once for prior and decode."""
    model, x_BLD = small_model("biglearn_u", "query_only"), images()
    observed_BL, _ = subsets(3, 6, 1)
    streams = []

    def of_x_S(module, inputs, output) -> None:
        rows_NE, _ = output
        streams.append(rows_NE.unflatten(0, (len(observed_BL), -1))[:, :-1][observed_BL])

    model.trunk.register_forward_hook(of_x_S)
    model.encode(x_BLD, observed_BL)
    model.decode(torch.randn(3, Z), x_BLD, observed_BL)
    torch.testing.assert_close(streams[0], streams[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_posterior_and_conditional_prior_differ(method, mode):
    model, x_BLD = small_model(method, mode), images()
    observed_BL, target_BL = subsets(3, 6, 4)
    posterior, prior = model.encode(x_BLD, observed_BL | target_BL), model.encode(x_BLD, observed_BL)
    assert (posterior[0] - prior[0]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_gets_a_gradient(method, mode):
    model, x_BLD = small_model(method, mode), images()
    sizes = (0, L) if method == "vae" else (6, 4)
    noise_BZ = randomness.normal(0, "noise", torch.arange(3), Z)
    terms = elbo_terms(model, x_BLD, *subsets(3, *sizes), noise_BZ)
    terms.elbo_B(0.01).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_dense_mask_tokens_are_keys_in_encode_too():
    model, x_BLD = small_model("biglearn_u", "dense"), images()
    observed_BL = torch.arange(L).expand(3, L) != 3
    before = model.encode(x_BLD, observed_BL)[0]
    model.embed.position_LE[3].neg_()
    assert (model.encode(x_BLD, observed_BL)[0] - before).abs().max() > 1e-6


def test_positions_are_rows_then_columns():
    """The table is that of place (row, column) = (i // side, i % side): sine and cosine, each of row, then column."""
    table = small_model("biglearn_u", "dense").embed.position_LE.view(4, 4, 2, 2, 4)
    rows, columns = table.unbind(3)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    torch.testing.assert_close(columns, columns[:1].expand_as(columns))
    assert (rows[0] != rows[1]).any()


def test_every_z_starts_with_a_small_standard_deviation():
    _, logvar_BZ = small_model("vae", "dense").encode(images(), torch.ones(3, L, dtype=torch.bool))
    assert (logvar_BZ == -4).all()


def test_log_variances_are_clamped():
    model = small_model("biglearn_u", "dense")
    for bias in (1e4, -1e4):
        torch.nn.init.constant_(model.z_head[1].fc2.bias, bias)
        logvar_BZ = model.encode(images(), torch.ones(3, L, dtype=torch.bool))[1]
        assert (logvar_BZ == model.config.logvar_limit * (1 if bias > 0 else -1)).all()


def test_bf16_weights_give_float32_distributions():
    model, x_BLD = small_model("biglearn_u", "query_only").bfloat16(), images()
    observed_BL, _ = subsets(3, 6, 1)
    mu_BZ, logvar_BZ = model.encode(x_BLD, observed_BL)
    assert {t.dtype for t in (mu_BZ, logvar_BZ, model.decode(mu_BZ, x_BLD, observed_BL))} == {torch.float32}


def test_input_scale_multiplies_the_patches_where_they_enter():
    plain = small_model("biglearn_u", "query_only")
    config = plain.config.model_copy(update={"input_scale": 3.0})
    scaled = BigLearnModel(config, "biglearn_u", token_dim=D, patches=L)
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        plain.embed.patch_embed.weight *= 3
    x_BLD, (observed_BL, _) = images(), subsets(3, 5, 6)
    torch.testing.assert_close(scaled.encode(x_BLD, observed_BL), plain.encode(x_BLD, observed_BL))
