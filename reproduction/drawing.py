"""Figs. 2, 4 and 13 of the paper, drawn from cells."""

import io
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reproduction.claims import METHODS, Entry, comparisons, of_mode

_COLOURS = dict(zip(METHODS, ("tab:grey", "tab:orange", "tab:blue"), strict=True))
_DASHES = {"query_only": "-", "dense": "--"}
_DRAWN_FROM = "cells"  # the key of a picture's text chunk


def joint_elbos(entries: Sequence[Entry]) -> Figure | None:
    """Fig. 2: each seed a point, each comparison a place, a panel a data set."""
    groups = comparisons(entries)
    sources = [*dict.fromkeys(group[0].cell.source for group in groups)]
    if not sources:
        return None
    figure = Figure(figsize=(5.5 * len(sources), 4.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        places, labels = [], []
        for group in (group for group in groups if group[0].cell.source == source):
            for mode, dashes in _DASHES.items():
                by_method = of_mode(group, mode)
                if not any(by_method.values()):
                    continue
                place = len(labels)
                size = group[0].cell.size
                labels.append(f"d {size[1]}, z {size[2]}\n{group[0].cell.images:,} images\n{mode}")
                for n, method in enumerate(METHODS):
                    values = [entry.elbo("joint_elbo") for entry in by_method[method].values()]
                    x = place + 0.2 * (n - 1)
                    how = {"color": _COLOURS[method], "label": None if place else method}
                    axes.plot([x] * len(values), values, "o", **how)
                    if values:
                        axes.hlines(sum(values) / len(values), x - 0.08, x + 0.08, color=_COLOURS[method], ls=dashes)
                places.append(place)
        axes.set_xticks(places, labels)
        axes.set(title=source, ylabel="test JointELBO, nats", xlim=(-0.5, len(labels) - 0.5))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS))
    figure.suptitle("As Figure 2 of the paper: points are seeds, lines their mean")
    return figure


def probes(entries: Sequence[Entry]) -> Figure | None:
    """Fig. 4: accuracy against the share of known patches."""
    compared = [entry for group in comparisons(entries) for entry in group]
    shown = [entry for entry in compared if entry.cell.method == "biglearn_u" and entry.probe()]
    sources = [*dict.fromkeys(entry.cell.source for entry in shown)]
    if not sources:
        return None
    figure = Figure(figsize=(5.5 * len(sources), 4.2), layout="constrained")
    for axes, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
        of_source = [entry for entry in shown if entry.cell.source == source]
        for entry in of_source:
            line = entry.probe()
            _, width, latent_dim = entry.cell.size
            label = f"U, d {width}, z {latent_dim}, {entry.cell.mask_tokens}, seed {entry.cell.seed}"
            axes.plot([*line], [*line.values()], _DASHES[entry.cell.mask_tokens], marker="o", ms=3, label=label)
        pixels = of_source[0].probe("pixels")
        axes.plot([*pixels], [*pixels.values()], ":", color="black", label="pixels")
        axes.axhline(0.6, color="tab:red", lw=0.8)
        axes.set(title=source, xlabel="share of known patches", ylabel="accuracy of a linear probe", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("As Figure 4 of the paper; red: the 60% that it states for a tenth")
    return figure


def curves(entries: Sequence[Entry]) -> Figure | None:
    """Fig. 13: loss and cumulative time of each epoch, of the comparison with most modes and methods."""
    groups = comparisons(entries)
    if not groups:
        return None
    group = max(groups, key=lambda group: len({(e.cell.method, e.cell.mask_tokens) for e in group}))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, time_axes = figure.subplots(1, 2)
    for mode, dashes in _DASHES.items():
        for method, of_seed in of_mode(group, mode).items():
            if not of_seed:
                continue
            epochs = of_seed[min(of_seed)].cell.figures["epochs"]
            how = {"color": _COLOURS[method], "ls": dashes, "marker": "o", "ms": 3, "label": f"{method}, {mode}"}
            loss_axes.plot(epochs["end"], epochs["loss"], **how)
            time_axes.plot([0, *epochs["end"]], [0, *(s / 60 for s in epochs["seconds"])], **how)
    loss_axes.set(title="loss of each epoch", ylabel="minus the ELBO that the method maximises, nats", yscale="log")
    time_axes.set(title="cumulative training time", ylabel="minutes")
    for axes in (loss_axes, time_axes):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"As Figure 13 of the paper: {group[0].title}")
    return figure


FIGURES: dict[str, Callable[[Sequence[Entry]], Figure | None]] = {
    "reproduction-figure-2.png": joint_elbos,
    "reproduction-figure-4.png": probes,
    "reproduction-figure-13.png": curves,
}


def picture(figure: Figure, drawn_from: str) -> bytes:
    """A PNG that says which cells it was drawn from."""
    drawn, content, note = io.BytesIO(), io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", dpi=100)
    note.add_text(_DRAWN_FROM, drawn_from)
    Image.open(drawn).convert("P", palette=Image.Palette.ADAPTIVE).save(content, "png", pnginfo=note, optimize=True)
    return content.getvalue()


def drawn_from(content: bytes) -> str | None:
    """What `picture` was told; None for any other picture."""
    try:
        return Image.open(io.BytesIO(content)).info.get(_DRAWN_FROM)
    except OSError:
        return None
