"""The table of metrics in docs/monitoring.md, made of the registry.

python launch/monitoring/table.py
"""

from pathlib import Path

from trainer.metrics.exposition import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
_BEGIN, _END = "<!-- made by launch/monitoring/table.py -->\n", "<!-- end of it -->\n"


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + _table() + _END + rest.partition(_END)[2]


def _table() -> str:
    rows = ["| metric | kind | labels | ranks | |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        values: dict[str, list[str]] = {label: [] for label in family.labels}
        for of_number in family.of.values():
            for label, value in zip(family.labels, of_number, strict=True):
                values[label].append(value)
        labels = "; ".join(f"`{label}`: {', '.join(of_label)}" for label, of_label in values.items())
        ranks = "each" if family.each_rank else "first"
        rows.append(f"| `{family.full_name}` | {family.kind} | {labels} | {ranks} | {family.help} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
    print(PAGE)
