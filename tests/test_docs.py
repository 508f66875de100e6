"""The generated pages are what `python docs/make.py` would write, and every key has its meaning."""

import importlib.util
import re

import pytest
from pydantic import BaseModel

from serving.metrics import Metrics
from tests import shown
from tests.programs import ROOT
from trainer.config import Config, load_config


def _make():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()
PAGES = make.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(path):
    assert path.read_text() == PAGES[path], "run python docs/make.py"


def _sections(section: type[BaseModel]):
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _sections(field.annotation)


@pytest.mark.parametrize("section", [*_sections(Config)], ids=lambda section: section.__name__)
def test_every_key_has_its_meaning(section):
    sections = {
        name
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    without = [name for name, meaning in make.meanings_of(section).items() if not meaning and name not in sections]
    assert not without


def test_every_key_is_in_the_reference():
    page = (ROOT / "docs/configuration.md").read_text()
    keys = load_config(ROOT / "configs/digits.yaml").flat()
    assert [key for key in keys if f"| `{key}` |" not in page] == []


def test_every_metric_of_the_service_is_documented():
    page = (ROOT / "docs/serving.md").read_text()
    own = [family for family in Metrics().registry.collect() if family.name.startswith("biglearn")]
    names = [family.name + ("_total" if family.type == "counter" else "") for family in own]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    assert len(names) == page.count("| `biglearn_service_")


OVERRIDE = re.compile(r"(?<![\w.])(?:stage_1\.)?((?!slurm\.)[a-z_]\w*(?:\.\w+)+)=")


@pytest.mark.parametrize("page", shown.PAGES)
def test_every_override_of_a_page_has_a_key(page):
    keys = load_config(ROOT / "configs/digits.yaml").flat()
    assert set(OVERRIDE.findall((ROOT / page).read_text())) - keys.keys() == set()


ROOMS = "data|model|biglearn_vae|trainer|evaluation|launch|benchmarks|tests|docs|configs"
NAMED = re.compile(rf"(?<![\w./-])((?:{ROOMS})/[\w/.*-]*\w\.(?:py|md|yaml))")


@pytest.mark.parametrize("page", shown.PAGES)
def test_every_file_of_ours_that_a_page_names_is_there(page):
    named = set(NAMED.findall((ROOT / page).read_text()))
    assert [path for path in sorted(named) if not [*ROOT.glob(path)]] == []
