"""From images as people have them to a folder of shards: `from data.prepare import prepare`."""

__all__ = ["prepare"]


def __getattr__(name: str):
    """Imported when it is asked for: webdataset takes seconds, and a mistake in a command answers at once."""
    if name != "prepare":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from data.prepare.writing import prepare

    return prepare
