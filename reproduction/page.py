"""docs/reproduction.md: the page that is written from the cells, its pictures, and whether they agree with them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from data.files import make_folder, write_aside
from model.masks import STANDARD_MASKS
from reproduction.cell import RECIPE_VERSION, name_of
from reproduction.claims import METHODS, MODES, Claim, Entry, claims, comparisons, of_mode
from reproduction.drawing import FIGURES, drawn_from, picture
from reproduction.work import Work

PAGE = "reproduction.md"
_PICTURE_OF = {"a": "reproduction-figure-2.png", "b": "reproduction-figure-4.png", "c": "reproduction-figure-13.png"}


def entries_of(works: Sequence[Work]) -> tuple[list[Entry], list[str]]:
    """The cells, and lines about those that are absent, with the command for them."""
    entries, rest = [], []
    for work in works:
        found = work.found()
        configs = {name_of(config): config for config in work.configs}
        entries += [Entry(configs[name], cell) for name, cell in found.items()]
        if absent := len(configs) - len(found):
            command = f"`python launch/reproduce.py --grid configs/reproduction/{work.path.name}`"
            rest.append(f"- {command}: {absent} of {len(configs)} cells are absent.")
    return entries, rest


def write(works: Sequence[Work], docs: Path) -> list[Path]:
    """Write the page and those pictures that have something to show; what was written."""
    entries, rest = entries_of(works)
    files = {docs / PAGE: text(entries, rest).encode()}
    for name, draw in FIGURES.items():
        if figure := draw(_whole(entries)):
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
    if not page.is_file() or page.read_bytes() != text(entries, rest).encode():
        found.append(f"{page} is not what the cells say")
    for name, draw in FIGURES.items():
        origin = drawn_from((docs / name).read_bytes()) if (docs / name).is_file() else None
        if origin != (_origin(entries) if draw(_whole(entries)) else None):
            found.append(f"{docs / name} is not drawn from the cells that there are")
    return found


def _whole(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if not entry.cell.failed]


def _origin(entries: Sequence[Entry]) -> str:
    """The checksum of all figures."""
    return hashlib.sha256("".join(e.cell.model_dump_json() for e in entries).encode()).hexdigest()


def text(entries: Sequence[Entry], rest: Sequence[str]) -> str:
    """The page, Markdown."""
    found, whole = claims(entries), _whole(entries)
    lines = [
        "# The paper's claims, as far as they were reproduced",
        "",
        "Written by `python launch/reproduce.py --page` from the cells in `docs/reproduction/`, of recipe version"
        f" {RECIPE_VERSION}; `python launch/reproduce.py --check` says whether they agree. A cell is one run: its"
        " training and what it measured. Runs are compared that differ in method, mode of mask tokens and seed alone."
        " Values are means over seeds, with the smallest and the largest in brackets. *holds*: in every comparison and"
        " every seed, where less than 1% of the value counts as none; *holds in part*: in some.",
        "",
        *_table(("", "claim", "verdict", ""), [_verdict(claim) for claim in found]),
        *_extent(whole),
    ]
    for claim in found:
        lines += _section(claim)
    lines += _evidence(whole) + _fillings(whole) + _sharpness(whole)
    failed = [f"- {entry.cell.name}: {entry.cell.failed}" for entry in entries if entry.cell.failed]
    lines += ["## What failed", "", *failed, ""] if failed else []
    lines += ["## What has not been run", "", *rest] if rest else []
    return "\n".join(lines).rstrip() + "\n"


def _verdict(claim: Claim) -> tuple[str, ...]:
    return claim.letter, claim.paper, f"**{claim.verdict}**", claim.because if claim.rows else ""


def _extent(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return ["There are no figures yet.", ""]
    hardware = ", ".join(sorted({f"{e.cell.hardware} ({e.cell.ways['precision']})" for e in entries}))
    extents = [e.cell.figures["extent"] for e in entries]
    elbos, bounds = (", ".join(sorted({str(x[n] or "all") for x in extents})) for n in ("images", "bound_images"))
    hours = sum(sum(e.cell.seconds.values()) for e in entries) / 3600
    return [
        f"{len(entries)} runs, {hours:.1f} hours on {hardware}. ELBOs are of {elbos} test images, bounds of {bounds},"
        " with 64 importance weights. Times are of machines that may have had other work beside them.",
        "",
    ]


def _section(claim: Claim) -> list[str]:
    if not claim.rows:
        return []
    lines = [f"## ({claim.letter}) {claim.paper}", "", f"**{claim.verdict}**: {claim.because}.", ""]
    if claim.letter in _PICTURE_OF:
        lines += [f"![As the figure of the paper]({_PICTURE_OF[claim.letter]})", ""]
    return lines + _table(claim.head, claim.rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    head_line, *others = [f"| {' | '.join(line)} |" for line in lines]
    return [head_line, "|---" * len(head) + "|", *others, ""]


_WHO = ("", "mode", "method", "seed")


def _runs(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The comparisons, each in the order in which its runs are shown."""
    return [
        sorted(group, key=lambda e: (MODES.index(e.cell.mask_tokens), METHODS.index(e.cell.method), e.cell.seed))
        for group in comparisons(entries)
    ]


