"""What a person starts. Each script runs as `python launch/NAME.py` from the root of the repository."""

import os

# OpenMP's threads spin while they wait, and where the cores are shared (other ranks, other jobs) they spin the work
# away: a hundredfold slowdown was seen. Sleeping costs little. It is read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
