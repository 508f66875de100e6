"""The private names of DeepSpeed's that are used are there, in the version that is installed."""

import ast
from pathlib import Path

import deepspeed
import pytest

from tests.programs import ROOT
from tests.trainer.engines.test_engine import build

INTERNALS = "trainer/engines/deepspeed_internals.py"


def test_the_names_of_the_module_are_there():
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert deepspeed.utils.logger.handlers


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (1, {"_global_grad_norm", "_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state"}),
        (3, {"_global_grad_norm", "fp32_partitioned_groups_flat"}),
    ],
)
def test_the_names_of_its_optimizers_are_there(tiny, world, stage, names):
    _, engine = build(tiny("engine.name=deepspeed", f"engine.zero_stage={stage}"), world)
    assert [name for name in names if not hasattr(engine.engine.optimizer, name)] == []
    source = ast.parse((ROOT / INTERNALS).read_text())
    assert names <= {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}


def test_no_other_file_uses_a_private_name_of_the_engine():
    """What begins with an underscore and is no attribute of self."""
    source = ast.parse(Path(ROOT / "trainer/engines/deepspeed_engine.py").read_text())
    private = {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert not private
