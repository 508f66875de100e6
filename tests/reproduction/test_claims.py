"""Verdicts on cells whose figures are known, and the page that is written from them."""

import json
from dataclasses import replace

import pytest

from data.errors import UserError
from model.masks import STANDARD_MASKS
from reproduction import claims, page
from reproduction.cell import path_of, write_cell
from reproduction.claims import FAILS, HOLDS, LEVEL, NOT_RUN, PARTLY, Entry
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
        "filling": [{"mask": m, "way": way, "error": e} for m in STANDARD_MASKS for way, e in ways.items()],
        "probe": [
            {"features": features, "of_model": features == "z", "s_ratio": s / 10, "accuracy": value}
            for features, value in (("z", accuracy), ("pixels", 0.4))
            for s in range(1, 11)
        ],
        "times": [row | {"mask": mask} for mask in STANDARD_MASKS for row in times],
        "sharpness": [{"of": of, "way": way, "accuracy": a, "frechet": 1.0} for of, way, a in judged],
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

    def make(method="biglearn_u", seed=0, mode="query_only", settings=(), **of_figures):
        config = tiny(f"method={method}", f"seed={seed}", f"model.mask_tokens={mode}", *settings)
        return Entry(config, made(config, figures=figures(method, **of_figures)))

    return make


def test_the_joint_elbo_is_compared_seed_by_seed(entry):
    def of(elbos):
        return [entry(m, seed, elbo=e) for m, values in elbos.items() for seed, e in enumerate(values)]

    entries = of({"biglearn_u": [-4, -3], "biglearn_t": [-5, -4], "vae": [-6, -5]})
    claim = claims.joint_elbos(entries)
    assert claim.verdict == HOLDS
    assert [cell.partition(" ")[0] for cell in claim.rows[0][5:]] == ["1.00", "2.00", "1.00"]
    assert all(cell.endswith(": holds") for cell in claim.rows[0][5:])
    assert "whether the gap grows is not known" in claim.because
    assert claims.joint_elbos(of({"biglearn_u": [-4, -6], "vae": [-5, -5]})).verdict == LEVEL
    assert claims.joint_elbos(of({"biglearn_u": [-5.01], "vae": [-5]})).verdict == LEVEL  # less than 1%
    assert claims.joint_elbos(of({"biglearn_u": [-6, -7], "vae": [-5, -5]})).verdict == FAILS
    assert claims.joint_elbos(of({"biglearn_u": [-4], "biglearn_t": [-3], "vae": [-5]})).verdict == PARTLY
    assert claims.joint_elbos(of({"biglearn_u": [-4]})).verdict == NOT_RUN
    larger = [replace(e, cell=e.cell.model_copy(update={"parameters": 200})) for e in entries]
    larger = [
        replace(e, config=e.config.model_copy(update={"model": e.config.model.model_copy(update={"latent_dim": 8})}))
        for e in larger
    ]
    larger[0].cell.figures["elbos"] = dict.fromkeys(ELBOS, -1.0)
    larger[1].cell.figures["elbos"] = dict.fromkeys(ELBOS, -1.0)
    assert "grows in 1 of 1 steps" in claims.joint_elbos(entries + larger).because


def test_runs_of_other_recipes_are_not_compared(entry):
    entries = [entry("biglearn_u", elbo=-4), entry("vae", elbo=-5, settings=["train.batch_size=32"])]
    assert claims.joint_elbos(entries).verdict == NOT_RUN
    same = [entry("biglearn_u"), entry("vae", settings=["engine.name=deepspeed", "run_dir=elsewhere"])]
    assert len(claims.comparisons(same)) == 1


def test_the_probe_must_reach_60_percent_in_every_run(entry):
    assert claims.probes([entry(accuracy=0.61), entry(seed=1, accuracy=0.7)]).verdict == HOLDS
    assert claims.probes([entry(accuracy=0.59), entry(seed=1, accuracy=0.7)]).verdict == LEVEL
    assert claims.probes([entry(accuracy=0.59)]).verdict == FAILS
    assert claims.probes([entry("vae")]).verdict == NOT_RUN


def test_in_painting_is_set_beside_the_better_chain(entry):
    claim = claims.chains([entry(error=0.01), entry("vae", error=0.02)])
    assert claim.verdict == HOLDS
    assert "better in 4 of 4" in claim.because
    assert "1.6% to 1.6%" in claim.because  # 16 ms beside the second that 100 steps take
    assert claims.chains([entry(error=0.03), entry("vae", error=0.02)]).verdict == FAILS


def test_modes_are_compared_at_equal_images_and_at_equal_time(entry):
    """dense is the better one by images, but takes twice as long: half of its images are all that it gets."""
    both = [entry("biglearn_u", elbo=-4), entry("vae")]
    slow = [entry("biglearn_u", mode="dense", elbo=-3, error=0.015, rate=2.0)]
    claim = claims.modes(both + slow)
    images, time = claim.rows
    assert images[4:] == ["-4.00 / -3.00", "0.0200 / 0.0150", "0.0200 / 0.0150"]
    assert time[4:] == ["-4.00 / -6.00", "0.0200 / 0.0300", "0.0200 / 0.0300"]
    assert claim.because.startswith("at equal images 0 of 3 figures better, 3 worse; at equal time 3 of 3")
    assert claim.verdict == PARTLY
    between = claims._at(slow[0].cell.figures["curve"], "joint_elbo", 9.0)
    assert between == pytest.approx(-4.5)
    assert claims.costs(both + slow).verdict == HOLDS
    assert "takes 2.00 times" in claims.costs(both + slow).because


def test_choices_are_told_by_what_differs(entry):
    claim = claims.choices([entry(), entry(settings=["objective.connected_share=0.5"]), entry("vae")])
    assert [row[1] for row in claim.rows] == ["as shipped, β 0.01", "objective.connected_share 0.5"]
    assert claims.choices([entry()]).verdict == NOT_RUN


def test_the_page_says_what_the_cells_say(tmp_path, tiny, root):
    values = {"method": ["biglearn_u", "vae", "biglearn_t"], "model.mask_tokens": ["query_only", "dense"]}
    values["seed"] = [0, 1, 2]
    grid = write_grid(tmp_path, tiny.path, configs=["one.yaml"], values=values)
    work, docs = Work.of(grid, tmp_path / "cells", []), tmp_path / "docs"
    page.write([work], docs)
    assert "No cell has been made yet" in (docs / page.PAGE).read_text()
    assert not [*docs.glob("*.png")]
    for config in work.configs[:-1]:
        write_cell(path_of(work.cells, config), made(config, figures=figures(config.method)))
    last = work.configs[-1]
    assert page.faults([work], docs)
    write_cell(path_of(work.cells, last), made(last, failed="5 steps in a row are not finite", figures={}))
    page.write([work], docs)
    text = (docs / page.PAGE).read_text()
    assert f"Failed, {path_of(work.cells, last).stem}: 5 steps" in text
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
