"""What a person starts. Each script runs as `python launch/NAME.py` from the root of the repository."""

import os

# OpenMP's threads spin while they wait for one another, by default for milliseconds: where cores are shared with
# other ranks or jobs, that spins the work away. After 10,000 rounds (some 20 microseconds) they sleep: the same
# speed on idle cores, and many times the speed on shared ones. libgomp reads this when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