def _who(entry: Entry) -> list[str]:
    return [entry.title, entry.cell.mask_tokens, entry.cell.method, str(entry.cell.seed)]


def _evidence(entries: Sequence[Entry]) -> list[str]:
    """ELBOs, bounds and active units of every run of a comparison."""
    tasks, rows = ("log p(x)", *(f"log p(x_T | x_S), {mask}" for mask in STANDARD_MASKS)), []
    for entry in (entry for group in _runs(entries) for entry in group):
        bounds = {row["of"]: row["mean"] for row in entry.cell.figures["bounds"] if row["samples"] > 1}
        elbos = [f"{entry.elbo(name):.2f}" for name in ("joint_elbo", "joint_elbo_standard_prior", "biglearn_elbo")]
        shown = [f"{bounds[task]:.0f}" if task in bounds else "–" for task in tasks]
        rows.append([*_who(entry), *elbos, *shown, str(entry.cell.figures["latent"]["active_units"])])
    if not rows:
        return []
    head = (*_WHO, "JointELBO", "with N(0, I)", "BigLearnELBO", "log p(x) ≥", *(f"{m} ≥" for m in STANDARD_MASKS))
    return [
        "## Evidence of every run",
        "",
        "Nats an image, of pixels or of standardised codes. The joint VAE never saw the tasks of the BigLearnELBO."
        " Bounds have a variance of β for each value and all constants ([mathematics.md](mathematics.md)).",
        "",
        *_table((*head, "active units"), rows),
    ]


def _fillings(entries: Sequence[Entry]) -> list[str]:
    """In-painting of every run of a comparison, and what needs no network."""
    rows = []
    for group in _runs(entries):
        most = max(group, key=lambda entry: entry.cell.figures["filling"][0]["images"])
        ways = ("Gaussian", "nearest neighbour", "mean image")
        found = [([most.title, "", way, ""], [_row(most, mask, way) for mask in STANDARD_MASKS]) for way in ways]
        found += [(_who(entry), [entry.filling(mask) for mask in STANDARD_MASKS]) for entry in group]
        for who, of_masks in found:
            if all(of_masks):
                rows.append([*who, str(of_masks[0]["images"]), *(f"{row['error']:.4f}" for row in of_masks)])
    if not rows:
        return []
    return [
        "## In-painting of every run",
        "",
        "Squared error a pixel of what is missing, mean of 16 draws; of the joint VAE, of 4 states of pseudo-Gibbs.",
        "",
        *_table((*_WHO, "images", *STANDARD_MASKS), rows),
    ]


def _row(entry: Entry, mask: str, way: str) -> dict | None:
    rows = entry.cell.figures["filling"]
    return next((row for row in rows if (row["mask"], row["way"]) == (mask, way)), None)


_JUDGED = ("in-painting, drawn z", "in-painting, mean z", "pseudo-Gibbs", "Gaussian", "nearest neighbour")


def _sharpness(entries: Sequence[Entry]) -> list[str]:
    """What the classifier makes of fillings and samples, of the first run of each method."""
    rows = []
    for group in comparisons(entries):
        for of_seed in of_mode(group, "query_only").values():
            entry = next(iter(of_seed.values()), None)
            by = {(row["of"], row["way"]): row for row in entry.cell.figures["sharpness"]} if entry else {}
            if not by:
                continue
            images, real = by["samples", ""]["images"], by["test images", ""]["accuracy"]
            who = [entry.title, entry.cell.method, str(images), f"{real:.3f}"]
            rows.append([*who, "samples", f"{by['samples', '']['frechet']:.1f}", *"–" * len(STANDARD_MASKS)])
            for way in (way for way in _JUDGED if ("half seen", way) in by):
                of_masks = [by[mask, way] for mask in STANDARD_MASKS]
                rows.append([*who, way, "", *(f"{row['accuracy']:.3f} / {row['frechet']:.1f}" for row in of_masks)])
    if not rows:
        return []
    head = ("", "method", "images", "accuracy, originals", "way", "distance", *STANDARD_MASKS)
    return [
        "## How sharp fillings and samples are",
        "",
        "What a small classifier, trained on the same data, makes of them: the share of filled images whose class it"
        " sees, and the Fréchet distance between its features of them and of the test images. A mean of many fillings"
        " has the smaller error and is blurred, which costs here. Distances of other numbers of images do not compare.",
        "",
        *_table(head, rows),
    ]
