"""Checkpoints while training: written beside the steps, and gone on from."""
