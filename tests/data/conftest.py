import pytest

from data.prepare import prepare


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """(index, folder) of the digits in records of 100 images, 4 records a shard. Copy it to change it."""
    root = tmp_path_factory.mktemp("digits")
    return prepare("digits", root, record_images=100, shard_records=4, progress=False), root
