"""AdamW, its average, and the schedule."""

import pytest
import torch
from torch import nn

from trainer.optimizer import AdamWithAverage, OptimizerConfig, ScheduleConfig, ema_decay, learning_rate


def train(optimizer, module, steps, set_rates):
    """The parameters after each step."""
    torch.manual_seed(0)
    for step in range(steps):
        set_rates(step)
        optimizer.zero_grad()
        module(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        yield [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.95)])
def test_steps_are_those_of_adamw_with_decay_on_matrices_alone(betas):
    config = OptimizerConfig(weight_decay=0.1, beta1=betas[0], beta2=betas[1])
    torch.manual_seed(1)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamWithAverage(ours, config)
    optimizer.create_state(ours.parameters())
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.02, betas=betas, eps=1e-8)
    our_steps = list(train(optimizer, ours, 5, lambda step: optimizer.set_rates(0.02, 0.5)))
    for mine, others in zip(our_steps, train(reference, theirs, 5, lambda step: None), strict=True):
        torch.testing.assert_close(mine, others)


def test_the_average_is_the_recursion():
    torch.manual_seed(1)
    module = nn.Linear(4, 3)
    optimizer = AdamWithAverage(module, OptimizerConfig())
    optimizer.create_state(module.parameters())
    expected, decays = module.weight.detach().clone(), [0.3, 0.5, 0.9]
    for step, (weight, _) in enumerate(train(optimizer, module, 3, lambda s: optimizer.set_rates(0.1, decays[s]))):
        expected = decays[step] * expected + (1 - decays[step]) * weight
        torch.testing.assert_close(optimizer.state[module.weight]["ema"], expected)


def test_rates_that_a_graph_reads_stay_where_they_are():
    """As tensors, which alone a recorded step sees change; to the rounding of the rate they give the same steps."""
    rates = [(0.1, 0.3), (0.02, 0.9), (0.05, 0.6)]

    def made(capturable):
        torch.manual_seed(1)
        module = nn.Linear(4, 3)
        optimizer = AdamWithAverage(module, OptimizerConfig(), capturable=capturable)
        optimizer.create_state(module.parameters())
        before = [(group["lr"], group["ema_share"]) for group in optimizer.param_groups]
        steps = list(train(optimizer, module, 3, lambda step: optimizer.set_rates(*rates[step])))
        if capturable:
            for tensors, group in zip(before, optimizer.param_groups, strict=True):
                assert group["lr"] is tensors[0]
                assert group["ema_share"] is tensors[1]
                assert [tensor.item() for tensor in tensors] == pytest.approx([0.05, 0.4])
        return [*steps, [optimizer.state[p]["ema"] for p in module.parameters()]]

    torch.testing.assert_close(made(True), made(False))


def test_half_life_of_the_average_is_in_images_and_ramps_up():
    config = OptimizerConfig(ema_halflife_images=1000, ema_rampup=0.05)
    assert ema_decay(config, images=0, batch_size=100) == 0  # the first step copies the weights
    assert ema_decay(config, images=2000, batch_size=100) == pytest.approx(0.5)
    assert ema_decay(config, images=10**6, batch_size=100) ** 10 == pytest.approx(0.5)
    assert ema_decay(OptimizerConfig(ema_halflife_images=0), images=10**6, batch_size=100) == 0


def test_schedule():
    optimizer = OptimizerConfig(learning_rate=2.0)

    def rate(images, **schedule):
        return learning_rate(optimizer, ScheduleConfig(**schedule), images, batch_size=10, total_images=1000)

    assert rate(500) == 2.0
    assert [rate(images, warmup_images=100) for images in (0, 40, 90, 100)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    cosine = {"name": "cosine", "warmup_images": 100, "final_share": 0.1}
    assert rate(100, **cosine) == 2.0
    assert rate(550, **cosine) == pytest.approx(1.1)
    assert rate(1000, **cosine) == pytest.approx(0.2)
