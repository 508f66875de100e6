"""What was here is in data/sources/samples.py."""

from data.moved import moved

__getattr__ = moved(__name__, "data.sources.samples")
