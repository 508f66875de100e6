"""What a model that learned the digits can do (Table 2), through the Python interface."""

import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from biglearn_vae.pictures import read_images
from data.errors import UserError
from data.read.index import load_index
from data.read.stream import Stream
from model.biglearn import BigLearnModel
from model.gaussian import Gaussian
from model.masks import observed_of_kind


@pytest.fixture(scope="module")
def vae(digits_run):
    return BigLearnVAE.load(digits_run)


@pytest.fixture(scope="module")
def digits(digits_shards):
    """(360, 32, 32, 3) test images."""
    stream = Stream(load_index(digits_shards), digits_shards, "test", patch_size=8, seed=None)
    return read_images(stream, torch.arange(stream.images))


def hidden(vae, images, kind="half", s_ratio=0.5):
    index_B, patches = torch.arange(len(images)), vae.description.data.patches
    return vae.observe(images).hide(~observed_of_kind(kind, s_ratio, index_B, patches, seed=7))


def error(given, images, painted):
    missing = ~given.seen_BHW
    return (painted - images)[missing].square().mean().item()


@pytest.mark.parametrize("s_ratio", [0.4, 0.8])
def test_in_painting_beats_the_mean_image(vae, digits, s_ratio):
    given = hidden(vae, digits, "random", s_ratio)
    mean = digits.mean(0).expand_as(digits)
    assert error(given, digits, vae.inpaint(given, draws=0)[0]) < 0.85 * error(given, digits, mean)


def test_observed_pixels_come_back_untouched_and_draws_differ(vae, digits):
    images = digits[:6].clone()
    images[:, :20] = torch.nan  # two rows of patches and a half: what is known of the half is kept as well
    given = vae.observe(images)
    assert given.dropped_pixels == 6 * 4 * 32
    for painted in (*vae.inpaint(given, draws=2), *vae.pseudo_gibbs(given, draws=1, burn_in=2, steps=1)):
        assert torch.equal(painted[:, 20:], digits[:6, 20:])
        assert painted.isfinite().all()
    first, second = vae.inpaint(given, draws=2)
    assert (first - second)[:, :16].abs().mean() > 0.01


def test_infer_and_in_paint_differ(vae, digits):
    """z alone against z and x_S: the same z, other images."""
    given = hidden(vae, digits[:20])
    inferred, painted = vae.infer(given, seed=3)[0], vae.inpaint(given, seed=3)[0]
    missing = ~given.seen_BHW
    assert (inferred - painted)[missing].abs().mean() > 1e-5  # a z that knows all of the image leaves little to x_S
    assert not torch.equal(inferred[given.seen_BHW], given.images_BHWC[given.seen_BHW])
    z_BZ = vae.draw(vae.encode(given), "draw 0", 3)
    torch.testing.assert_close(vae.decode(z_BZ), inferred)
    torch.testing.assert_close(vae.decode(z_BZ, given), painted)


