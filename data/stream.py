"""What was here is in data/read/stream.py."""

from data.moved import moved

__getattr__ = moved(__name__, "data.read.stream")
