"""What the sections of a configuration have in common."""

from pydantic import BaseModel


class Section(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Unknown keys, and numbers that are not finite, are refused; values never change."""
