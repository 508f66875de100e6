"""Where figures were measured, and with which code."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def machine(*packages: str, device: str = "cpu") -> dict:
    """hardware, versions of Python and of the packages, and the revision of this checkout, for a row of results."""
    information = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)", information.read_text(), re.MULTILINE) if information.exists() else None
    processor = f"{named[1] if named else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    revision = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else processor,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "revision": revision.stdout.strip() or None,
    }
