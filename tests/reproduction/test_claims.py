"""Verdicts on cells whose figures are known, and the page that is written from them."""

import json
from dataclasses import replace

import pytest

from data.errors import UserError
from model.masks import STANDARD_MASKS
from reproduction import claims, page
from reproduction.cell import path_of, write_cell
from reproduction.claims import FAILS, HOLDS, NOT_RUN, PARTLY, Entry
from reproduction.work import Work
from tests.reproduction.test_cells import made, write_grid

ELBOS = ("joint_elbo", "joint_elbo_standard_prior", "biglearn_elbo", "joint_elbo_at_0.01", "biglearn_elbo_at_0.01")


def figures(method="biglearn_u", elbo=-4.0, error=0.02, accuracy=0.7, rate=1.0):
    """As measures.py makes them. rate: seconds of training for 16 images."""
    in_painting = "in-painting, drawn z, mean of 16" if method != "vae" else "pseudo-Gibbs, mean of 4"
    ways = {in_painting: error, "Gaussian": 0.015, "nearest neighbour": 0.04, "mean image": 0.07}
    if method == "vae":
        times = [
            {"way": way, "steps": steps, "error": error * 100 / steps, "seconds": steps / 100}
            for way in ("pseudo-Gibbs", "Metropolis-within-Gibbs")
            for steps in (50, 100)
        ]
    else:
        times = [{"way": "in-painting", "draws": k, "error": error, "seconds": 0.001 * k} for k in (1, 16)]
    judged = [("test images", "", 0.98), ("samples", "", None)]
    judged += [(mask, in_painting.removesuffix(", mean of 16"), 0.9) for mask in STANDARD_MASKS]
    curve = [(48, 2.0), (96, 1.0)]  # half of the images, twice the value
    return {
        "extent": {"images": 1000, "bound_images": 200},
        "elbos": dict.fromkeys(ELBOS, elbo),
        "bounds": [{"of": "log p(x)", "samples": 64, "mean": -100.0}],
        "gaussian": {},
        "latent": {"active_units": 3},
        "filling": [
            {"mask": m, "way": way, "error": e, "images": 9} for m in STANDARD_MASKS for way, e in ways.items()
        ],
        "probe": [
            {"features": features, "of_model": features == "z", "s_ratio": s / 10, "accuracy": value}
            for features, value in (("z", accuracy), ("pixels", 0.4))
            for s in range(1, 11)
        ],
        "times": [row | {"mask": mask, "images": 9} for mask in STANDARD_MASKS for row in times],
        "sharpness": [{"of": of, "way": way, "accuracy": a, "frechet": 1.0, "images": 9} for of, way, a in judged],
        "curve": [
            {"images": n, "seconds": rate * n / 16, "joint_elbo": elbo * times, "inpainting_error": error * times}
            | {"inpainting_error_fifth": error * times}
            for n, times in curve
        ],
        "epochs": {"end": [0.5, 1.0], "loss": [9.0, 8.0], "seconds": [3 * rate, 6 * rate]},
    }


@pytest.fixture
def entry(tiny):
    """entry(method=, seed=, mode=, settings=(), **of_figures): a run with these figures."""

    def make(method="biglearn_u", seed=0, mode="query_only", settings=(), size=(2, 16, 4), cell=None, **of_figures):
        config = tiny(f"method={method}", f"seed={seed}", f"model.mask_tokens={mode}", *settings)
        return Entry(config, made(config, figures=figures(method, **of_figures), size=size, **(cell or {})))

    return make


def test_the_joint_elbo_is_compared_seed_by_seed(entry):
    def of(elbos):
        return [entry(m, seed, elbo=e) for m, values in elbos.items() for seed, e in enumerate(values)]

    entries = of({"biglearn_u": [-4, -3], "biglearn_t": [-5, -4], "vae": [-6, -5]})
    claim = claims.joint_elbos(entries)
    assert claim.verdict == HOLDS
    assert [cell.partition(" ")[0] for cell in claim.rows[0][3:]] == ["-5.50", "-4.50", "-3.50", "1.00", "2.00", "1.00"]
    assert "whether the gap grows is not known" in claim.because
    assert claims.joint_elbos(of({"biglearn_u": [-4, -6], "vae": [-5, -5]})).verdict == PARTLY
    assert claims.joint_elbos(of({"biglearn_u": [-5.01], "vae": [-5]})).verdict == HOLDS  # at least, but for 1%
    assert claims.joint_elbos(of({"biglearn_u": [-6, -7], "vae": [-5, -5]})).verdict == FAILS
    assert claims.joint_elbos(of({"biglearn_u": [-4], "biglearn_t": [-3], "vae": [-5]})).verdict == PARTLY
    assert claims.joint_elbos(of({"biglearn_u": [-4], "biglearn_t": [-6], "vae": [-5]})).verdict == PARTLY
    assert claims.joint_elbos(of({"biglearn_u": [-4]})).verdict == NOT_RUN


