"""Runs on a cluster with SLURM: submit them, look at them, cancel them, by the name of their directories."""
