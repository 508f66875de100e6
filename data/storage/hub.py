"""Files of a model repository of the Hugging Face hub, on this disk."""

from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError, printable


def download(repository: str, names: Sequence[str]) -> Path:
    """The folder with the files of these names, as the repository OWNER/NAME has them now.

    Nothing else is fetched, and nothing executed. What was fetched before is not fetched again, and serves when the hub
    cannot be reached. UserError when huggingface_hub is not installed, and when there is nothing to be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: install what fetches models with `pip install 'biglearn-vae[hub]'`") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=[*names]))
    except Exception as error:  # of huggingface_hub, of its HTTP library, of hf_xet: they share no class
        cause = printable(str(error).partition("\n")[0]) or type(error).__name__
        raise UserError(
            f"{printable(repository)} is no folder here, and the hub does not give it ({cause}): give a folder, or the"
            " OWNER/NAME of a model repository that you may read, and see to the network"
        ) from None