@pytest.mark.parametrize(("larger", "verdict", "said"), [(-1, HOLDS, "1 of 1 steps"), (-4, PARTLY, "0 of 1 steps")])
def test_the_gap_must_grow_with_the_model(entry, larger, verdict, said):
    entries = [entry("biglearn_u", elbo=-3), entry("vae", elbo=-5)]
    more = ["model.embed_dim=32"]
    entries += [entry("vae", elbo=-5, settings=more, size=(2, 32, 4))]
    entries += [entry("biglearn_u", elbo=larger, settings=more, size=(2, 32, 4))]
    claim = claims.joint_elbos(entries[::-1])
    assert (claim.verdict, said in claim.because) == (verdict, True)
    other = [entry("biglearn_u", elbo=-9, settings=["train.total_images=960"])]  # of another length
    other += [entry("vae", elbo=-5, settings=["train.total_images=960"])]
    assert said in claims.joint_elbos(entries + other).because


def test_a_run_that_failed_is_named_where_it_is_missed(entry):
    entries = [entry(method, seed, elbo=e) for seed in (0, 1) for method, e in (("biglearn_u", -4), ("vae", -5))]
    assert claims.claims(entries)[0].verdict == HOLDS
    failing = entries[2]
    entries[2] = replace(failing, cell=failing.cell.model_copy(update={"failed": "nan", "figures": {}}))
    claim = claims.claims(entries)[0]
    assert (claim.verdict, failing.cell.name in claim.because) == (PARTLY, True)


def test_runs_of_other_recipes_are_not_compared(entry):
    entries = [entry("biglearn_u", elbo=-4), entry("vae", elbo=-5, settings=["train.batch_size=32"])]
    assert claims.joint_elbos(entries).verdict == NOT_RUN
    same = [entry("biglearn_u"), entry("vae", settings=["engine.name=deepspeed", "run_dir=elsewhere"])]
    assert len(claims.comparisons(same)) == 1
    assert claims.comparisons([entry("biglearn_u"), entry("vae", cell={"data_checksum": "others"})]) == []


def test_the_probe_must_reach_60_percent_in_every_run(entry):
    vae = entry("vae")
    assert claims.probes([entry(accuracy=0.61), entry(seed=1, accuracy=0.7), vae]).verdict == HOLDS
    assert claims.probes([entry(accuracy=0.59), entry(seed=1, accuracy=0.7), vae]).verdict == PARTLY
    assert claims.probes([entry(accuracy=0.59), vae]).verdict == FAILS
    assert claims.probes([entry(accuracy=0.7)]).verdict == NOT_RUN  # of no comparison


def test_in_painting_is_set_beside_the_better_chain(entry):
    claim = claims.chains([entry(error=0.01), entry("vae", error=0.02)])
    assert claim.verdict == HOLDS
    assert "better for 4 of 4" in claim.because
    assert "1.6% to 1.6%" in claim.because  # 16 ms beside the second that 100 steps take
    assert claims.chains([entry(error=0.03), entry("vae", error=0.02)]).verdict == FAILS
    elsewhere = entry("vae", error=0.02, cell={"hardware": "another"})
    claim = claims.chains([entry(error=0.01), elsewhere])
    assert (claim.verdict, "time" in claim.because) == (HOLDS, False)


