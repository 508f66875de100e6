"""What the paper claims, and what the cells say of it: a verdict over seeds for each, with the figures behind it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evaluation.chains import CHAINS
from model.masks import STANDARD_MASKS
from reproduction.cell import Cell
from trainer.config import Config

METHODS = ("vae", "biglearn_t", "biglearn_u")
HOLDS, FAILS, LEVEL, PARTLY, NOT_RUN = "holds", "does not hold", "level", "holds in part", "not run"
_ALIKE = 0.01  # differences of less than this share of the value count as none
_CHANGED = ("method", "seed", "model.mask_tokens", "run_dir", "engine.", "checkpoint.", "evaluate.", "metrics.")


@dataclass(frozen=True)
class Entry:
    """A run of a grid and its cell, which has figures."""

    config: Config
    cell: Cell

    @property
    def recipe(self) -> tuple:
        """What the methods, modes and seeds of one comparison have in common."""
        flat = self.config.flat().items()
        return tuple(sorted((key, str(value)) for key, value in flat if not key.startswith(_CHANGED)))

    @property
    def title(self) -> str:
        """As "mnist, d 128, 122,880 images"."""
        return f"{self.cell.source}, d {self.cell.size[1]}, z {self.cell.size[2]}, {self.cell.images:,} images"

    def figure(self, name: str) -> float:
        """An ELBO, in nats, or the number of active units."""
        return self.cell.figures["latent" if name == "active_units" else "elbos"][name]

    def error(self, mask: str) -> float | None:
        """The error a pixel of the mean over draws, which of a joint VAE is that of pseudo-Gibbs."""
        rows = self.cell.figures["filling"]
        return next((row["error"] for row in rows if row["mask"] == mask and ", mean of " in row["way"]), None)


@dataclass(frozen=True)
class Claim:
    """paper: what it says. verdict: HOLDS and so on. because: in a sentence. rows: of a table."""

    letter: str
    paper: str
    verdict: str
    because: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())


def claims(entries: Sequence[Entry]) -> list[Claim]:
    """Of all runs that have figures."""
    return [claim(entries) for claim in (joint_elbos, probes, costs, chains, modes, choices)]


def comparisons(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Those that differ in method, mode and seed alone, the larger models behind the smaller ones."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.recipe, []).append(entry)
    several = [group for group in groups.values() if len({entry.cell.method for entry in group}) > 1]
    return sorted(several, key=lambda group: (group[0].cell.source, group[0].cell.parameters, group[0].cell.images))


def of_mode(group: Sequence[Entry], mode: str) -> dict[str, dict[int, Entry]]:
    """By method and seed."""
    found: dict[str, dict[int, Entry]] = {}
    for entry in group:
        if entry.cell.mask_tokens == mode:
            found.setdefault(entry.cell.method, {})[entry.cell.seed] = entry
    return found


def paired(one: dict[int, Entry], other: dict[int, Entry], measure: Callable[[Entry], float]) -> list[float]:
    """one - other in each seed that both have."""
    return [measure(one[seed]) - measure(other[seed]) for seed in sorted(one.keys() & other.keys())]


def judged(differences: Sequence[float], size: float) -> str:
    """Whether all are above 0, or below it, by more than a share of `size`."""
    if not differences:
        return NOT_RUN
    if all(difference > _ALIKE * abs(size) for difference in differences):
        return HOLDS
    return FAILS if all(difference < -_ALIKE * abs(size) for difference in differences) else LEVEL


def together(verdicts: Sequence[str]) -> str:
    """Of several parts of one claim."""
    ran = {verdict for verdict in verdicts if verdict != NOT_RUN}
    return ran.pop() if len(ran) == 1 else PARTLY if ran else NOT_RUN


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and with several values the smallest and the largest."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else mean


def joint_elbos(entries: Sequence[Entry]) -> Claim:
    """Fig. 2."""
    paper = (
        "The test JointELBO of U is at least that of T and of the joint VAE, and the gap grows with the model (Fig. 2)."
    )
    rows, verdicts, gaps = [], [], {}
    for group in comparisons(entries):
        for mode in ("query_only", "dense"):
            by_method = of_mode(group, mode)
            if len(by_method) < 2:
                continue
            of = {m: [e.figure("joint_elbo") for e in by_method.get(m, {}).values()] for m in METHODS}
            pairs = (("biglearn_u", "biglearn_t"), ("biglearn_u", "vae"), ("biglearn_t", "vae"))
            found = [
                paired(by_method.get(a, {}), by_method.get(b, {}), lambda e: e.figure("joint_elbo")) for a, b in pairs
            ]
            size = statistics.mean(next(values for values in of.values() if values))
            judgements = [judged(differences, size) for differences in found]
            verdicts += judgements[:2]
            if found[1]:
                gaps[group[0].cell.source, mode, group[0].cell.parameters] = statistics.mean(found[1])
            rows.append(
                [group[0].title, mode, *(spread(of[m]) for m in METHODS)]
                + [f"{spread(d)}: {j}" if d else "–" for d, j in zip(found, judgements, strict=True)]
            )
    lines = [[gaps[k] for k in sorted(gaps) if k[:2] == line] for line in dict.fromkeys(k[:2] for k in gaps)]
    grown = [b >= a for gap in lines for a, b in zip(gap, gap[1:], strict=False)]
    grows = f"the gap to the joint VAE grows in {sum(grown)} of {len(grown)} steps to the next size"
    grows = grows if grown else "all of one size, so whether the gap grows is not known"
    count = {v: verdicts.count(v) for v in (HOLDS, LEVEL, FAILS)}
    parts = ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)
    because = f"U − T and U − vae, {sum(count.values())} in all: {parts}; {grows}"
    head = ("", "mode", "vae", "T", "U", "U − T", "U − vae", "T − vae")
    return Claim("a", paper, together(verdicts), because if rows else "", head, rows)


def probes(entries: Sequence[Entry]) -> Claim:
    """Fig. 4."""
    paper = "With a tenth of the patches known, a linear probe of p(z | x_S) is right for 60% of the images (Fig. 4)."
    rows, reached = [], []
    for entry in entries:
        line = probe_line(entry)
        if entry.cell.method != "biglearn_u" or not line:
            continue
        pixels = probe_line(entry, "pixels")
        reached.append(line[0.1])
        shown = [f"{line[s]:.3f} ({pixels[s]:.3f})" for s in (0.1, 0.3, 0.5, 1.0)]
        rows.append([entry.title, entry.cell.mask_tokens, str(entry.cell.seed), *shown])
    verdict = NOT_RUN if not rows else HOLDS if min(reached) >= 0.6 else FAILS if max(reached) < 0.6 else LEVEL
    because = f"{min(reached):.3f} to {max(reached):.3f} in {len(reached)} runs" if rows else ""
    return Claim("b", paper, verdict, because, ("", "mode", "seed", "0.1 (pixels)", "0.3", "0.5", "1"), rows)


def probe_line(entry: Entry, features: str | None = None) -> dict[float, float]:
    """Accuracy by S-ratio, of the model or of other features."""
    rows = entry.cell.figures["probe"]
    return {r["s_ratio"]: r["accuracy"] for r in rows if (r["features"] == features if features else r["of_model"])}


def seconds_an_epoch(entry: Entry) -> float:
    """Of training alone."""
    epochs = entry.cell.figures["epochs"]
    return epochs["seconds"][-1] / epochs["end"][-1]


def costs(entries: Sequence[Entry]) -> Claim:
    """Fig. 13."""
    paper = "A BigLearn-VAE costs more than the joint VAE (Fig. 13); ours less than one to the letter."
    rows, faster = [], []
    for group in comparisons(entries):
        first = {mode: of_mode(group, mode) for mode in ("query_only", "dense")}
        base = next(iter(first["query_only"].get("vae", {}).values()), None)
        if not base:
            continue
        for mode, method in ((mode, method) for mode in first for method in METHODS):
            for entry in list(first[mode].get(method, {}).values())[:1]:
                rate = entry.cell.flops_per_image / base.cell.flops_per_image
                time = seconds_an_epoch(entry) / seconds_an_epoch(base)
                rows.append([entry.title, mode, method, f"{entry.cell.flops_per_image / 1e6:.0f}", f"{rate:.2f}"])
                rows[-1] += [f"{seconds_an_epoch(entry):.0f}", f"{time:.2f}", _machine(entry)]
        ours, literal = (next(iter(first[m].get("biglearn_u", {}).values()), None) for m in ("query_only", "dense"))
        if ours and literal:
            faster.append(seconds_an_epoch(literal) / seconds_an_epoch(ours))
    because = f"U as the paper has it (dense) takes {spread(faster)} times the time of ours" if faster else ""
    verdict = judged([ratio - 1 for ratio in faster], 1)
    head = ("", "mode", "method", "MFLOP an image", "of the vae's", "seconds an epoch", "of the vae's", "on")
    return Claim("c", paper, verdict, because, head, rows)


def _machine(entry: Entry) -> str:
    return f"{entry.cell.hardware}, {entry.cell.ways['precision']}"


def chains(entries: Sequence[Entry]) -> Claim:
    """In-painting against what a joint VAE can do."""
    paper = "In-painting needs no chain: one model fills better than a jointly trained VAE by MCMC, at once."
    rows, verdicts, shares = [], [], []
    for group in comparisons(entries):
        by_method = of_mode(group, "query_only")
        u, vae = (by_method.get(method, {}) for method in ("biglearn_u", "vae"))
        for seed in sorted(u.keys() & vae.keys()):
            for mask in STANDARD_MASKS:
                ours = [row for row in u[seed].cell.figures["times"] if row["mask"] == mask][-1]
                of_chain = [row for row in vae[seed].cell.figures["times"] if row["mask"] == mask]
                best = min(of_chain, key=lambda row: row["error"])
                verdicts.append(judged([best["error"] - ours["error"]], ours["error"]))
                shares.append(ours["seconds"] / best["seconds"])
                least = [min(row["error"] for row in of_chain if row["way"] == way) for way in CHAINS]
                rows.append(
                    [u[seed].title, str(seed), mask, f"{ours['error']:.4f}", f"{1000 * ours['seconds']:.0f}"]
                    + [*(f"{error:.4f}" for error in least), str(best["steps"]), f"{1000 * best['seconds']:.0f}"]
                )
    because = ""
    if rows:
        better = sum(verdict == HOLDS for verdict in verdicts)
        because = f"better in {better} of {len(verdicts)} masks and seeds, at {min(shares):.1%} to {max(shares):.1%}"
        because += " of the time of the chain at its best"
    head = ("", "seed", "mask", "U, 16 draws", "ms an image", *CHAINS, "steps of the better", "ms an image")
    return Claim("d", paper, together(verdicts), because, head, rows)


def modes(entries: Sequence[Entry]) -> Claim:
    """query_only against dense, at equal images and at equal time."""
    paper = "(Not of the paper.) Mask tokens that only ask learn as well as mask tokens that are keys, too, for less."
    rows, verdicts, better = [], [], {"images": [], "time": []}
    names = ("joint_elbo", "inpainting_error", "inpainting_error_fifth")
    for group in comparisons(entries):
        found = {mode: of_mode(group, mode) for mode in ("query_only", "dense")}
        for method in METHODS:
            ours, literal = (found[mode].get(method, {}) for mode in found)
            for seed in sorted(ours.keys() & literal.keys()):
                curves = [runs[seed].cell.figures["curve"] for runs in (ours, literal)]
                for at in ("images", "time"):
                    end = min(curve[-1]["seconds"] for curve in curves) if at == "time" else None
                    values = [[_at(curve, name, end) for name in names] for curve in curves]
                    signs = (1, -1, -1)
                    gains = [s * (a - b) for s, a, b in zip(signs, *values, strict=True)]
                    verdict = [judged([gain], value) for gain, value in zip(gains, values[0], strict=True)]
                    verdicts.append(verdict[0])
                    better[at] += verdict
                    pairs = zip(*values, (2, 4, 4), strict=True)
                    shown = [f"{a:.{digits}f} / {b:.{digits}f}" for a, b, digits in pairs]
                    rows.append([ours[seed].title, method, str(seed), f"equal {at}", *shown])
    because = "; ".join(
        f"at equal {at} {which.count(HOLDS)} of {len(which)} figures better, {which.count(FAILS)} worse"
        for at, which in better.items()
        if which
    )
    head = ("query_only / dense", "method", "seed", "at", "JointELBO", "half seen", "fifth seen")
    return Claim("e", paper, together(verdicts), because, head, rows)


def _at(curve: Sequence[dict], name: str, seconds: float | None) -> float:
    """The last value of a curve, or that at a time, between the evaluations before and after it."""
    if seconds is None or curve[-1]["seconds"] <= seconds:
        return curve[-1][name]
    after = next(n for n, line in enumerate(curve) if line["seconds"] >= seconds)
    if after == 0:
        return curve[0][name]
    one, other = curve[after - 1], curve[after]
    share = (seconds - one["seconds"]) / (other["seconds"] - one["seconds"])
    return one[name] + share * (other[name] - one[name])


def choices(entries: Sequence[Entry]) -> Claim:
    """β, the two Betas and the share of connected S, one case."""
    paper = "(Left open by the paper.) What the weight of the KL, the two Betas and the shape of S do."
    rows = []
    alone = [e for e in entries if (e.cell.method, e.cell.mask_tokens, e.cell.seed) == ("biglearn_u", "query_only", 0)]
    for title in dict.fromkeys(entry.title for entry in alone):
        group = [entry for entry in alone if entry.title == title]
        base = dict(group[0].recipe)
        for entry in group if len(group) > 1 else ():
            changed = [f"{key} {value}" for key, value in entry.recipe if base.get(key) != value]
            errors = [entry.error(mask) for mask in STANDARD_MASKS]
            figures = [f"{entry.figure(name):.2f}" for name in ("biglearn_elbo_at_0.01", "joint_elbo_at_0.01")]
            rows.append(
                [title, ", ".join(changed) or "as shipped, β 0.01", *figures, str(entry.figure("active_units"))]
                + [" / ".join(f"{error:.4f}" for error in errors if error is not None)]
            )
    head = ("", "", "BigLearnELBO at 0.01", "JointELBO at 0.01", "active units", "errors, mean of 16 draws")
    verdict = "measured" if rows else NOT_RUN
    return Claim("f", paper, verdict, f"{len(rows)} recipes, one seed each" if rows else "", head, rows)
