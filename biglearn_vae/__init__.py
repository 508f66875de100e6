"""What a trained model can do, and the files in which it is kept: `from biglearn_vae import BigLearnVAE, observe`."""

import importlib
from pathlib import Path

__all__ = ["BigLearnVAE", "observe"]

_ROOT = Path(__file__).resolve().parents[1]
for _name in ("data", "model"):  # a person's own folders may be called so
    _found = importlib.import_module(_name)
    _places = [Path(place).resolve() for place in _found.__path__]
    if _places != [_ROOT / _name]:
        raise ImportError(f"{_places[0]} stands before the package {_name} of BigLearn-VAE: start in another folder")


def __getattr__(name: str):
    """Imported when it is asked for: torch takes seconds, and a look at a run's folder does not need it."""
    if name == "BigLearnVAE":
        return importlib.import_module("biglearn_vae.capabilities").BigLearnVAE
    if name == "observe":
        return importlib.import_module("biglearn_vae.observation").observe
    raise AttributeError(f"module {__name__} has no attribute {name}")
