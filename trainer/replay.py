"""One step of a run once more, from a checkpoint: what its terms were, image by image and parameter by parameter."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from biglearn_vae.checkpoint import State
from data.batch import Batch
from model.masks import Plan
from trainer.build import build_parts, micro_batches, step_inputs
from trainer.config import Config
from trainer.metrics.progress import progress
from trainer.ranks.world import World
from trainer.resume import identity, restore
from trainer.run_directory import RunDirectory


def replay(config: Config, world: World, run: RunDirectory, step: int) -> dict:
    """Make the steps from the newest checkpoint before `step` up to it again and look closely at the last one.

    step: counted from 1, as in metrics.jsonl. Nothing is written. On all ranks; returns

    images: of the sequence before the step. from_step: of the checkpoint (0: the initial weights).
    terms: what the engine measured. samples: for each image its position in the sequence, its index in the data set
    and its own terms, in fp32. gradient_norms: of each parameter on the rank where it is largest, in fp32.
    """
    parts = build_parts(config, world)
    shared = identity(config, parts.index, parts.codec)
    state = restore(parts, run.checkpoints, shared, before_step=step - 1) or State(identity=shared)
    images, plans = state.images, parts.copy.plans
    batches = micro_batches(parts.train_stream, config, images, parts.copy.groups, world)
    for number in progress(range(state.step, step), "replay", shown=world.is_main):
        plan, rates = step_inputs(config, plans, images, number)
        batches_of_step = next(batches)
        if number == step - 1:
            parts.copy.load_state_dict(parts.engine.full_state("weights")["weights"])
            samples, norms = look_closely(parts.copy, batches_of_step, plan, rates.beta)
        terms = parts.engine.step(batches_of_step, plan, rates)
        images += config.train.batch_size
    samples = [sample for of_rank in world.gather(samples) for sample in of_rank]
    indices = parts.train_stream.order(torch.tensor([sample["position"] for sample in samples]))
    for sample, index in zip(samples, indices.tolist(), strict=True):
        sample["index"] = index
    of_ranks = world.gather(norms)
    return {
        "step": step,
        "images": images - config.train.batch_size,
        "from_step": state.step,
        "terms": {name: value.item() for name, value in terms.items()},
        "samples": sorted(samples, key=lambda sample: sample["position"]),
        "gradient_norms": {name: max((of_rank[name] for of_rank in of_ranks), key=badness) for name in norms},
    }


def look_closely(
    task: nn.Module, batches: Sequence[Batch], plan: Plan, beta: float
) -> tuple[list[dict], dict[str, float]]:
    """The terms of each sample of this rank, and the norm of its gradient for each parameter, in fp32."""
    task.requires_grad_(True)
    samples = []
    for batch in batches:
        terms: dict[str, Tensor] = task.sample_terms(batch, plan, beta)
        columns = {"position": batch.index_B, **{name: value_B.detach() for name, value_B in terms.items()}}
        rows = zip(*(value_B.tolist() for value_B in columns.values()), strict=True)
        samples += [dict(zip(columns, row, strict=True)) for row in rows]
        loss, _ = task(batch, plan, beta)
        (loss / len(batches)).backward()
    norms = {name: p.grad.norm().item() for name, p in task.named_parameters()}
    task.zero_grad(set_to_none=True)
    task.requires_grad_(False)
    return samples, norms


def badness(value: float) -> float:
    """For sorting: nan is worse than any number."""
    return math.inf if math.isnan(value) else value
