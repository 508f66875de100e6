"""From images as people have them to a folder of shards: `from data.prepare import prepare`."""

from data.prepare.writing import prepare

__all__ = ["prepare"]
