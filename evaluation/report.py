"""Reports of evaluation/assessment.py as one self-contained HTML page: tables and plots, of one run or of several."""

import base64
import html
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from data.errors import UserError, printable
from data.order.holdout import HOLDOUT
from evaluation.assessment import FORMAT
from model.masks import STANDARD_MASKS

Reports = dict[str, dict]  # by the name of the run
_PARTS = {"method", "mask_tokens", "source", "parameters", "images", "extent", "elbos", "bounds", "gaussian", "latent"}
_PARTS |= {"filling", "inpainting", "probe"}

_SCORES = {"error": "squared error a pixel", "psnr": "PSNR, dB", "ssim": "SSIM"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: right }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd } th:first-child, td:first-child
{ text-align: left } img { max-width: 100% } p { max-width: 48rem } .best { font-weight: 600 }
"""


def read_report(path: Path) -> dict:
    """A report that was written as JSON. UserError when it is not there or of another version."""
    try:
        report = json.loads(path.read_bytes())
    except OSError as error:
        split = " --split holdout" if path.stem.endswith(HOLDOUT) else ""
        remedy = f"make it with `python launch/evaluate.py --run {shlex.quote(str(path.parent.parent))}{split}`"
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("format") != FORMAT or not report.keys() >= _PARTS:
        raise UserError(f"{path} is no evaluation of this version: make it again with launch/evaluate.py")
    return report


def page(title: str, reports: Reports, pictures: dict[str, bytes]) -> str:
    """The HTML page. pictures: further PNG files by caption."""
    parts = [f"<h1>{html.escape(title)}</h1>", _facts(reports), "<h2>Evidence</h2>", _elbos(reports)]
    parts += [_image(plot(reports), caption) for caption, plot in _plots(reports).items()]
    parts += ["<h2>In-painting: four standard masks</h2>", _filling_text(reports), _filling_table(reports)]
    if any(report["inpainting"] for report in reports.values()):
        parts += ["<h2>In-painting: four kinds of masks</h2>", _inpainting_text(reports), _inpainting_table(reports)]
    for caption, content in pictures.items():
        source = base64.b64encode(content).decode()
        parts += [f"<h2>{html.escape(caption)}</h2>", f'<img alt="" src="data:image/png;base64,{source}">']
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def words(reports: Reports) -> str:
    """The main figures as lines of two tables, for the terminal: evidence, and the errors of the standard masks."""
    columns = list(reports)
    lines = [["", *columns]]
    for name, text in ELBOS.items():
        lines.append([text, *(f"{report['elbos'][name]:.4g}" for report in reports.values())])
    for of, samples in _bound_keys(reports):
        lines.append([f"{of} >= (k = {samples})", *(_bound_text(r, of, samples) for r in reports.values())])
    lines += _gaussian_rows(reports)
    active = [f"{r['latent']['active_units']} of {r['latent']['dimensions']}" for r in reports.values()]
    lines.append(["active latent units", *active])
    fillings = [["error of in-painting", *STANDARD_MASKS]]
    for label, (rows, _) in _ways(reports, "filling").items():
        fillings.append([label, *(f"{row['error']:.4f}" for row in rows)])
    return f"{_aligned(lines)}\n\n{_aligned(fillings)}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _split(reports: Reports) -> str:
    """What the images of the reports are, in words."""
    return "held-out" if next(iter(reports.values()))["extent"].get("split") == HOLDOUT else "test"


ELBOS = {
    "biglearn_elbo": "BigLearnELBO",
    "joint_elbo": "JointELBO, own prior",
    "joint_elbo_standard_prior": "JointELBO, prior N(0, I)",
    "biglearn_elbo_at_0.01": "BigLearnELBO with β = 0.01",
    "joint_elbo_at_0.01": "JointELBO with β = 0.01, own prior",
}


def _facts(reports: Reports) -> str:
    rows = [
        [name, r["method"], r["mask_tokens"], r["source"], f"{r['parameters']:,}", f"{r['images']:,}"]
        for name, r in reports.items()
    ]
    return _table(["run", "method", "mask tokens", "data set", "parameters", "training images"], rows)


def _elbos(reports: Reports) -> str:
    rows = [[text, *(f"{r['elbos'][name]:.4g}" for r in reports.values())] for name, text in ELBOS.items()]
    for of, samples in _bound_keys(reports):
        rows.append([f"{of} ≥ (k = {samples})", *(_bound_text(r, of, samples) for r in reports.values())])
    rows += _gaussian_rows(reports)
    rows.append(["active latent units", *(f"{r['latent']['active_units']}" for r in reports.values())])
    text = (
        f"The ELBOs are the paper's objective (variance 1, no constants) on the {_split(reports)} images, with the β "
        "that the model was trained with, and with β = 0.01, by which models of different β compare. The bounds of "
        "log-likelihoods are importance-weighted with k draws of z, with variance β and all constants, in nats an "
        "image (± standard error). All are densities of what the model learns: pixels, or the codes of a first stage. "
        "A vae was trained on none of the tasks of BigLearnELBO but the joint one. Beside them stands what needs no "
        "network: the exact log p(x) of one Gaussian with the covariance of training images, and the JointELBO of "
        "probabilistic PCA, a linear decoder of as many latent dimensions with noise β and exact inference."
    )
    return f"<p>{text}</p>" + _table(["", *reports], rows)


def _bound_keys(reports: Reports) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["of"], row["samples"]) for r in reports.values() for row in r["bounds"]))


def _bound_text(report: dict, of: str, samples: int) -> str:
    found = [row for row in report["bounds"] if (row["of"], row["samples"]) == (of, samples)]
    return _with_error(found[0]["mean"], found[0]["standard_error"], "{:.1f}") if found else "—"


def _gaussian_rows(reports: Reports) -> list[list[str]]:
    """What the Gaussian reaches, of the models for which it is defined."""
    elbos, densities = ([r["gaussian"][name] for r in reports.values()] for name in ("joint_elbo", "log_density"))
    if not any(elbos):
        return []
    return [
        ["JointELBO of probabilistic PCA", *(f"{found['mean']:.4g}" if found else "—" for found in elbos)],
        [
            "log p(x) of the Gaussian",
            *(_with_error(found["mean"], found["standard_error"], "{:.1f}") if found else "—" for found in densities),
        ],
    ]


def _with_error(value: float, standard_error: float | None, form: str) -> str:
    return form.format(value) + (f" ± {form.format(standard_error)}" if standard_error is not None else "")


def _plots(reports: Reports) -> dict[str, Callable[[Reports], Figure]]:
    plots: dict[str, Callable[[Reports], Figure]] = {}
    if len(reports) > 1:
        plots[f"{_split(reports).capitalize()} JointELBO of the runs (as Fig. 2 of the paper)"] = joint_elbos
    if any(report["inpainting"] for report in reports.values()):
        caption = "The missing part against the share of patches that are known, for four kinds of masks"
        plots[caption] = inpainting_curves
    if any(report["probe"] for report in reports.values()):
        plots[f"Accuracy of linear probes on {_split(reports)} images (as Fig. 4 of the paper)"] = probe_curves
    return plots


def joint_elbos(reports: Reports) -> Figure:
    """Bars of the JointELBO (Fig. 2)."""
    figure = Figure(figsize=(1.5 + 1.2 * len(reports), 4), layout="constrained")
    axes = figure.add_subplot()
    values = [report["elbos"]["joint_elbo"] for report in reports.values()]
    bars = axes.bar(range(len(values)), values, 0.6, tick_label=list(reports))
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.margins(y=0.15)
    axes.tick_params("x", rotation=20)
    axes.set_ylabel(f"{_split(reports)} JointELBO, own prior")
    return figure


def inpainting_curves(reports: Reports) -> Figure:
    """A plot for each score and kind of masks; what needs no model is shown once, dashed."""
    curves = _ways(reports, "inpainting")
    kinds = list(dict.fromkeys(row["mask"] for report in reports.values() for row in report["inpainting"]))
    figure = Figure(figsize=(3.2 * len(kinds), 8.5), layout="constrained")
    grid = figure.subplots(len(_SCORES), len(kinds), sharex=True, sharey="row", squeeze=False)
    for axes_K, (score, text) in zip(grid, _SCORES.items(), strict=True):
        axes_K[0].set_ylabel(text)
        for axes, kind in zip(axes_K, kinds, strict=True):
            for number, (label, (rows, is_model)) in enumerate(curves.items()):
                points = [(row["s_ratio"], row[score]) for row in rows if row["mask"] == kind]
                axes.plot(
                    *zip(*points, strict=True), "o-" if is_model else "s--", ms=4, label=label, color=f"C{number}"
                )
            axes.grid(alpha=0.3)
    for axes, kind in zip(grid[0], kinds, strict=True):
        axes.set_title(f"{kind} masks")
    for axes in grid[-1]:
        axes.set_xlabel("S-ratio")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


_WITHOUT_MODEL = ("Gaussian", "mean image", "nearest neighbour")


def _ways(reports: Reports, part: str) -> dict[str, tuple[list[dict], bool]]:
    """Rows of a part of the reports by label, those of models first, and whether they are of a model."""
    ways: dict[str, tuple[list[dict], bool]] = {}
    for of_model in (True, False):
        for name, report in reports.items():
            for row in report[part]:
                if (row["way"] not in _WITHOUT_MODEL) is not of_model:
                    continue
                label = row["way"]
                if of_model and len(reports) > 1:
                    label = f"{name}: {label}"
                elif not of_model and any(other["source"] != report["source"] for other in reports.values()):
                    label = f"{report['source']}: {label}"
                rows, _ = ways.setdefault(label, ([], of_model))
                if all((row["mask"], row.get("s_ratio")) != (other["mask"], other.get("s_ratio")) for other in rows):
                    rows.append(row)
    return ways


def probe_curves(reports: Reports) -> Figure:
    """Accuracy against the S-ratio (Fig. 4); what needs no model is shown once, dashed."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    curves: dict[str, tuple[dict[float, float], bool]] = {}
    for name, report in reports.items():
        for row in sorted(report["probe"], key=lambda row: not row["of_model"]):
            several = row["of_model"] and len(reports) > 1
            points, _ = curves.setdefault(
                f"{name}: {row['features']}" if several else row["features"], ({}, row["of_model"])
            )
            points[row["s_ratio"]] = row["accuracy"]
    for label, (points, is_model) in sorted(curves.items(), key=lambda curve: not curve[1][1]):
        axes.plot(points.keys(), points.values(), "o-" if is_model else "s--", ms=4, label=label)
    axes.set_xlabel("S-ratio")
    axes.set_ylabel("accuracy of a linear probe")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _filling_text(reports: Reports) -> str:
    report = next(iter(reports.values()))
    fitted, images = report["gaussian"], report["filling"][0]["images"]
    return (
        f"<p>Mean squared error a pixel of the missing part of {images:,} {_split(reports)} images (± standard error). "
        "Seen is a random half of the patches, a random fifth, all but the middle half of the rows and columns, the "
        "upper half. "
        "The mean of many draws is the conditional mean that a model believes in, which compares with that of the "
        f"Gaussian, in closed form: of {fitted['images']:,} training images, with {fitted['components']:,} components "
        f"and a noise of {fitted['noise']:g}, which is best for training images that the fit left out.</p>"
    )


