"""From a configuration to the parts of a run."""

import torch
from torch import nn

from model.biglearn import BigLearnVAE
from model.patch_autoencoder import PatchAutoencoder
from model.task import BigLearnTask, PatchAETask
from trainer.config import Config
from trainer.engine import Engine
from trainer.world import World


def build_task(config: Config) -> nn.Module:
    """The model with its objective, initialised from the seed."""
    torch.manual_seed(config.seed)
    if config.method == "patch_ae":
        return PatchAETask(PatchAutoencoder())
    model = BigLearnVAE(config.model, config.method, config.data.token_dim, config.data.patches)
    return BigLearnTask(model, config.objective, config.seed)


def build_engine(config: Config, task: nn.Module, world: World) -> Engine:
    """The engine that `engine.name` asks for; it takes ownership of `task`.

    An engine is imported when it is asked for: DeepSpeed and Accelerate need not both be there.
    """
    task = task.to(world.device)
    if config.engine.name == "accelerate":
        from trainer.accelerate_engine import AccelerateEngine

        return AccelerateEngine(config.engine, config.optimizer, task, world, config.train.max_grad_norm)
    from trainer.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        config.engine,
        config.optimizer,
        task,
        world,
        micro_batch_size=config.micro_batch_size(world.size, task.groups),
        accumulation_steps=config.train.accumulation_steps,
        max_grad_norm=config.train.max_grad_norm,
    )
