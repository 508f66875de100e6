"""docs/reproduction.md: the page that is written from the cells, its pictures, and whether they agree with them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.files import make_folder, write_aside
from model.masks import STANDARD_MASKS
from reproduction.cell import RECIPE_VERSION, name_of
from reproduction.claims import METHODS, NOT_RUN, Claim, Entry, claims, comparisons, of_mode
from reproduction.drawing import FIGURES, drawn_from, picture
from reproduction.work import Work

PAGE = "reproduction.md"
_PICTURE_OF = {"a": "reproduction-figure-2.png", "b": "reproduction-figure-4.png", "c": "reproduction-figure-13.png"}


def entries_of(works: Sequence[Work]) -> tuple[list[Entry], list[str]]:
    """The runs that have figures; and lines about the others: what is absent, with its command, and what failed."""
    entries, rest = [], []
    for work in works:
        found = work.found()
        configs = {name_of(config): config for config in work.configs}
        entries += [Entry(configs[name], cell) for name, cell in found.items() if not cell.failed]
        if absent := len(configs) - len(found):
            command = f"`python launch/reproduce.py --grid configs/reproduction/{work.path.name}`"
            rest.append(f"- {command}: {absent} of {len(configs)} cells are absent.")
        rest += [f"- Failed, {name}: {cell.failed}" for name, cell in found.items() if cell.failed]
    return entries, rest


def write(works: Sequence[Work], docs: Path) -> list[Path]:
    """Write the page and those pictures that have something to show; what was written."""
    entries, rest = entries_of(works)
    files = {docs / PAGE: text(entries, rest).encode()}
    for name, draw in FIGURES.items():
        if figure := draw(entries):
            files[docs / name] = picture(figure, _origin(entries))
    try:
        make_folder(docs)
        for path, content in files.items():
            write_aside(path, content)
    except OSError as error:
        raise UserError(f"{error.filename or docs} cannot be written ({error.strerror})") from None
    return [*files]


def faults(works: Sequence[Work], docs: Path) -> list[str]:
    """What of the page and its pictures is not as the cells have it."""
    entries, rest = entries_of(works)
    page, found = docs / PAGE, []
    if not page.exists() or page.read_text() != text(entries, rest):
        found.append(f"{page} is not what the cells say")
    for name, draw in FIGURES.items():
        is_drawn = (docs / name).exists()
        if draw(entries) and (not is_drawn or drawn_from((docs / name).read_bytes()) != _origin(entries)):
            found.append(f"{docs / name} is not drawn from the cells that there are")
    return found


def _origin(entries: Sequence[Entry]) -> str:
    """The checksum of all figures."""
    return hashlib.sha256("".join(e.cell.model_dump_json() for e in entries).encode()).hexdigest()


def text(entries: Sequence[Entry], rest: Sequence[str]) -> str:
    """The page, Markdown."""
    found = claims(entries)
    lines = [
        "# The paper's claims, as far as they were reproduced",
        "",
        "Written by `python launch/reproduce.py --page` from the cells in `docs/reproduction/`, of recipe version"
        f" {RECIPE_VERSION}; `python launch/reproduce.py --check` says whether they agree. A cell is one run: its"
        " training, with the recipe, the images and the batch of all that it is compared with, and what it measured."
        " Means are over seeds, with the smallest and the largest. *holds*: in every seed, by more than 1%; *level*: by"
        " less, or in some seeds alone.",
        "",
        *_table(("", "claim", "verdict", ""), [(c.letter, c.paper, f"**{c.verdict}**", c.because) for c in found]),
        *_extent(entries),
    ]
    for claim in found:
        lines += _section(claim)
    lines += _objectives(entries) + _sharpness(entries)
    lines += ["## What has not been run", "", *rest] if rest else []
    return "\n".join(lines).rstrip() + "\n"


def _extent(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return ["No cell has been made yet.", ""]
    hardware = ", ".join(sorted({f"{e.cell.hardware} ({e.cell.ways['precision']})" for e in entries}))
    extents = [e.cell.figures["extent"] for e in entries]
    looked = sorted({x["images"] or "all" for x in extents}, key=str), sorted({x["bound_images"] for x in extents})
    hours = sum(sum(e.cell.seconds.values()) for e in entries) / 3600
    return [
        f"{len(entries)} runs, {hours:.1f} hours on {hardware}. ELBOs are of {', '.join(map(str, looked[0]))} test"
        f" images, bounds of {', '.join(map(str, looked[1]))} with 64 importance weights, fillings of 1,000 where the"
        " model fills by itself and of fewer where a chain must, as each cell says.",
        "",
    ]


def _section(claim: Claim) -> list[str]:
    if claim.verdict == NOT_RUN:
        return []
    lines = [f"## ({claim.letter}) {claim.paper}", "", f"**{claim.verdict}**: {claim.because}.", ""]
    if claim.letter in _PICTURE_OF:
        lines += [f"![Figure]({_PICTURE_OF[claim.letter]})", ""]
    return lines + _table(claim.head, claim.rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    head_line, *others = [f"| {' | '.join(line)} |" for line in lines]
    return [head_line, "|---" * len(head) + "|", *others, ""]


def _objectives(entries: Sequence[Entry]) -> list[str]:
    """ELBOs, bounds, in-painting and active units of every run of a comparison."""
    elbos, fillings = [], []
    for group in comparisons(entries):
        for entry in sorted(group, key=lambda e: (e.cell.mask_tokens, METHODS.index(e.cell.method), e.cell.seed)):
            cell, bounds = entry.cell, {row["of"]: row for row in entry.cell.figures["bounds"] if row["samples"] > 1}
            who = [entry.title, cell.mask_tokens, cell.method, str(cell.seed)]
            names = ("joint_elbo", "joint_elbo_standard_prior", "biglearn_elbo")
            shown = [f"{entry.figure(name):.2f}" for name in names]
            of = ("log p(x)", *(f"log p(x_T | x_S), {mask}" for mask in STANDARD_MASKS))
            shown += [f"{bounds[name]['mean']:.0f}" if name in bounds else "–" for name in of]
            elbos.append([*who, *shown, str(entry.figure("active_units"))])
        for entry in group[:1]:
            for way in ("Gaussian", "nearest neighbour", "mean image"):
                fillings.append([entry.title, "", way, "", *(_error(entry, mask, way) for mask in STANDARD_MASKS)])
        for entry in sorted(group, key=lambda e: (e.cell.mask_tokens, METHODS.index(e.cell.method), e.cell.seed)):
            cell = entry.cell
            errors = [entry.error(mask) for mask in STANDARD_MASKS]
            shown = [f"{error:.4f}" if error is not None else "–" for error in errors]
            fillings.append([entry.title, cell.mask_tokens, cell.method, str(cell.seed), *shown])
    if not elbos:
        return []
    who = ("", "mode", "method", "seed")
    head = (*who, "JointELBO", "with N(0, I)", "BigLearnELBO", "log p(x) ≥", *(f"{m} ≥" for m in STANDARD_MASKS))
    return [
        "## Evidence of every run",
        "",
        "Nats an image. The joint VAE never saw the tasks of the BigLearnELBO. Bounds have a variance of β for a value"
        " and all constants (docs/mathematics.md).",
        "",
        *_table((*head, "active units"), elbos),
        "## In-painting of every run",
        "",
        "Squared error a pixel of what is missing, mean of 16 draws; of the joint VAE, of 4 states of pseudo-Gibbs.",
        "",
        *_table((*who, *STANDARD_MASKS), fillings),
    ]


def _error(entry: Entry, mask: str, way: str) -> str:
    rows = entry.cell.figures["filling"]
    return next((f"{row['error']:.4f}" for row in rows if (row["mask"], row["way"]) == (mask, way)), "–")


_JUDGED = ("in-painting, drawn z", "in-painting, mean z", "pseudo-Gibbs", "Gaussian", "nearest neighbour")


def _sharpness(entries: Sequence[Entry]) -> list[str]:
    rows = []
    for group in comparisons(entries):
        for method in reversed(METHODS):
            of_seed = of_mode(group, "query_only").get(method, {})
            for entry in [of_seed[seed] for seed in sorted(of_seed)][:1]:
                found = entry.cell.figures.get("sharpness", [])
                by = {(row["of"], row["way"]): row for row in found}
                if not by:
                    continue
                samples = by["samples", ""]
                rows.append([entry.title, method, "samples", f"{samples['frechet']:.1f}", *"–" * len(STANDARD_MASKS)])
                baselines = method == "biglearn_u"
                for way in _JUDGED if baselines else _JUDGED[:3]:
                    if ("half seen", way) in by:
                        cells = [by[mask, way] for mask in STANDARD_MASKS]
                        shown = [f"{row['accuracy']:.3f} / {row['frechet']:.1f}" for row in cells]
                        rows.append([entry.title, method, way, "", *shown])
                if baselines:
                    accuracy = by["test images", ""]["accuracy"]
                    rows.append([entry.title, "", "test images", "", f"{accuracy:.3f}", *"–" * 3])
    if not rows:
        return []
    return [
        "## How sharp fillings and samples are",
        "",
        "Share of filled images whose class a small classifier sees, and the Fréchet distance of its features to those"
        " of the test images, whose own accuracy stands in the last row of each; the distance of samples stands in a"
        " column of its own. A mean of many fillings has the smaller error and is blurred: it scores worse here.",
        "",
        *_table(("", "method", "", "samples", *STANDARD_MASKS), rows),
    ]