def _filling_table(reports: Reports) -> str:
    return _table(
        ["way", *STANDARD_MASKS],
        [
            [label, *(_with_error(row["error"], row["standard_error"], "{:.4f}") for row in rows)]
            for label, (rows, _) in _ways(reports, "filling").items()
        ],
    )


def _inpainting_text(reports: Reports) -> str:
    images = next(report["inpainting"][0]["images"] for report in reports.values() if report["inpainting"])
    return (
        f"<p>The missing part of {images:,} {_split(reports)} images, half of whose patches are known: squared error a "
        "pixel, PSNR (dB), SSIM, and diversity (root of the mean variance over the draws). A drawn completion errs by "
        "its own variance on top of that of the best guess, so the mean of z gives the smaller error.</p>"
    )


def _inpainting_table(reports: Reports) -> str:
    rows = []
    for label, (of_way, _) in _ways(reports, "inpainting").items():
        for row in of_way:
            if row["s_ratio"] == 0.5:
                scores = [f"{row['error']:.4f}", f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['diversity']:.3f}"]
                rows.append([label, row["mask"], *scores])
    return _table(["way", "masks", "error", "PSNR", "SSIM", "diversity"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(printable(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _image(figure: Figure, caption: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    source = base64.b64encode(content.getvalue()).decode()
    return f'<h2>{html.escape(caption)}</h2><img alt="" src="data:image/svg+xml;base64,{source}">'
