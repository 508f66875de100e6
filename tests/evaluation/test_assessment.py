"""What is measured of a trained model: scores, ways to fill, probes, and the report of all of it."""

import json

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from biglearn_vae.find_images import open_images
from biglearn_vae.images import open_stream
from biglearn_vae.observation import observe
from biglearn_vae.pictures import read_images
from data.errors import UserError
from evaluation.assessment import Extent, assess
from evaluation.gaussian import ConditionalGaussian, squared_error
from evaluation.inpainting import References, fillers, nearest, scores
from evaluation.probe import accuracy, features_of
from evaluation.report import page, read_report, words
from model.biglearn import BigLearnModel, ModelConfig
from model.masks import STANDARD_MASKS, standard_mask
from model.objective import ObjectiveConfig
from model.patch_autoencoder.codec import PatchCodec
from model.patch_autoencoder.network import PatchAutoencoder

SMALL = Extent(
    images=20, bound_images=10, bound_samples=2, inpainting_images=6, draws=2, references=50, probe_images=100,
    probe_test_images=60, filling_images=8, filling_draws=3, gaussian_images=200,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def few_ratios():
    """Of masks and of probes; what is measured of each is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.assessment.MASK_RATIOS", (0.3, 0.7))
        patch.setattr("evaluation.assessment.PROBE_RATIOS", (0.1, 1.0))
        yield


def images(count=4, seed=0, side=32):
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(seed))


def half(x):
    """Without the upper half."""
    side = x.shape[1]
    given = observe(x, image_size=side, patch_size=side // 4)
    return given.hide(torch.arange(16).expand(len(x), -1) < 8)


def test_scores_are_of_the_missing_part_alone():
    x = images()
    given = half(x)
    filled = x.clone()
    filled[:, 16:] = 0  # the known part, which does not count
    found = scores(given, x, filled[None])
    assert found["error"].tolist() == [0] * 4
    assert (found["psnr"] == 100).all()
    other = images(seed=1)
    found = scores(given, x, other[None])
    for b in range(4):
        psnr = peak_signal_noise_ratio(x[b, :16].numpy(), other[b, :16].numpy(), data_range=1)
        assert found["psnr"][b].item() == pytest.approx(psnr, rel=1e-4)
        assert found["error"][b].item() == pytest.approx((x - other)[b, :16].square().mean().item(), rel=1e-5)
    assert (scores(given, x, x[None])["ssim"] > 0.9999).all()
    assert (found["ssim"].abs() < 0.2).all()  # noise is like no other noise
    assert (found["diversity"] == 0).all()
    both = scores(given, x, torch.stack([x + 0.1, x - 0.1]))
    torch.testing.assert_close(both["diversity"], torch.full((4,), 0.1))
    torch.testing.assert_close(both["error"], torch.full((4,), 0.01))


def test_the_nearest_neighbour_is_that_of_the_known_part():
    x = images(30)
    given = half(x[[7, 20]])
    others = x.clone()
    others[:, :16] = images(30, seed=2)[:, :16]  # what is missing does not count
    assert torch.equal(nearest(given, others), others[[7, 20]])
    scale = torch.linspace(0.1, 1, 30)[:, None, None, None]
    others = images(30, seed=3) * scale  # of different lengths
    distance = (half(x).images_BHWC[:, None, 16:] - others[:, 16:]).square().sum((2, 3, 4))
    assert torch.equal(nearest(half(x), others), others[distance.argmin(1)])


@pytest.mark.parametrize("side", [32, 8])
def test_similarity_is_that_of_wang_et_al(side):
    """The Gaussian window of 11 pixels with sigma 1.5, of what a picture can show; of pictures smaller than it, too."""
    x, other = images(2, side=side), 1.6 * images(2, seed=1, side=side) - 0.3
    found = scores(half(x), x, other[None])["ssim"]
    offset = torch.arange(-5, 6)
    window_I = torch.exp(-(offset**2) / (2 * 1.5**2))
    window_II = (window_I[:, None] * window_I / window_I.sum() ** 2)[None, None]

    def blurred(x_BHWC):  # scipy's "reflect" repeats the border
        x_NHW = np.pad(x_BHWC.permute(0, 3, 1, 2).flatten(0, 1).numpy(), ((0, 0), (5, 5), (5, 5)), "symmetric")
        blurred_NHW = torch.nn.functional.conv2d(torch.from_numpy(x_NHW)[:, None], window_II)[:, 0]
        return blurred_NHW.unflatten(0, (2, 3))

    y = other.clamp(0, 1)
    mean_x, mean_y = blurred(x), blurred(y)
    variances = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    similarity = similarity / ((mean_x**2 + mean_y**2 + 1e-4) * (variances + 9e-4))
    torch.testing.assert_close(found.float(), similarity[..., : side // 2, :].mean((1, 2, 3)), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def vae(digits_run):
    return BigLearnVAE.load(digits_run)


@pytest.fixture
def joint(vae):
    from tests.biglearn_vae.test_capabilities import as_joint

    return as_joint(vae)


def references_of(images_NHWC):
    return References(images_NHWC.mean(0), images_NHWC, ConditionalGaussian.fit(images_NHWC, 8))


def test_a_joint_vae_gets_the_ways_of_its_peers(vae, joint):
    x = images(2)
    given, references = half(x), references_of(images(5))
    ways = fillers(joint, references, draws=2, seed=0)
    without_model = {"Gaussian", "mean image", "nearest neighbour"}
    assert ways.keys() == {"zero filling", "mean filling", "pseudo-Gibbs"} | without_model
    for name, fill in ways.items():
        filled = fill(given, 0)
        assert len(filled) == (2 if name == "pseudo-Gibbs" else 1)
        assert all(torch.equal(f[:, 16:], x[:, 16:]) for f in filled)
    zeros = x.clone()
    zeros[:, :16] = 0
    torch.testing.assert_close(ways["zero filling"](given, 0)[0][:, :16], joint.reconstruct(zeros)[:, :16])
    zeros[:, :16] = references.mean_HWC[:16]
    torch.testing.assert_close(ways["mean filling"](given, 0)[0][:, :16], joint.reconstruct(zeros)[:, :16])
    assert {"in-painting, mean z", "in-painting, drawn z"} <= fillers(vae, references, 2, 0).keys()


def test_a_probe_tells_what_its_features_tell():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 3, 600)
    told = np.eye(3)[label_N] + 0.1 * rng.standard_normal((600, 3))
    told = np.concatenate([told, 100 * rng.standard_normal((600, 2))], axis=1)
    assert accuracy(told[:400], label_N[:400], told[400:], label_N[400:]) == 1
    small = told * ([1e-4] * 3 + [1] * 2)  # whatever the scale of a feature
    assert accuracy(small[:400], label_N[:400], small[400:], label_N[400:]) == 1
    noise = rng.standard_normal((600, 5))
    assert accuracy(noise[:400], label_N[:400], noise[400:], label_N[400:]) < 0.5
    assert accuracy(told[:400], label_N[:400], told[400:], label_N[400:], pca=1) < 0.6  # the largest part is noise


@pytest.mark.filterwarnings("error")
def test_a_probe_of_images_that_are_all_alike_guesses():
    same, label_N = np.ones((4, 6)), np.array([0, 1, 0, 1])
    assert accuracy(same, label_N, same, label_N) == accuracy(same, label_N, same, label_N, pca=2) == 0.5


def test_features_of_pixels_have_the_mean_where_nothing_is_known(vae):
    x = images(2)[..., :1].expand(-1, -1, -1, 3)
    features = features_of(vae, torch.full((32, 32, 3), 0.25))
    pixels = features["pixels"](half(x)).reshape(2, 32, 32)  # grey: one channel
    assert (pixels[:, :16] == 0.25).all()
    assert np.array_equal(pixels[:, 16:], x[:, 16:, :, 0].numpy())
    assert np.array_equal(features["mean of p(z | x_S)"](half(x)), vae.encode(half(x)).mu_BZ.numpy())


@pytest.fixture(scope="module")
def images_of_vae(vae, digits_run):
    return open_images(vae.description, digits_run)


@pytest.fixture(scope="module")
def report(vae, images_of_vae, world):
    return assess(vae, *images_of_vae, world, SMALL)[0]


def test_the_report_holds_every_figure(vae, report):
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    assert {"biglearn_elbo", "joint_elbo", "joint_elbo_standard_prior"} <= report["elbos"].keys()
    assert {(row["of"], row["samples"]) for row in report["bounds"]} == {
        (of, k) for of in ("log p(x)", *(f"log p(x_T | x_S), {mask}" for mask in STANDARD_MASKS)) for k in (1, 2)
    }
    ways = {row["way"] for row in report["inpainting"]}
    assert ways == {
        "in-painting, mean z", "in-painting, drawn z", "inference, mean z", "Gaussian", "mean image",
        "nearest neighbour",
    }  # fmt: skip
    assert {row["mask"] for row in report["inpainting"]} == {"random", "block", "half", "stroke"}
    drawn = [row["diversity"] for row in report["inpainting"] if row["way"] == "in-painting, drawn z"]
    assert min(drawn) > 0
    probes = {row["features"] for row in report["probe"]}
    assert probes == {"mean of p(z | x_S)", "pixels", "32 principal components of pixels"}
    whole = [row["accuracy"] for row in report["probe"] if row["s_ratio"] == 1]
    assert min(whole) > 0.5
    assert 1 <= report["latent"]["active_units"] <= 32


@pytest.fixture(scope="module")
def of_report(images_of_vae):
    """The first 20 test images, and the Gaussian of the report."""
    data, index = images_of_vae
    test, train = (open_stream(data, index, split, None) for split in ("test", "train"))
    gaussian = ConditionalGaussian.fit(read_images(train, torch.arange(200) * (1437 // 200)), 8)
    return read_images(test, torch.arange(20)), gaussian


def test_the_filling_of_standard_masks_is_measured_way_by_way(vae, of_report, report):
    """Each figure again from the parts: of one draw, of the mean over the draws, of the Gaussian."""
    images_BHWC, gaussian = of_report
    x = images_BHWC[:8]
    whole, rows = vae.observe(x), {}
    for row in report["filling"]:
        assert row.keys() == {"mask", "way", "images", "error", "standard_error"}
        assert (row["images"], row["standard_error"] > 0) == (8, True)
        rows[row["mask"], row["way"]] = row["error"]
    assert {mask for mask, _ in rows} == {*STANDARD_MASKS}
    for mask in STANDARD_MASKS:
        given = whole.hide(~standard_mask(mask, torch.arange(8), 16))
        drawn = vae.inpaint(given, draws=3, seed=0)
        expected = {
            "in-painting, mean z": vae.inpaint(given, draws=0),
            "in-painting, drawn z": drawn,
            "in-painting, drawn z, mean of 3": drawn.mean(0, keepdim=True),
            "Gaussian": gaussian.fill(given)[None],
        }
        for way, filled in expected.items():
            assert rows[mask, way] == pytest.approx(squared_error(given, x, filled).mean().item(), rel=1e-5)
        assert rows[mask, "in-painting, drawn z, mean of 3"] < rows[mask, "in-painting, drawn z"]
    assert {way for _, way in rows} == expected.keys() | {"inference, mean z", "mean image", "nearest neighbour"}


def test_the_gaussian_has_bounds_with_the_variance_of_the_model(vae, of_report, report):
    (x, gaussian), found = of_report, report["gaussian"]
    assert (found["images"], found["components"], found["noise"]) == (200, len(gaussian.variance_R), gaussian.noise)
    assert gaussian.noise < vae.variance / 3  # of one of three equal channels
    wide = gaussian.with_noise(vae.variance / 3).log_density(x[:10])
    assert found["log_density"]["mean"] == pytest.approx(wide.mean().item())
    assert found["joint_elbo"]["mean"] == pytest.approx(gaussian.joint_elbo(x, 32, vae.variance).mean().item())
    assert (found["log_density"]["images"], found["joint_elbo"]["images"]) == (10, 20)


def test_the_joint_vae_and_the_picture_of_fillings(joint, images_of_vae, world):
    few = Extent(
        images=2, bound_images=1, bound_samples=1, inpainting_images=0, draws=2, references=5, probe_images=0,
        filling_images=1, gaussian_images=50,
    )  # fmt: skip
    report, picture = assess(joint, *images_of_vae, world, few)
    ways = [row["way"] for row in report["filling"] if row["mask"] == "centre missing"]
    without_model = ["Gaussian", "mean image", "nearest neighbour"]
    assert ways == ["zero filling", "mean filling", "pseudo-Gibbs", "pseudo-Gibbs, mean of 2", *without_model]
    assert all(row["standard_error"] is None for row in report["filling"])
    assert picture.height > 4 * 4 * 64  # of each mask: what is known, two ways of the model, the Gaussian
    assert "pseudo-Gibbs, mean of 2" in words({"run": report})
    assert report["inpainting"] == report["probe"] == []  # of no images
    assert "pseudo-Gibbs, mean of 2" in page("run", {"run": report}, {})


def test_the_page_is_self_contained_and_names_cannot_break_it(report):
    evil = "<script>alert(1)</script>"
    content = page(evil, {evil: report, "other": report}, {"<b>picture": b"png"})
    assert evil not in content
    assert "<b>picture" not in content
    assert "http" not in content.replace("http-equiv", "")
    assert content.count("<img") == 4  # JointELBO, in-painting, probes, the picture
    said = words({"run": report})
    assert "BigLearnELBO" in said
    lines = {line[: line.index("  ")]: line.split()[-4:] for line in said.splitlines() if "  " in line}
    assert lines["error of in-painting"][-2:] == ["half", "missing"]
    of_gaussian = [f"{row['error']:.4f}" for row in report["filling"] if row["way"] == "Gaussian"]
    assert lines["Gaussian"] == of_gaussian
    assert {"log p(x) of the Gaussian", "JointELBO of probabilistic PCA"} <= lines.keys()
    assert all(error in content for error in of_gaussian)


def test_few_images_and_a_model_without_likelihood(vae, images_of_vae, world):
    values = vae.description.model_dump()
    values["objective"]["beta"] = 0
    description = Description.model_validate(values)
    few = Extent(
        images=2, bound_images=1, inpainting_images=1, draws=1, references=1, probe_images=12, probe_test_images=5,
        filling_images=1, filling_draws=1, gaussian_images=1,
    )  # fmt: skip
    report, _ = assess(BigLearnVAE(vae.model, description), *images_of_vae, world, few)
    assert report["bounds"] == []
    assert report["gaussian"]["log_density"] is report["gaussian"]["joint_elbo"] is None
    assert "of the Gaussian" not in words({"run": report})
    assert "12 principal components of pixels" in {row["features"] for row in report["probe"]}
    assert "BigLearnELBO" in page("run", {"run": report}, {})


def test_a_model_of_codes_is_measured_in_pixels_and_has_no_density_of_them(images_of_vae, world):
    torch.manual_seed(0)
    data, index = images_of_vae
    data = data.model_copy(update={"patch_size": 16, "code_dim": 512})
    small = ModelConfig(embed_dim=16, encoder_depth=1, decoder_depth=1, num_heads=2, latent_dim=4)
    model = BigLearnModel(small, "biglearn_u", 512, 4).requires_grad_(False)
    description = Description(
        method="biglearn_u", data=data, model=small, objective=ObjectiveConfig(), seed=0, images=0
    )
    codec = PatchCodec(PatchAutoencoder(), torch.zeros(512), torch.ones(512), images=index.checksum)
    few = Extent(
        images=2, bound_images=1, bound_samples=1, inpainting_images=1, draws=1, references=5, probe_images=12,
        probe_test_images=5, filling_images=3, filling_draws=2, gaussian_images=50,
    )  # fmt: skip
    report, _ = assess(BigLearnVAE(model, description, codec=codec), data, index, world, few)
    assert report["gaussian"]["log_density"] is report["gaussian"]["joint_elbo"] is None
    error = {row["way"]: row["error"] for row in report["filling"] if row["mask"] == "half seen"}
    assert error["in-painting, drawn z, mean of 2"] > 0
    assert 0 < error["Gaussian"] < error["mean image"] < 0.2


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"format": 99}', b'{"format": 1}', b"{" * 10**5])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "evaluation.json"
    with pytest.raises(UserError, match=r"make it with `python launch/evaluate\.py"):
        read_report(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="no evaluation of this version"):
        read_report(path)
