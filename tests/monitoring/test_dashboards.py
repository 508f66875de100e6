"""The dashboards and rules: what is committed is what the generator makes, and asks for what there is."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from launch.monitoring.dashboards import DASHBOARDS, FOLDER, rendered
from serving.metrics import Metrics
from trainer.metrics.registry import FAMILIES

register_default_plugins()
MONITORING = FOLDER.parents[1]
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}-{panel['title']}")
    for name in DASHBOARDS
    for panel in json.loads(rendered(name))["panels"]
]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_what_is_committed_is_what_the_generator_makes(name):
    assert (FOLDER / f"{name}.json").read_text() == rendered(name), "run launch/monitoring/dashboards.py"
    assert {path.stem for path in FOLDER.glob("*.json")} == {*DASHBOARDS}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_what_is_committed_fits_the_types_of_grafana(name):
    """Read by Grafana's own types and written again it is the same: no field is unknown, misspelt or lost."""
    plain = json.loads((FOLDER / f"{name}.json").read_text())
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(plain))) == plain


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert panel["targets"]
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_a_place_and_a_number_of_their_own(name):
    dashboard = json.loads(rendered(name))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        cell
        for place in (panel["gridPos"] for panel in panels)
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len({*cells}) == len(cells)
    assert max(x for x, _ in cells) < 24
    defined = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    assert {*re.findall(r"\$\{?(\w+)", json.dumps(panels))} <= defined


def families() -> dict[str, str]:
    """What runs and the service export: kinds by full names."""
    of_service = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in Metrics().registry.collect()
        if family.name.startswith("biglearn")
    }
    return {family.full_name: family.kind for family in FAMILIES} | of_service


def known_names() -> set[str]:
    names = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"}
    for name, kind in families().items():
        names |= {name + suffix for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    return names | {rule["record"] for rule in rules("rules.yml")}


def rules(name: str) -> list[dict]:
    groups = yaml.safe_load((MONITORING / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_query_asks_for_what_there_is():
    queries = [target["expr"] for param in PANELS for target in param.values[0]["targets"]]
    queries += [rule["expr"] for name in ("rules.yml", "alerts.yml") for rule in rules(name)]
    pattern = r"(?<![\w:])(?:\w+:)?(?:biglearn|process)_\w+(?::\w+)?"
    asked = {name for query in queries for name in re.findall(pattern, query)} - {"biglearn_finished"}
    assert asked <= known_names()
    never = families().keys() - {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert never <= {"biglearn_parameters", "biglearn_world_size"}


def test_every_alert_says_what_to_do():
    for rule in rules("alerts.yml"):
        assert rule["labels"]["severity"] in ("page", "warning")
        assert re.search(r"{{ \$labels.(run|instance) }}", rule["annotations"]["summary"])
        assert rule["annotations"]["description"].endswith(".")


def test_every_alert_and_rule_has_a_unit_test():
    text = (Path(__file__).with_name("rules_test.yml")).read_text()
    tested = set(re.findall(r"alertname: (\w+)", text)) | set(re.findall(r"expr: ([\w:]+)", text))
    names = {rule.get("alert") or rule["record"] for name in ("rules.yml", "alerts.yml") for rule in rules(name)}
    # Read by those that are tested, or like another one.
    assert names - tested <= {
        "run:biglearn_tokens:rate1m",
        "run:biglearn_restarts:max",
        "run:biglearn_device_seconds_per_image:mean",
    }
