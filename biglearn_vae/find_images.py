"""The data that a model was trained on, wherever the run or the export lies now, and where it is used from."""

import logging
import os
from pathlib import Path

from biglearn_vae.export import Description
from biglearn_vae.images import open_index
from biglearn_vae.trained import run_of
from data.errors import UserError
from data.read.config import DataConfig
from data.read.index import prepare_command
from data.read.stream import ImageIndex
from data.storage.addresses import TARS
from data.storage.storage import scheme_of

log = logging.getLogger(__name__)


def open_images(
    description: Description, model: str | Path, shards: str | None = None
) -> tuple[DataConfig, ImageIndex]:
    """The images of a model, with the folder where they are, for `open_stream`.

    model: the path that it was loaded from. shards: the folder that a person names, where one may mean other images,
    which a warning says; None: as `find_data`, the images of the training and no others. UserError when they are not
    there or cannot be the model's.
    """
    data = find_data(description.data, model, shards)
    index = open_index(data)
    if description.data_checksum not in (None, index.checksum):
        others = f"{data.shards} holds other images than those that the model was trained with"
        if not shards:
            raise UserError(f"{others}: give their folder with --shards DIR; or this one, if you mean these images")
        log.warning("%s", others)
    return data, index


def find_data(
    data: DataConfig,
    model: str | Path,
    shards: str | None = None,
    *,
    needed: tuple[str, ...] = ("shards",),
    option: str = "--{} DIR",
) -> DataConfig:
    """data with the folders where they are: shards, where a person names it, and else all that can be found.

    A relative one is looked for in the working folder, then in the one where the run was last started, then in the
    folder of the model and upwards from it; the first that exists is taken. needed: the keys of those without which
    nothing goes, UserError if one is nowhere; option: what says where it is. Others that are nowhere stay as they are.
    """
    if shards:
        return data.model_copy(update={"shards": shards, "index": None})
    places, found = _places(Path(model)), {}
    of_images = "index" if data.source == TARS else "shards"
    needed = tuple(of_images if key == "shards" else key for key in needed)
    data = data.model_copy(update={of_images: data.index_folder})
    for key in (of_images, "latents", "patch_autoencoder"):
        if (folder := getattr(data, key)) and scheme_of(folder) is None:
            found[key] = next((str(place / folder) for place in places if os.path.exists(place / folder)), folder)
            if key in needed and not os.path.exists(found[key]):
                nor = "" if Path(folder).is_absolute() else f" here, nor in {', '.join(map(str, places[1:]))}"
                write = f", or write the shards with {prepare_command(data.source, folder)}" if key == "shards" else ""
                raise UserError(f"{folder} does not exist{nor}: say where it is now with {option.format(key)}{write}")
    return data.model_copy(update=found)


def _places(model: Path) -> list[Path]:
    """The folders from which a relative path in the configuration of a model may be meant."""
    run = run_of(model)
    folder, started_in = run.path.resolve(), run.record().started_in
    return [Path(), *([Path(started_in)] if started_in else []), folder, *folder.parents]
