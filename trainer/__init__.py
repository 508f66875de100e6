"""Configuration, the training loop, engines, checkpoints, metrics, evaluation and pictures."""