def test_prior_and_posterior_meet_as_what_is_known_grows(vae, digits):
    posterior = vae.encode(digits[:100])
    distances = []
    for s_ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = vae.encode(hidden(vae, digits[:100], "random", s_ratio))
        distances.append((found.mu_BZ - posterior.mu_BZ).square().sum(-1).mean().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1
    assert distances[-1] == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(vae.encode(hidden(vae, digits[:1], "random", 0.0)).mu_BZ, vae.prior().mu_BZ)
    assert vae.prior().sigma_BZ.mean() > 1.5 * posterior.sigma_BZ.mean()


def test_encoding_with_combined_parts(vae, digits):
    """p(z | x_{S1 ∪ S2}) is that of the image that shows both, and nearer to the posterior than either."""
    whole = vae.observe(digits[:50])
    left = torch.zeros(50, 16, dtype=torch.bool)
    left[:, :8] = True
    one, other = whole.hide(left), whole.hide(~left)
    posterior = vae.encode(whole).mu_BZ
    torch.testing.assert_close(vae.encode(one.merge(other)).mu_BZ, posterior)
    quarter = torch.zeros(50, 16, dtype=torch.bool)
    quarter[:, 12:] = True
    three_quarters = other.merge(one.hide(quarter))
    distance = [(vae.encode(given).mu_BZ - posterior).square().mean() for given in (three_quarters, other)]
    assert distance[0] < distance[1]


def test_the_same_seed_gives_the_same_in_any_batches(vae, digits):
    given, other = hidden(vae, digits[:10]), BigLearnVAE(vae.model, vae.description)
    other.batch_size = 3
    whole = vae.inpaint(given, draws=2, seed=5)
    torch.testing.assert_close(other.inpaint(given, draws=2, seed=5), whole, rtol=1e-4, atol=1e-5)
    parts = [vae.inpaint(given[:4], draws=2, seed=5), vae.inpaint(given[4:], draws=2, seed=5, first_index=4)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(vae.inpaint(given, draws=2, seed=6), whole, atol=1e-3)
    torch.testing.assert_close(
        vae.generate(5, seed=1)[3:], vae.generate(2, seed=1, first_index=3), rtol=1e-4, atol=1e-5
    )
    chain = {"burn_in": 3, "steps": 1, "seed": 2}
    start, longer = vae.generate(4).mean(0), vae.pseudo_gibbs(given, **chain, start_HWC=digits.mean(0))
    torch.testing.assert_close(
        other.pseudo_gibbs(given, **chain, start_HWC=digits.mean(0)), longer, rtol=1e-3, atol=1e-3
    )
    from_mean = vae.pseudo_gibbs(given, **chain, start_HWC=start)
    assert not torch.allclose(from_mean, longer)
    of_samples = vae.pseudo_gibbs(given, **chain, start_HWC=vae.generate(64, seed=2).mean(0))
    torch.testing.assert_close(vae.pseudo_gibbs(given, **chain), of_samples)  # what it starts from by itself
    for value, atol in ((BigLearnVAE.elbo, 1e-3), (partial(BigLearnVAE.log_likelihood_bound, samples=2), 1e-1)):
        of_all = value(vae, digits[:10])
        torch.testing.assert_close(value(other, digits[:10]), of_all, rtol=1e-4, atol=atol)
        torch.testing.assert_close(value(vae, digits[4:10], first_index=4), of_all[4:], rtol=1e-4, atol=atol)
        assert len(value(vae, digits[:1].expand(10, -1, -1, -1)).unique()) > 5  # each has draws of its own


def test_the_importance_weighted_bound_rises_with_its_weights(vae, digits):
    bounds = [vae.log_likelihood_bound(digits[:60], samples=k).mean().item() for k in (1, 8, 64)]
    assert bounds == sorted(bounds)
    assert bounds[2] > bounds[0] + 1
    observed_BL = torch.arange(16).expand(60, -1) < 8
    conditional = vae.log_likelihood_bound(digits[:60], observed_BL, samples=8)
    assert (conditional < vae.log_likelihood_bound(digits[:60], samples=8)).all()  # of half of the pixels


def test_one_weight_is_the_objective_over_beta(vae, digits):
    """With one weight the bound is, up to constants and the noise of the KL, the ELBO divided by β."""
    x, beta = digits[:200], vae.description.objective.beta
    constant = x[0].numel() / 2 * torch.log(torch.tensor(2 * torch.pi * beta))
    bound = vae.log_likelihood_bound(x, samples=1).mean()
    torch.testing.assert_close(bound, vae.elbo(x).mean() / beta - constant, rtol=0.02, atol=0)


def test_a_linear_gaussian_model_has_its_exact_likelihood():
    """Where p(x) is known in closed form, the bound with many weights is it."""
    from biglearn_vae.likelihood import importance_weighted_bound

    class Linear:
        def encode(self, x_BLD, observed_BL):
            seen_B1 = observed_BL.any(1, keepdim=True)
            mu_BZ = torch.where(seen_B1, 0.9 * x_BLD[:, 0] / 1.5, 0.0)  # near the true posterior, not equal to it
            no_prior = 3.0  # what the network says of nothing, in the place of which N(0, I) stands
            return Gaussian(mu_BZ, torch.where(seen_B1, -0.9, no_prior).expand_as(mu_BZ))

        def prior(self, x_BLD, observed_BL):
            return Gaussian.standard(x_BLD[:, 0])

        def decode(self, z_BZ, x_BLD, observed_BL):
            return z_BZ[:, None]

    x_BLD = torch.randn(50, 1, 1, generator=torch.Generator().manual_seed(0))
    nothing_BL = torch.zeros(50, 1, dtype=torch.bool)
    how = {"variance": 0.5, "seed": 0, "index_B": torch.arange(50)}
    bound_B = importance_weighted_bound(Linear(), x_BLD, nothing_BL, ~nothing_BL, samples=2000, **how)
    exact_B = torch.distributions.Normal(0.0, 1.5**0.5).log_prob(x_BLD.flatten())
    torch.testing.assert_close(bound_B, exact_B, rtol=0, atol=0.05)


def test_a_linear_gaussian_model_has_its_exact_conditional_likelihood():
    """z ~ N(x_1 / 2, 1), x_2 ~ N(z + x_1 / 4, v): both p(z | x_S) and p(x_T | z, x_S) look at x_S."""
    from biglearn_vae.likelihood import importance_weighted_bound

    class Conditional:
        def encode(self, x_BLD, observed_BL):
            prior_B1 = 0.5 * x_BLD[:, 0]
            posterior_B1 = prior_B1 + 0.6 * (x_BLD[:, 1] - 0.75 * x_BLD[:, 0])  # near the true one
            mu_BZ = torch.where(observed_BL[:, 1:], posterior_B1, prior_B1)
            return Gaussian(mu_BZ, torch.where(observed_BL[:, 1:], -0.9, 0.0).expand_as(mu_BZ))

        prior = encode

        def decode(self, z_BZ, x_BLD, observed_BL):
            return (z_BZ + 0.25 * x_BLD[:, 0] * observed_BL[:, :1])[:, None].expand(-1, 2, -1)

    x_BLD = torch.randn(50, 2, 1, generator=torch.Generator().manual_seed(0))
    S_BL = torch.tensor([[True, False]]).expand(50, -1)
    how = {"variance": 0.5, "seed": 0, "index_B": torch.arange(50)}
    bound_B = importance_weighted_bound(Conditional(), x_BLD, S_BL, ~S_BL, samples=2000, **how)
    exact_B = torch.distributions.Normal(0.75 * x_BLD[:, 0, 0], 1.5**0.5).log_prob(x_BLD[:, 1, 0])
    torch.testing.assert_close(bound_B, exact_B, rtol=0, atol=0.05)


def test_pseudo_gibbs_samples_the_conditional_of_a_known_joint():
    """x = (z, z) + noise of variance v: given the first, the mean of the second is that of z."""
    from biglearn_vae.pseudo_gibbs import pseudo_gibbs

    class Joint:
        def encode(self, x_BLD, observed_BL):
            variance = 1 / (1 + 2 / 0.5)
            mu_BZ = variance * x_BLD.sum(1) / 0.5
            return Gaussian(mu_BZ, torch.full_like(mu_BZ, variance).log())

        def decode(self, z_BZ, x_BLD, observed_BL):
            return z_BZ[:, None].expand(-1, 2, -1)

    x_BLD = torch.tensor([[[1.2], [0.0]]]).expand(4000, -1, -1)
    observed_BL = torch.tensor([[True, False]]).expand(4000, -1)
    how = {"variance": 0.5, "burn_in": 20, "steps": 1, "draws": 1, "seed": 0, "index_B": torch.arange(4000)}
    (state_BLD,) = pseudo_gibbs(Joint(), x_BLD, observed_BL, torch.full((2, 1), 9.0), **how)
    z_B = state_BLD[:, 1, 0]
    assert z_B.mean().item() == pytest.approx(1.2 / 1.5, abs=0.04)
    assert z_B.var().item() == pytest.approx(1 / 3, abs=0.04)
    assert torch.equal(state_BLD[:, 0], x_BLD[:, 0])


def test_metropolis_within_gibbs_corrects_an_encoder_that_is_wrong():
    """As above with a p(z | x) off by a half and half as wide again: pseudo-Gibbs is led astray, Metropolis is not."""
    from biglearn_vae.pseudo_gibbs import pseudo_gibbs

    class Joint:
        def encode(self, x_BLD, observed_BL):
            variance = 1 / (1 + 2 / 0.5)
            mu_BZ = variance * x_BLD.sum(1) / 0.5 + 0.5
            return Gaussian(mu_BZ, torch.full_like(mu_BZ, 2.25 * variance).log())

        def decode(self, z_BZ, x_BLD, observed_BL):
            return z_BZ[:, None].expand(-1, 2, -1)

        def prior(self, x_BLD, observed_BL):
            return Gaussian.standard(x_BLD[:, 0])

    x_BLD = torch.tensor([[[1.2], [0.0]]]).expand(4000, -1, -1)
    observed_BL = torch.tensor([[True, False]]).expand(4000, -1)
    how = {"variance": 0.5, "burn_in": 60, "steps": 1, "draws": 1, "seed": 0, "index_B": torch.arange(4000)}
    start_LD = torch.full((2, 1), 1.0)
    (astray_BLD,) = pseudo_gibbs(Joint(), x_BLD, observed_BL, start_LD, **how)
    assert astray_BLD[:, 1, 0].mean().item() > 1.2 / 1.5 + 0.3
    (state_BLD,) = pseudo_gibbs(Joint(), x_BLD, observed_BL, start_LD, **how, metropolis=True)
    assert state_BLD[:, 1, 0].mean().item() == pytest.approx(1.2 / 1.5, abs=0.04)
    assert state_BLD[:, 1, 0].var().item() == pytest.approx(1 / 3, abs=0.04)


def test_sensitivities_and_interpolation(vae, digits):
    given = hidden(vae, digits[:8])
    base, changed = vae.decoding_sensitivity(given, [0, 5], delta=5.0)
    assert torch.equal(base, vae.inpaint(given)[0])
    assert changed.shape == (2, *base.shape)
    assert torch.equal(changed[0][given.seen_BHW], digits[:8][given.seen_BHW])
    assert (changed[0] - changed[1]).abs().mean() > 1e-3
    before, after = vae.encoding_sensitivity(given, torch.full_like(digits[:8], 0.2))
    assert torch.equal(before.mu_BZ, vae.encode(given).mu_BZ)
    assert (after.mu_BZ - before.mu_BZ).abs().mean() > 0.01
    unchanged = vae.encoding_sensitivity(given, (~given.seen_BHW)[..., None].float().expand(-1, -1, -1, 3))[1]
    assert torch.equal(unchanged.mu_BZ, before.mu_BZ)  # what is missing cannot change
    steps = vae.interpolate(digits[:4], digits[4:8], steps=5)
    torch.testing.assert_close(steps[0], vae.reconstruct(digits[:4]))
    torch.testing.assert_close(steps[-1], vae.reconstruct(digits[4:8]))
    middle = vae.decode((vae.encode(digits[:4]).mu_BZ + vae.encode(digits[4:8]).mu_BZ) / 2)
    torch.testing.assert_close(steps[2], middle, rtol=1e-4, atol=1e-5)


def test_strokes_guide_what_is_generated(vae, digits):
    """A thin line through the image is known: "any" uses its patches, "all" none."""
    strokes = torch.full((3, 32, 32, 1), torch.nan)
    strokes[:, 4:28, 16] = 1.0
    guided = vae.inpaint(vae.observe(strokes, observed="any"), draws=2)
    assert vae.observe(strokes).observed_BL.sum() == 0
    assert (guided[:, :, 4:28, 16] == 1).all()
    unguided = vae.inpaint(vae.observe(strokes), draws=2)
    assert (guided - unguided).abs().mean() > 0.01


def as_joint(vae: BigLearnVAE) -> BigLearnVAE:
    """An untrained joint VAE of the same size."""
    values = vae.description.model_dump() | {"method": "vae"}
    description = Description.model_validate(values)
    torch.manual_seed(0)
    data = description.data
    return BigLearnVAE(BigLearnModel(description.model, "vae", data.token_dim, data.patches), description)


def test_the_joint_vae_does_what_it_was_trained_for(vae, digits):
    joint = as_joint(vae)
    assert joint.reconstruct(digits[:2]).shape == (2, 32, 32, 3)
    assert not joint.prior().mu_BZ.any()
    assert not joint.prior().logvar_BZ.any()
    assert joint.log_likelihood_bound(digits[:2], samples=2).isfinite().all()
    given = hidden(vae, digits[:2])
    for refused in (joint.encode, joint.infer, joint.inpaint):
        with pytest.raises(UserError, match="use pseudo_gibbs"):
            refused(given)
    with pytest.raises(UserError, match="leave S empty"):
        joint.elbo(digits[:2], given.observed_BL)
    assert joint.pseudo_gibbs(given, burn_in=1, steps=1).shape == (1, 2, 32, 32, 3)


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda vae, x: vae.reconstruct(hidden(vae, x)), "needs whole images"),
        (lambda vae, x: vae.elbo(hidden(vae, x)), "needs whole images"),
        (lambda vae, x: vae.elbo(x, torch.ones(len(x), 16, dtype=torch.bool)), "T is empty"),
        (lambda vae, x: vae.elbo(x, *torch.ones(2, len(x), 16, dtype=torch.bool)), "share a patch"),
        (lambda vae, x: vae.elbo(x, torch.ones(len(x), 16)), "not bool"),
        (lambda vae, x: vae.decode(torch.zeros(1, 32), x), "as many of both"),
        (lambda vae, x: vae.interpolate(x, x[:1]), "as many of both"),
        (lambda vae, x: vae.decoding_sensitivity(x, [32]), "0 to 31"),
        (lambda vae, x: vae.encode(x[:0]), "no images"),
        (lambda vae, x: vae.inpaint(x[:, :16]), "resize or reshape"),
        (lambda vae, x: vae.decode(torch.zeros(3, 31)), r"needs \(B, 32\)"),
        (lambda vae, x: vae.decoding_sensitivity(x, []), "give some of them"),
        (lambda vae, x: vae.encoding_sensitivity(x, torch.zeros(3, 3)), "the change is"),
        (lambda vae, x: vae.pseudo_gibbs(x, start_HWC=torch.zeros(28, 28, 3)), r"start_HWC is \(28"),
        (lambda vae, x: vae.pseudo_gibbs(x, steps=0), "steps is 0"),
        (lambda vae, x: vae.pseudo_gibbs(x, draws=0), "draws is 0"),
        (lambda vae, x: vae.pseudo_gibbs(x, burn_in=-1), "burn_in is -1"),
        (lambda vae, x: vae.inpaint(x, draws=-1), "draws is -1"),
        (lambda vae, x: vae.interpolate(x, x, steps=0), "steps is 0"),
        (lambda vae, x: vae.log_likelihood_bound(x, samples=0), "samples is 0"),
        (lambda vae, x: vae.generate(-1), "count is -1"),
        (lambda vae, x: BigLearnVAE.load("a" * 300), "cannot be read"),
    ],
)
def test_mistakes_are_one_plain_line(vae, digits, mistake, cause):
    with pytest.raises(UserError, match=cause) as refusal:
        mistake(vae, digits[:3])
    assert "\n" not in str(refusal.value)


