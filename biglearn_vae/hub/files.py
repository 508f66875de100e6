"""What lies beside the weights in a model repository: of it an export replaces what an export wrote, nothing else."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from data.errors import UserError
from data.files import write_aside

CARD, PREVIEW, ENCODER, DECODER = "README.md", "preview.png", "encoder.onnx", "decoder.onnx"
_MARK, _END = "\n<!-- Written by BigLearn-VAE, SHA-256: ", " -->\n"  # ends a card


def require_replaceable(folder: Path) -> None:
    """UserError where a file of these names is there that no export wrote, or that was changed since."""
    written = _written(folder)
    for path in (folder / name for name in (CARD, PREVIEW, ENCODER, DECODER)):
        if os.path.lexists(path) and not (path.name in written and _sha256(path) == written[path.name]):
            raise UserError(f"{path} is no export's, or was edited since: move it away, or choose another --out")


def write_beside(folder: Path, card: str, files: Mapping[str, bytes]) -> None:
    """Write the card and these files in place of all that an export before wrote. UserError as above."""
    require_replaceable(folder)
    for name in (CARD, PREVIEW, ENCODER, DECODER):
        (folder / name).unlink(missing_ok=True)
    contents = {CARD: card.encode(), **files}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[CARD] += f"{_MARK}{json.dumps(digests)}{_END}".encode()
    for name, content in contents.items():
        write_aside(folder / name, content)


def _written(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file as it was written, of the card without its last line, which says them."""
    try:
        digests = json.loads(_parts(folder / CARD)[1])
    except (OSError, ValueError, RecursionError):
        return {}
    return digests if isinstance(digests, dict) else {}


def _sha256(path: Path) -> str | None:
    """None of what cannot be read as a file."""
    try:
        if path.name == CARD:
            return hashlib.sha256(_parts(path)[0]).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _parts(card: Path) -> tuple[bytes, bytes]:
    """The text of a card, and what its mark holds."""
    text, _, mark = card.read_bytes().rpartition(_MARK.encode())
    return text, mark.removesuffix(_END.encode())
