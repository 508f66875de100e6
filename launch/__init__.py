"""What a person starts. Each script runs as `python launch/NAME.py` from the root of the repository."""
