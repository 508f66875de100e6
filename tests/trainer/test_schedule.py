"""What changes while a run goes on, as pure functions of the images seen."""

import pytest

from model.objective import ObjectiveConfig
from trainer.engines.optimizers.config import OptimizerConfig
from trainer.engines.schedule import ScheduleConfig, beta_at, ema_decay, learning_share


def shares(images, **schedule):
    return [learning_share(ScheduleConfig(**schedule), n, batch_size=10, total_images=1000) for n in images]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
def test_rates_rise_linearly_first_and_the_first_step_has_one(name):
    decay = {"decay_images": 100} if name == "wsd" else {}
    assert shares([0, 40, 90, 100], name=name, warmup_images=100, **decay) == pytest.approx([0.1, 0.5, 1, 1])
    assert shares([0], name=name, **decay) == [1.0]


@pytest.mark.parametrize("wrong", [{"name": "wsd"}, {"name": "cosine", "decay_images": 100}])
def test_a_decay_without_its_length_and_a_length_without_its_decay_are_refused(wrong):
    with pytest.raises(ValueError, match="give both or neither"):
        ScheduleConfig(**wrong)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1]),
        ({"name": "cosine", "final_share": 0.1}, [1, 0.55, 0.1, 0.1]),
        ({"name": "linear"}, [1, 0.5, 0, 0]),
        ({"name": "linear", "final_share": 0.2}, [1, 0.6, 0.2, 0.2]),
        ({"name": "wsd", "decay_images": 900}, [1, 0.5, 0, 0]),
        ({"name": "wsd", "decay_images": 450}, [1, 1, 0, 0]),
        ({"name": "wsd", "decay_images": 225, "final_share": 0.5}, [1, 1, 0.5, 0.5]),
    ],
)
def test_then_they_fall_to_the_final_share_at_the_end(schedule, expected):
    assert shares([100, 550, 1000, 1500], warmup_images=100, **schedule) == pytest.approx(expected)


def test_beta_grows_by_a_constant_factor_between_its_shares_of_the_run():
    objective = ObjectiveConfig(beta=0.04, beta_start=0.01, beta_range=(0.25, 0.75))
    found = [beta_at(objective, n, 400) for n in (0, 100, 200, 300, 10**9)]
    assert found == pytest.approx([0.01, 0.01, 0.02, 0.04, 0.04])
    assert beta_at(objective, 300, 400) == 0.04  # exactly what evaluation uses
    assert beta_at(ObjectiveConfig(beta=0.04), 0, 400) == 0.04
    at_once = ObjectiveConfig(beta=0.04, beta_start=0.01, beta_range=(0.25, 0.25))
    assert [beta_at(at_once, n, 400) for n in (99, 100)] == [0.01, 0.04]


@pytest.mark.parametrize("wrong", [{"beta_range": (0.7, 0.3)}, {"beta": 0.0}])
def test_beta_that_cannot_grow_is_refused(wrong):
    with pytest.raises(ValueError, match="give them in order, and beta > 0"):
        ObjectiveConfig(**{"beta": 0.04, "beta_start": 0.01, "beta_range": (0.3, 0.7)} | wrong)


def test_half_life_of_the_average_is_in_images_and_ramps_up():
    config = OptimizerConfig(ema_halflife_images=1000, ema_rampup=0.05)
    assert ema_decay(config, images=0, batch_size=100) == 0  # the first step copies the weights
    assert ema_decay(config, images=2000, batch_size=100) == pytest.approx(0.5)
    assert ema_decay(config, images=10**6, batch_size=100) ** 10 == pytest.approx(0.5)
    assert ema_decay(OptimizerConfig(ema_halflife_images=0), images=10**6, batch_size=100) == 0
