"""What was here is in biglearn_vae/."""

from data.moved import moved

__getattr__ = moved(__name__, "biglearn_vae.capabilities")
