"""What the paper claims, and what the cells say of it: a verdict over seeds for each, with the figures behind it."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.chains import CHAINS, DRAWS
from model.masks import STANDARD_MASKS
from reproduction.cell import Cell
from trainer.config import Config

METHODS = ("vae", "biglearn_t", "biglearn_u")
MODES = ("query_only", "dense")
HOLDS, FAILS, PARTLY, NOT_RUN, MEASURED = "holds", "does not hold", "holds in part", "not run", "measured"
_ALIKE = 0.01  # differences of less than this share of the value count as none
_CHANGED = ("method", "seed", "model.mask_tokens", "run_dir", "engine.", "checkpoint.", "evaluate.", "metrics.")


@dataclass(frozen=True)
class Entry:
    """A run of a grid and its cell."""

    config: Config
    cell: Cell

    @property
    def recipe(self) -> tuple[tuple[str, str], ...]:
        """What the methods, modes and seeds of one comparison have in common, their images included."""
        kept = {key: str(value) for key, value in self.config.flat().items() if not key.startswith(_CHANGED)}
        kept |= {"images": self.cell.data_checksum, "codec": str(self.cell.codec_checksum)}
        return tuple(sorted(kept.items()))

    @property
    def title(self) -> str:
        """As "mnist, d 128, z 32, 122,880 images"."""
        _, width, latent_dim = self.cell.size
        codes = " (codes)" if self.config.data.code_dim else ""
        return f"{self.cell.source}{codes}, d {width}, z {latent_dim}, {self.config.total_images:,} images"

    @property
    def machine(self) -> tuple:
        """Times compare within one alone."""
        return self.cell.hardware, self.cell.ways["precision"], self.cell.ways["threads"]

    def elbo(self, name: str) -> float:
        """In nats."""
        return self.cell.figures["elbos"][name]

    @property
    def seconds_an_epoch(self) -> float:
        """Of training alone."""
        epochs = self.cell.figures["epochs"]
        return epochs["seconds"][-1] / epochs["end"][-1]

    def probe(self, features: str | None = None) -> dict[float, float]:
        """Accuracy by S-ratio, of the model or of other features; empty where there are no classes."""
        rows = self.cell.figures["probe"]
        return {r["s_ratio"]: r["accuracy"] for r in rows if (r["features"] == features if features else r["of_model"])}

    def filling(self, mask: str) -> dict | None:
        """Of the mean over draws, which of a joint VAE is that of pseudo-Gibbs: error and images."""
        rows = self.cell.figures["filling"]
        return next((row for row in rows if row["mask"] == mask and ", mean of " in row["way"]), None)


BySeed = dict[int, Entry]


@dataclass(frozen=True)
class Claim:
    """paper: what it says. verdict: HOLDS and so on. because: in a sentence. head, rows: of a table."""

    letter: str
    paper: str
    verdict: str
    because: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def claims(entries: Sequence[Entry]) -> list[Claim]:
    """Of all cells. A run that failed counts: what it belongs to holds in part at most."""
    whole = [entry for entry in entries if not entry.cell.failed]
    compared = {entry.recipe for group in comparisons(whole) for entry in group}
    failed = [entry.cell.name for entry in entries if entry.cell.failed and entry.recipe in compared]
    found = [claim(whole) for claim in (joint_elbos, probes, costs, chains, modes, choices)]
    return [_with_failures(claim, failed) for claim in found]


def _with_failures(claim: Claim, failed: Sequence[str]) -> Claim:
    if not failed or claim.verdict in (NOT_RUN, MEASURED):
        return claim
    verdict = PARTLY if claim.verdict == HOLDS else claim.verdict
    return replace(claim, verdict=verdict, because=f"{claim.because}; without figures: {', '.join(failed)}")


def comparisons(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Those that differ in method, mode and seed alone, smaller models first."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.recipe, []).append(entry)
    several = [group for group in groups.values() if len({entry.cell.method for entry in group}) > 1]
    return sorted(several, key=lambda group: (group[0].cell.source, group[0].cell.size[1:], group[0].cell.images))


def of_mode(group: Sequence[Entry], mode: str) -> dict[str, BySeed]:
    """By method and seed, every method there."""
    found: dict[str, BySeed] = {method: {} for method in METHODS}
    for entry in sorted(group, key=lambda entry: entry.cell.seed):
        if entry.cell.mask_tokens == mode:
            found[entry.cell.method][entry.cell.seed] = entry
    return found


def paired(one: BySeed, other: BySeed) -> list[tuple[Entry, Entry]]:
    """Of each seed that both have."""
    return [(one[seed], other[seed]) for seed in one if seed in other]


def judged(differences: Sequence[float], sizes: Sequence[float], at_least: bool = True) -> str:
    """Whether differences are above 0 by more than a share of what they are of; at_least: or not below it by more."""
    if not differences:
        return NOT_RUN
    shares = [d / abs(size) if size else d for d, size in zip(differences, sizes, strict=True)]
    holds = [share > (-_ALIKE if at_least else _ALIKE) for share in shares]
    return HOLDS if all(holds) else PARTLY if any(holds) else FAILS


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
    paper = "The test JointELBO of U is at least that of T, that of T at least the joint VAE's (Fig. 2); the gap grows"
    pairs = (("biglearn_u", "biglearn_t"), ("biglearn_u", "vae"), ("biglearn_t", "vae"))
    rows, verdicts, gaps = [], [], {}
    for group in comparisons(entries):
        for mode in MODES:
            by_method = of_mode(group, mode)
            differences = []
            for a, b in pairs:
                values = [tuple(e.elbo("joint_elbo") for e in both) for both in paired(by_method[a], by_method[b])]
                differences.append([one - other for one, other in values])
                verdicts.append(judged(differences[-1], [other for _, other in values]))
            if not any(differences):
                continue
            if differences[1]:
                line = tuple(item for item in group[0].recipe if not item[0].startswith("model."))
                gaps.setdefault((line, mode), []).append(statistics.mean(differences[1]))
            means = [spread([e.elbo("joint_elbo") for e in by_method[m].values()]) for m in METHODS]
            seeds = str(max(len(by_method[m]) for m in METHODS))
            rows.append([group[0].title, mode, seeds, *means, *map(spread, differences)])
    grown = [b >= a for gap in gaps.values() for a, b in zip(gap, gap[1:], strict=False)]
    growth = f"the gap of U to the joint VAE grows in {sum(grown)} of {len(grown)} steps to the next size"
    growth = growth if grown else "of one size alone, so whether the gap grows is not known"
    verdict = together([*verdicts, *(HOLDS if grows else FAILS for grows in grown)])
    ran = [verdict for verdict in verdicts if verdict != NOT_RUN]
    head = ("", "mode", "seeds", "vae", "T", "U", "U − T", "U − vae", "T − vae")
    return Claim("a", paper, verdict, f"{ran.count(HOLDS)} of {len(ran)} comparisons hold; {growth}", head, rows)


def probes(entries: Sequence[Entry]) -> Claim:
    """Fig. 4."""
    paper = "With a tenth of the patches known, a linear probe of p(z | x_S) is right for 60% of the images (Fig. 4)"
    rows, reached = [], []
    for entry in (entry for group in comparisons(entries) for entry in group):
        line, pixels = entry.probe(), entry.probe("pixels")
        if entry.cell.method == "biglearn_u" and line:
            reached.append(line[0.1])
            shown = [f"{line[s]:.3f} ({pixels[s]:.3f})" for s in (0.1, 0.3, 0.5, 1.0)]
            rows.append([entry.title, entry.cell.mask_tokens, str(entry.cell.seed), *shown])
    holds = [accuracy >= 0.6 for accuracy in reached]
    verdict = together([HOLDS if hold else FAILS for hold in holds])
    because = f"{spread(reached, 3)}; it holds in {sum(holds)} of {len(holds)} runs"
    head = ("S-ratio: accuracy (of pixels)", "mode", "seed", "0.1", "0.3", "0.5", "1")
    return Claim("b", paper, verdict, because, head, rows)


def costs(entries: Sequence[Entry]) -> Claim:
    """Fig. 13."""
    paper = "An epoch of U takes longer than one of the joint VAE (Fig. 13); ours takes less than one to the letter"
    rows, shares, of_vae = [], [], []
    for group in comparisons(entries):
        found = {mode: of_mode(group, mode) for mode in MODES}
        base = found["query_only"]["vae"]
        for mode, method in ((mode, method) for mode in MODES for method in METHODS):
            runs = [*found[mode][method].values()]
            if not runs:
                continue
            ratios = _time_ratios(found[mode][method], base)
            operations = [runs[0].cell.flops_per_image / e.cell.flops_per_image for e in base.values()][:1]
            seconds = spread([e.seconds_an_epoch for e in runs], 0)
            where = ", ".join(sorted({_words(e.machine) for e in runs}))
            shown = [f"{runs[0].cell.flops_per_image / 1e6:.0f}", spread(operations), seconds, spread(ratios), where]
            rows.append([runs[0].title, mode, method, *shown])
        of_vae += _time_ratios(found["query_only"]["biglearn_u"], base)
        shares += _time_ratios(found["query_only"]["biglearn_u"], found["dense"]["biglearn_u"])
    parts = [
        judged(part, [1] * len(part), at_least=False) for part in ([r - 1 for r in of_vae], [1 - r for r in shares])
    ]
    verdict = PARTLY if NOT_RUN in parts and HOLDS in parts else together(parts)
    to_the_letter = f"{spread(shares)} of that of one whose mask tokens are keys, too (dense)" if shares else ""
    because = f"U takes {spread(of_vae)} times the time of the joint VAE, "
    because += to_the_letter or "and one to the letter (dense) has not been run"
    head = ("", "mode", "method", "MFLOP an image", "of the vae's", "seconds an epoch", "of the vae's", "on")
    return Claim("c", paper, verdict, because, head, rows)


def _time_ratios(one: BySeed, other: BySeed) -> list[float]:
    """Of an epoch, in the seeds that both have made on the same machine."""
    return [a.seconds_an_epoch / b.seconds_an_epoch for a, b in paired(one, other) if a.machine == b.machine]


def _words(machine: tuple) -> str:
    hardware, precision, threads = machine
    return f"{hardware}, {precision}" + (f", threads: {threads}" if threads else "")


def chains(entries: Sequence[Entry]) -> Claim:
    """In-painting against what a joint VAE can do."""
    paper = "In-painting needs no chain: U fills at once, and better than the joint VAE by MCMC"
    rows, verdicts, shares = [], [], []
    for group in comparisons(entries):
        by_method = of_mode(group, "query_only")
        for u, vae in paired(by_method["biglearn_u"], by_method["vae"]):
            for mask in STANDARD_MASKS:
                ours = next(r for r in u.cell.figures["times"] if (r["mask"], r["draws"]) == (mask, max(DRAWS)))
                of_chain = [row for row in vae.cell.figures["times"] if row["mask"] == mask]
                if ours["images"] != of_chain[0]["images"]:
                    continue
                best = min(of_chain, key=lambda row: row["error"])
                verdicts.append(judged([best["error"] - ours["error"]], [best["error"]], at_least=False))
                alike = u.machine == vae.machine
                shares += [ours["seconds"] / best["seconds"]] if alike else []
                least = [min(row["error"] for row in of_chain if row["way"] == way) for way in CHAINS]
                milliseconds = [f"{1000 * row['seconds']:.0f}" if alike else "–" for row in (ours, best)]
                chosen = f"{best['way']}, {best['steps']}"
                errors = [f"{error:.4f}" for error in (ours["error"], *least)]
                rows.append([u.title, str(u.cell.seed), mask, str(ours["images"]), *errors, chosen, *milliseconds])
    better = sum(verdict == HOLDS for verdict in verdicts)
    because = f"better for {better} of {len(verdicts)} masks and seeds"
    because += f", in {min(shares):.1%} to {max(shares):.1%} of the time of the better chain" if shares else ""
    ways = (f"U, {max(DRAWS)} draws", *CHAINS)
    head = ("", "seed", "mask", "images", *ways, "the better chain, steps", "ms an image: U", "that chain")
    return Claim("d", paper, together(verdicts), because, head, rows)


def modes(entries: Sequence[Entry]) -> Claim:
    """query_only against dense, at equal images and at equal time."""
    paper = "(Not of the paper.) Mask tokens that only ask learn at least as well as those that are keys, too"
    rows, verdicts = [], {at: {method: [] for method in METHODS} for at in ("images", "time")}
    for group in comparisons(entries):
        found = {mode: of_mode(group, mode) for mode in MODES}
        for method in METHODS:
            figures = {"joint_elbo": 1} if method == "vae" else {"joint_elbo": 1, "inpainting_error": -1}
            figures |= {} if method == "vae" else {"inpainting_error_fifth": -1}
            for both in paired(*(found[mode][method] for mode in MODES)):
                curves = [entry.cell.figures["curve"] for entry in both]
                for at in verdicts if both[0].machine == both[1].machine else ("images",):
                    end = min(curve[-1]["seconds"] for curve in curves) if at == "time" else None
                    shown = []
                    for name, sign in figures.items():
                        ours, other = (_at(curve, name, end) for curve in curves)
                        if ours is None or other is None:
                            shown.append("–")
                            continue
                        verdicts[at][method].append(judged([sign * (ours - other)], [other]))
                        digits = 2 if sign > 0 else 4
                        shown.append(f"{ours:.{digits}f} / {other:.{digits}f}")
                    shown += ["–"] * (3 - len(shown))
                    rows.append([both[0].title, method, str(both[0].cell.seed), f"equal {at}", *shown])
    said = {
        at: [f"{method} {ran.count(HOLDS)} of {len(ran)}" for method, ran in by_method.items() if ran]
        for at, by_method in verdicts.items()
    }
    because = "; ".join(f"at equal {at}, figures of {', '.join(counts)}" for at, counts in said.items() if counts)
    because += " (at equal time the slower one is stopped before its learning rate has fallen)"
    head = ("query_only / dense", "method", "seed", "at", "JointELBO", "error, half seen", "fifth seen")
    all_of_them = [verdict for by_method in verdicts.values() for ran in by_method.values() for verdict in ran]
    return Claim("e", paper, together(all_of_them), because, head, rows)


def _at(curve: Sequence[dict], name: str, seconds: float | None) -> float | None:
    """The last value of a curve, or that at a time, between two evaluations; None before the first of them."""
    if seconds is None or curve[-1]["seconds"] <= seconds:
        return curve[-1][name]
    if curve[0]["seconds"] > seconds:
        return None
    after = next(n for n, line in enumerate(curve) if line["seconds"] > seconds)
    one, other = curve[after - 1], curve[after]
    share = (seconds - one["seconds"]) / (other["seconds"] - one["seconds"])
    return one[name] + share * (other[name] - one[name])


def choices(entries: Sequence[Entry]) -> Claim:
    """β, the two Betas and the share of connected S, one case."""
    paper = "(Left open by the paper.) What the weight of the KL, the two Betas and the shape of S do"
    alone = [e for e in entries if (e.cell.method, e.cell.mask_tokens, e.cell.seed) == ("biglearn_u", "query_only", 0)]
    rows = []
    for title in dict.fromkeys(entry.title for entry in alone):
        group = [entry for entry in alone if entry.title == title]
        recipes = [dict(entry.recipe) for entry in group]
        varied = [key for key in recipes[0] if len({recipe[key] for recipe in recipes}) > 1]
        usual = {key: Counter(recipe[key] for recipe in recipes).most_common(1)[0][0] for key in varied}
        for entry, recipe in zip(group, recipes, strict=True) if varied else ():
            changed = [key for key in varied if recipe[key] != usual[key]] or varied
            elbos = [f"{entry.elbo(name):.2f}" for name in ("biglearn_elbo_at_0.01", "joint_elbo_at_0.01")]
            errors = [f"{row['error']:.4f}" for mask in STANDARD_MASKS if (row := entry.filling(mask))]
            shown = [", ".join(f"{key.rpartition('.')[2]} {recipe[key]}" for key in changed), *elbos]
            rows.append([title, *shown, str(entry.cell.figures["latent"]["active_units"]), " / ".join(errors)])
    errors = "errors, mean of 16 draws: " + " / ".join(STANDARD_MASKS)
    head = ("", "recipe", "BigLearnELBO at β 0.01, by its own Betas", "JointELBO at β 0.01", "active units", errors)
    because = f"{len(rows)} recipes, one seed each; a recipe is told by what differs from most"
    return Claim("f", paper, MEASURED if rows else NOT_RUN, because if rows else "", head, rows)