def test_what_comes_out_can_be_changed_and_learned_from(vae, digits):
    found = vae.encode(digits[:3])
    found.mu_BZ[:, 0] += 1
    torch.nn.Linear(32, 2)(found.mu_BZ).sum().backward()
    assert vae.decode(found.mu_BZ.requires_grad_()).shape == (3, 32, 32, 3)


def test_a_model_trained_without_the_kl_has_no_bound(vae, digits):
    values = vae.description.model_dump()
    values["objective"]["beta"] = 0
    with pytest.raises(UserError, match="beta=0"):
        BigLearnVAE(vae.model, Description.model_validate(values)).log_likelihood_bound(digits[:1])


def test_an_export_is_the_run_and_neither_needs_training_code(vae, digits, digits_run, tmp_path):
    """Nor torch's compiler, whose import takes as long as all else."""
    vae.export(tmp_path / "model")
    program = f"""
import sys, torch
from biglearn_vae import BigLearnVAE
BigLearnVAE.load({str(digits_run)!r})
vae = BigLearnVAE.load({str(tmp_path / "model")!r})
torch.save(vae.generate(2), {str(tmp_path / "images.pt")!r})
print(sorted(sys.modules.keys() & {{"trainer", "launch", "deepspeed", "accelerate", "torch._dynamo"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), vae.generate(2))
    checkpoint = BigLearnVAE.load(digits_run / "checkpoints/img-000000040000")
    torch.testing.assert_close(checkpoint.encode(digits[:2]).mu_BZ, vae.encode(digits[:2]).mu_BZ)
    alone = shutil.copytree(digits_run / "checkpoints/img-000000040000", tmp_path / "alone")
    with pytest.raises(UserError, match="a checkpoint without its run"):
        BigLearnVAE.load(alone)
    again = BigLearnVAE.load(tmp_path / "model")
    assert again.description == vae.description
    again.export(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_an_export_has_the_format_that_loaders_ask_for_and_older_ones_without_it_load(vae, digits, tmp_path):
    vae.export(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    with safe_open(weights, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    save_file(load_file(weights), weights)
    values = json.loads(config.read_text()) | {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    del values["data_checksum"]
    config.write_text(json.dumps(values))
    older = BigLearnVAE.load(tmp_path)
    torch.testing.assert_close(older.encode(digits[:2]).mu_BZ, vae.encode(digits[:2]).mu_BZ)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "codec.safetensors"])
def test_an_export_replaces_exports_and_nothing_else(vae, tmp_path, name):
    (tmp_path / name).write_text('{"architectures": ["of another model"]}')
    with pytest.raises(UserError, match=f"{name} is of no export of this program"):
        vae.export(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"architectures": ["of another model"]}']
    vae.export(tmp_path / "own")
    (tmp_path / "own/model.safetensors").write_text("cut short by a kill")
    vae.export(tmp_path / "own")
    BigLearnVAE.load(tmp_path / "own")


def test_a_damaged_or_foreign_export_is_refused(vae, tmp_path):
    folder = tmp_path / "model"

    def refusal(cause):
        with pytest.raises(UserError, match=cause) as refused:
            BigLearnVAE.load(folder)
        assert "\n" not in str(refused.value)

    refusal("holds no run, no checkpoint and no export")
    vae.export(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    sound = weights.read_bytes(), config.read_text()
    weights.write_bytes(sound[0][:-1] + bytes([sound[0][-1] ^ 1]))
    refusal("model.safetensors is damaged")
    weights.unlink()
    refusal("model.safetensors cannot be read: No such file")
    weights.write_bytes(sound[0])
    values = json.loads(sound[1])
    for text, cause in (
        ("{", "holds no export"),
        ("[]", "holds no export"),
        (json.dumps(values | {"format": 2}), "holds no export"),
        (json.dumps(values | {"surprise": 1}), "holds no export"),
        (json.dumps(values | {"method": "vae"}), "the configuration says"),
        (json.dumps(values | {"model": values["model"] | {"embed_dim": 32}}), "the configuration says"),
        (json.dumps(values | {"model": values["model"] | {"encoder_depth": 10**9}}), "more layers"),
        (json.dumps(values | {"data": values["data"] | {"image_size": 8 * 10**6}}), "more layers"),
    ):
        config.write_text(text)
        refusal(cause)
