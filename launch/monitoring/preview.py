"""Draw the dashboards from what a Prometheus has recorded, without a Grafana: a preview, not what Grafana shows."""

import itertools
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

EXAMPLES = """\
examples:
  python launch/monitoring/preview.py --out previews
  python launch/monitoring/preview.py --prometheus http://127.0.0.1:19090 --minutes 5 --out previews
"""
FOLDER = Path(__file__).with_name("grafana") / "dashboards"


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=whole_number, default=60, help="so far back; default: 60")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)

    source = Source(options.prometheus, 60 * options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.json")):
        dashboard = json.loads(path.read_text())
        out = options.out / f"dashboard-{path.stem}.png"
        draw(dashboard, answers(dashboard, source), out)
        print(out)
    return 0


@dataclass(frozen=True)
class Series:
    """What a query gave, as lists of one length. name: its legend; run: the label, where there is one."""

    name: str
    run: str
    seconds: list[float]
    values: list[float]


class Source:
    """A Prometheus, and the `seconds` before now that are looked at."""

    def __init__(self, url: str, seconds: float, rate_seconds: int = 60):
        self.url, self.end, self.seconds, self.rate_seconds = url.rstrip("/"), time.time(), seconds, rate_seconds

    def ask(self, path: str, **parameters) -> list:
        """What /api/v1/<path> has for data. UserError when it refuses or is not there."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.url} refuses {parameters}: {error.read(2000).decode(errors='replace')}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.url} does not answer as a Prometheus ({error}): name it by --prometheus") from None

    def series(self, expression: str, legend: str, is_of_now: bool = False) -> list[Series]:
        """The points of a query, or those of now; without those that are no finite numbers."""
        start, step = self.end - (0 if is_of_now else self.seconds), max(1, self.seconds / 200)
        found = self.ask("query_range", query=expression, start=start, end=self.end, step=step)
        several = []
        for result in found["result"]:
            labels, name = result["metric"], legend
            for label, value in labels.items():
                name = name.replace("{{" + label + "}}", value)
            points = [(float(at), float(value)) for at, value in result["values"]]
            points = [point for point in points if math.isfinite(point[1])]
            if points:
                several.append(Series(name, labels.get("run", ""), *map(list, zip(*points, strict=True))))
        return several


def answers(dashboard: dict, source: Source) -> dict[int, list[list[Series]]]:
    """For each panel, by its id, what each of its queries gives when everything is chosen."""
    values = {"__rate_interval": f"{source.rate_seconds}s"}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = variable["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            found = source.ask(f"label/{label}/values", **{"match[]": _filled(selector, values)})
            values[variable["name"]] = "|".join(found)
    return {
        panel["id"]: [
            source.series(_filled(target["expr"], values), target["legendFormat"], target["instant"])
            for target in panel["targets"]
        ]
        for panel in dashboard["panels"]
    }


def _filled(text: str, values: dict[str, str]) -> str:
    for name in sorted(values, key=len, reverse=True):
        text = text.replace(f"${name}", values[name])
    return text


def draw(dashboard: dict, found: dict[int, list[list[Series]]], path: Path) -> None:
    """A picture of a dashboard, its panels where Grafana has them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, PercentFormatter

    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = pyplot.figure(figsize=(18, 0.42 * height + 0.8))
    figure.suptitle(f"{dashboard['title']}: a preview drawn from Prometheus, not a picture of Grafana", fontsize=11)
    top = 1 - 0.8 / figure.get_figheight()
    for panel in dashboard["panels"]:
        place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"].removeprefix("suffix: ")
        left, bottom = place["x"] / 24, top * (1 - (place["y"] + place["h"]) / height)
        wide, high = place["w"] / 24, top * place["h"] / height
        series, is_number = found[panel["id"]], panel["type"] == "stat"
        axes = figure.add_axes((left + 0.028, bottom + 0.2 * high, wide - 0.036, (0.6 if is_number else 0.66) * high))
        axes.set_title(panel["title"], fontsize=9, fontweight="bold", loc="left")
        if not any(series):
            axes.text(0.5, 0.5, "nothing recorded", ha="center", va="center", fontsize=9)
        elif is_number:
            for row, one in enumerate(series[0][:3]):
                axes.text(0, 1 - 0.36 * row, _shown(one.values[-1], unit), va="top", fontsize=10)
                axes.text(0, 0.83 - 0.36 * row, one.name, va="top", fontsize=6, color="dimgrey")
        elif panel["type"] == "xychart":
            _draw_curves(axes, *series)
        elif panel["type"] == "heatmap":
            _draw_distribution(axes, series[0])
        else:
            _draw_lines(axes, [one for of_query in series for one in of_query])
        if not any(series) or is_number:
            axes.set_axis_off()
        else:
            if unit == "bytes" or (unit == "short" and axes.get_ylim()[1] > 10_000):
                axes.yaxis.set_major_formatter(EngFormatter(unit="B" if unit == "bytes" else ""))
                axes.set_ylim(bottom=0)
            elif unit == "percentunit":
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            elif unit != "short":
                axes.set_ylabel(unit, fontsize=7)
            axes.tick_params(labelsize=7)
            if panel["type"] != "heatmap":
                axes.legend(fontsize=6, loc="best")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def _draw_lines(axes, several: list[Series]) -> None:
    last = max(one.seconds[-1] for one in several)
    for one in several:
        axes.plot([at - last for at in one.seconds], one.values, label=one.name, linewidth=1.2)
    axes.set_xlabel("seconds before the end", fontsize=7)


def _draw_curves(axes, of_x: list[Series], of_y: list[Series]) -> None:
    """y against x, of the points of one time and run."""
    for y in of_y:
        x = next((dict(zip(one.seconds, one.values, strict=True)) for one in of_x if one.run == y.run), {})
        points = [(x[at], value) for at, value in zip(y.seconds, y.values, strict=True) if at in x]
        axes.plot(*zip(*points, strict=True), marker=".", label=y.name, linewidth=1.2)


def _draw_distribution(axes, of_buckets: list[Series]) -> None:
    """Darker where more is in a bucket; each series has what is in its own and in those below."""
    ordered = sorted(of_buckets, key=lambda one: float(one.name))
    up_to = [[0.0] * len(ordered[0].values), *(one.values for one in ordered)]
    within = [[more - less for less, more in zip(*pair, strict=True)] for pair in itertools.pairwise(up_to)]
    seconds = [at - ordered[0].seconds[-1] for at in ordered[0].seconds]
    axes.pcolormesh(seconds, range(len(ordered)), within, cmap="Blues", shading="nearest")
    axes.set_yticks(range(len(ordered)), [one.name for one in ordered])
    axes.set_xlabel("seconds before the end", fontsize=7)


def _shown(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return f"{value:.3g} s" if value < 120 else f"{value / 60:.0f} min"
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:,.4g}" + ("" if unit in ("short", "sci") else f" {unit}")


if __name__ == "__main__":
    run(main)
