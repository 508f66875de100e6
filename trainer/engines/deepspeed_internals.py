"""Every name of DeepSpeed's that it does not promise to keep, and that this project uses.

pyproject.toml therefore bounds its version; tests/trainer/engines/test_deepspeed_internals.py looks for each of them.
"""

import logging
from collections.abc import Sequence
from typing import Any

import deepspeed
from torch import Tensor


def be_quiet_and_compile_nothing() -> None:
    """Its log shows errors alone; shared-memory collectives, a minute to compile, give way to gloo, which serves."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)


def gradient_norm(engine: Any) -> Tensor | float:
    """Of the coming or the last step, over all ranks, in stages 1 to 3; -1 where it was not finite."""
    return engine.optimizer._global_grad_norm


def flat_pieces(engine: Any) -> Sequence[Tensor]:
    """In stage 3, of each group of parameters the flat tensor of this rank's pieces."""
    return engine.optimizer.fp32_partitioned_groups_flat


def link_state(engine: Any) -> None:
    """In stages 1 and 2: let each parameter find its part of a state that was made anew."""
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()
