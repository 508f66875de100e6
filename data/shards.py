"""What was here is in data/prepare/."""

from data.moved import moved

__getattr__ = moved(__name__, "data.prepare")
