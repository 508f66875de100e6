"""What stands in the figures of the paper."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.find_images import open_images
from biglearn_vae.images import open_stream
from biglearn_vae.pictures import read_test_images, shown
from data.errors import UserError
from evaluation import figures
from evaluation.figures import FIGURES, S_RATIOS, draw_figure, nested_parts, strokes_of, training_curves
from trainer.config import dump_config, load_config

EPOCH = 1437  # training images of digits


def made_run(like: Path, path: Path, method: str, *overrides: str, speed: float = 100.0) -> Path:
    """What figure 13 needs of a run: seven steps of a third of an epoch, one of them skipped."""
    path.mkdir()
    (path / "config.yaml").write_text(dump_config(load_config(like / "config.yaml", [f"method={method}", *overrides])))
    losses = [9.0, 6.0, 3.0, 2.0, None, 4.0, 1.0]
    lines = [
        {"step": k, "images": k * EPOCH // 3, "loss": loss, "images_per_second": speed, "seconds_evaluation": 50.0}
        for k, loss in enumerate(losses, start=1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def vae(digits_run) -> BigLearnVAE:
    return BigLearnVAE.load(digits_run)


@pytest.fixture(scope="module")
def images_BHWC(vae, digits_run):
    return read_test_images(open_stream(*open_images(vae.description, digits_run), "test", seed=None), 4)[1]


@pytest.fixture
def sheets(vae, images_BHWC, monkeypatch):
    """sheets(number): the rows and the columns of each sheet of a figure."""
    drawn = []

    def take(rows, title, columns=(), group=0):
        drawn.append((rows, columns))
        return Image.new("RGB", (9, 9))

    def draw(number: str, seed: int = 1):
        drawn.clear()
        FIGURES[number].draw(vae, images_BHWC, seed)
        return list(drawn)

    monkeypatch.setattr(figures, "sheet", take)
    return draw


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_nested(vae, images_BHWC, seed):
    parts = nested_parts(vae, images_BHWC, S_RATIOS, seed)
    assert parts[0].observed_BL.all()
    for ratio, larger, smaller in zip(S_RATIOS[1:], parts, parts[1:], strict=False):
        assert (smaller.observed_BL <= larger.observed_BL).all()
        assert smaller.observed_BL.sum(1).tolist() == [int(16 * ratio + 1e-6)] * 4
        assert torch.equal(smaller.images_BHWC[smaller.seen_BHW], images_BHWC[smaller.seen_BHW])


def test_incomplete_data_stands_above_what_is_made_of_it(sheets, vae, images_BHWC):
    parts = nested_parts(vae, images_BHWC, S_RATIOS, seed=1)
    for (rows, columns), decode in zip(sheets("3"), (vae.infer, vae.inpaint), strict=True):
        assert len(columns) == 10
        assert len(rows) == 2 * len(images_BHWC)
        for r, given in enumerate(parts):
            made_BHWC = decode(given, seed=1)[0]
            for b in range(len(images_BHWC)):
                assert torch.equal(rows[2 * b][1][r], shown(given)[b])
                assert torch.equal(rows[2 * b + 1][1][r], made_BHWC[b])
    painted_row = rows[1][1]
    assert torch.equal(painted_row[0], images_BHWC[0])


def test_a_figure_follows_from_its_seed(vae, images_BHWC):
    first, again, other = (draw_figure("3", vae, images_BHWC, seed).tobytes() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_interpolations_join_reconstructions(sheets, vae, images_BHWC):
    ((rows, columns),) = sheets("9")
    reconstructed_BHWC = vae.reconstruct(images_BHWC)
    for b, (_, path_KHWC) in enumerate(rows):
        after = (b + 1) % len(images_BHWC)
        assert len(path_KHWC) == len(columns)
        assert torch.equal(path_KHWC[0], images_BHWC[b])
        assert torch.equal(path_KHWC[-1], images_BHWC[after])
        torch.testing.assert_close(path_KHWC[1], reconstructed_BHWC[b])
        torch.testing.assert_close(path_KHWC[-2], reconstructed_BHWC[after])


def test_combined_parts_are_one_and_the_other(sheets, images_BHWC):
    ((rows, _),) = sheets("10")
    grey_BHWC = torch.full_like(images_BHWC, 0.45)
    missing = [(rows[k][1] == grey_BHWC).all(-1) for k in (0, 2, 4)]
    assert not (~missing[0] & ~missing[1]).any()
    assert torch.equal(missing[0] & missing[1], missing[2])
    for seen_BHW, (_, painted_BHWC) in zip(missing, rows[1:6:2], strict=True):
        assert torch.equal(painted_BHWC[~seen_BHW], images_BHWC[~seen_BHW])


def test_sensitivity_shows_the_dimensions_that_change_most(sheets, vae, images_BHWC):
    ((rows, columns),) = sheets("11")
    change_Z = torch.zeros(vae.description.model.latent_dim)
    for dimension in range(len(change_Z)):
        for given in nested_parts(vae, images_BHWC, (0.1, 0.3, 0.5), seed=1):
            base, changed = vae.decoding_sensitivity(given, [dimension], seed=1)
            change_Z[dimension] += (changed[0] - base).abs().sum()
    best = change_Z.argsort(descending=True)[:8].tolist()
    assert columns == ["x_S", "from z", *(f"z{dimension} + 5" for dimension in best)]
    _, changed = vae.decoding_sensitivity(given, [best[0]], seed=1)
    torch.testing.assert_close(rows[2][1][2], changed[0, 0])  # the first image, S-ratio 0.5


def test_a_change_of_what_is_known_reaches_the_rest_through_z_alone(sheets, vae, images_BHWC):
    ((rows, _),) = sheets("12")
    (given,) = nested_parts(vae, images_BHWC, (0.5,), seed=1)
    seen_BHW, before_BHWC = given.seen_BHW, rows[1][1]
    for (_, changed_BHWC), (_, painted_BHWC) in zip(rows[2::2], rows[3::2], strict=True):
        assert not torch.equal(changed_BHWC[seen_BHW], images_BHWC[seen_BHW])
        assert changed_BHWC.min() >= 0
        assert changed_BHWC.max() <= 1
        assert torch.equal(painted_BHWC[seen_BHW], images_BHWC[seen_BHW])
        assert not torch.equal(painted_BHWC[~seen_BHW], before_BHWC[~seen_BHW])


def test_capabilities_are_all_there(sheets, images_BHWC):
    samples, inferred, reconstructed, painted, strokes = (rows for rows, _ in sheets("14"))
    assert [len(rows) for rows in (samples, inferred, reconstructed, painted, strokes)] == [2, 2, 2, 4, 4]
    for rows in (painted, strokes):
        assert not torch.equal(rows[1][1], rows[2][1])


def test_strokes_are_bright_pixels_of_one_column_of_patches(vae, images_BHWC):
    strokes_BHWC = strokes_of(images_BHWC, patch_size=8)
    known_BHW = ~strokes_BHWC.isnan().any(-1)
    assert known_BHW.any((1, 2)).all()
    assert not known_BHW[..., :16].any()
    assert not known_BHW[..., 24:].any()
    assert strokes_BHWC[known_BHW].min() > 0.5 * images_BHWC.amax((1, 2, 3)).min()


def test_curves_have_the_numbers_of_both_runs(digits_run, tmp_path):
    """Means of each epoch over the steps that were not skipped; time without evaluations."""
    runs = [
        made_run(digits_run, tmp_path / name, name, speed=speed)
        for name, speed in (("biglearn_u", 100.0), ("vae", 200.0))
    ]
    loss_axes, time_axes = training_curves(runs).axes
    for number, speed in enumerate((100.0, 200.0)):
        ends, losses = loss_axes.lines[number].get_data()
        assert ends == pytest.approx([1, 2, 7 / 3])
        assert losses == pytest.approx([6, 3, 1])
        _, minutes = time_axes.lines[number].get_data()
        assert minutes == pytest.approx([EPOCH / speed / 60 * end for end in ends])
        label = loss_axes.get_legend().get_texts()[number].get_text()
        assert runs[number].name in label


def test_curves_of_two_data_sets_are_refused(digits_run, tmp_path):
    other = made_run(digits_run, tmp_path / "mnist", "vae", "data.source=mnist")
    with pytest.raises(UserError, match="trained on digits and mnist"):
        training_curves([digits_run, other])


def test_a_run_without_a_step_is_refused(digits_run, tmp_path):
    empty = made_run(digits_run, tmp_path / "empty", "vae")
    (empty / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has no step"):
        training_curves([empty])
