"""What a training can prepare itself, in seconds: embedded images, and the index of tar files."""

import os

from data.prepare.writing import prepare
from data.read.config import DataConfig
from data.sources import SOURCES
from data.storage.addresses import TARS
from data.storage.storage import is_there
from data.tars.indexing import index_tars
from data.tars.manifest import MANIFEST_NAME


def is_prepared_at_once(data: DataConfig) -> bool:
    """Whether the images are not prepared, and `prepare_at_once` will do so."""
    if data.source == TARS:
        return not is_there(data.index_folder, MANIFEST_NAME)
    return SOURCES[data.source].embedded and not is_there(data.shards)


def prepare_at_once(data: DataConfig) -> None:
    """Write what is missing, and say so; other data sets are left to a person. UserError as from what writes it."""
    if not is_prepared_at_once(data):
        return
    if data.source == TARS:
        print(f"{data.index_folder} has no index; making it from the headers of {data.shards}")
        index_tars(
            data.shards,
            data.index_folder,
            test_shards=data.test_shards,
            label_field=data.label_field,
            workers=len(os.sched_getaffinity(0)),
        )
    else:
        print(f"{data.shards} is absent; writing it from the images that come with scikit-learn")
        prepare(data.source, data.shards, image_size=data.image_size)