def test_modes_are_compared_at_equal_images_and_at_equal_time(entry):
    """dense is the better one by images, but takes twice as long: half of its images are all that it gets."""
    both = [entry("biglearn_u", elbo=-4), entry("vae")]
    slow = [entry("biglearn_u", mode="dense", elbo=-3, error=0.015, rate=2.0)]
    claim = claims.modes(both + slow)
    images, time = claim.rows
    assert images[4:] == ["-4.00 / -3.00", "0.0200 / 0.0150", "0.0200 / 0.0150"]
    assert time[4:] == ["-4.00 / -6.00", "0.0200 / 0.0300", "0.0200 / 0.0300"]
    assert claim.because.startswith(
        "at equal images, figures of biglearn_u 0 of 3; at equal time, figures of biglearn_u 3 of 3"
    )
    assert claim.verdict == PARTLY
    curve = slow[0].cell.figures["curve"]
    assert claims._at(curve, "joint_elbo", 9.0) == pytest.approx(-4.5)
    assert claims._at(curve, "joint_elbo", 1.0) is None
    (of_vae, _) = claims.modes([*both, entry("vae", mode="dense")]).rows
    assert of_vae[5:] == ["–", "–"]  # it never saw a part of an image


def test_times_of_one_machine_alone_are_compared(entry):
    entries = [entry("biglearn_u", rate=2.0), entry("vae"), entry("biglearn_u", mode="dense", rate=3.0)]
    claim = claims.costs(entries)
    assert claim.verdict == HOLDS
    assert claim.because.startswith("U takes 2.00 times the time of the joint VAE, 0.67 of that of one whose")
    assert claims.costs(entries[:2]).verdict == PARTLY  # dense has not been run
    assert claims.costs([entry("biglearn_u", rate=0.5), entry("vae")]).verdict == FAILS
    other = entry("biglearn_u", mode="dense", rate=3.0, cell={"hardware": "another"})
    assert "has not been run" in claims.costs([*entries[:2], other]).because
    assert [row[3] for row in claims.modes([*entries[:2], other]).rows] == ["equal images"]


def test_choices_are_told_by_what_differs_from_most(entry):
    changed = ["objective.connected_share=0.5"], ["objective.beta=0.2"]
    claim = claims.choices([entry(settings=changed[0]), entry(), entry(settings=changed[1]), entry("vae")])
    assert [row[1] for row in claim.rows] == ["connected_share 0.5", "beta 0.01, connected_share 0.0", "beta 0.2"]
    assert claims.choices([entry()]).verdict == NOT_RUN


def test_the_page_says_what_the_cells_say(tmp_path, tiny, root):
    values = {"method": ["biglearn_u", "vae", "biglearn_t"], "model.mask_tokens": ["query_only", "dense"]}
    values["seed"] = [0, 1, 2]
    grid = write_grid(tmp_path, tiny.path, configs=["one.yaml"], values=values)
    work, docs = Work.of(grid, tmp_path / "cells", []), tmp_path / "docs"
    page.write([work], docs)
    assert "There are no figures yet" in (docs / page.PAGE).read_text()
    assert not [*docs.glob("*.png")]
    for config in work.configs[:-1]:
        write_cell(path_of(work.cells, config), made(config, figures=figures(config.method)))
    last = work.configs[-1]
    assert page.faults([work], docs)
    write_cell(path_of(work.cells, last), made(last, failed="5 steps in a row are not finite", figures={}))
    page.write([work], docs)
    text = (docs / page.PAGE).read_text()
    assert f"- {path_of(work.cells, last).stem}: 5 steps" in text
    assert all(f"## ({letter})" in text for letter in "abcde")
    assert all(line.count(" | ") >= 3 for line in text.splitlines() if line.startswith("| "))
    assert len([*docs.glob("*.png")]) == 3
    assert page.faults([work], docs) == []
    picture = docs / "reproduction-figure-4.png"
    for damage in (lambda: picture.write_bytes((root / "docs/digits.png").read_bytes()), picture.unlink):
        damage()
        assert any(picture.name in fault for fault in page.faults([work], docs))
    page.write([work], docs)
    path = path_of(work.cells, work.configs[0])
    content = json.loads(path.read_text())["cell"]
    content["figures"]["elbos"]["joint_elbo"] = -3.0
    write_cell(path, made(work.configs[0], figures=content["figures"]))
    assert len(page.faults([work], docs)) == 4
    (docs / "reproduction.md").unlink()
    (docs / "reproduction.md").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        page.write([work], docs)
