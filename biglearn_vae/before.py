"""What stood in the place of a key before there was one, so that runs and checkpoints of before stay what they were."""

OF_BEFORE = {  # by dotted key
    "data.holdout": 0,
    "model.input_scale": 1.0,
    "model.residual_init": "xavier",
    "objective.beta_start": None,
    "objective.connected_share": 0.0,
    "objective.beta_range": [0.3, 0.7],
    "optimizer.name": "adamw",
}


def add_values_of_before(values: dict) -> None:
    """To the sections of a configuration that a run wrote down, with every key that there was."""
    for dotted, value in OF_BEFORE.items():
        section, key = dotted.split(".")
        if isinstance(values.get(section), dict):
            values[section].setdefault(key, value)
