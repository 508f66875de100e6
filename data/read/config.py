"""The `data` section of a configuration."""

import hashlib
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data.errors import UserError
from data.order.holdout import HOLDOUT
from data.read.index import require_folder_path
from data.section import Section
from data.sources import SOURCES
from data.storage.addresses import TARS, require_addresses


class DataConfig(Section):
    """Which images are read, from where and how they are cut into tokens."""

    # Name of the data set, as `python launch/prepare.py --help` lists them.
    source: str
    # Folder or address with the shards of the images and their index.json, which every process must see; for the source
    # webdataset the tar files themselves, as s3://bucket/train-{00000..00099}.tar, and :: between several.
    shards: str = Field(default_factory=lambda values: f"datasets/{values.get('source')}")
    # Of webdataset: the tar files to test with; null keeps back one image of 50 of the others.
    test_shards: str | None = None
    # Of webdataset: the field of the JSON of an image that holds its label; null takes the member cls, or 0.
    label_field: str | None = None
    # Of webdataset: folder or address of the index; null: datasets/webdataset-..., by what is indexed.
    index: str | None = None
    # Folder for parts of files from elsewhere, shared by the processes of a node; null: below ~/.cache.
    cache: str | None = None
    # What it holds at most, bytes, and never more than half of what is free; 0 keeps nothing.
    cache_bytes: int = Field(2**35, ge=0)
    # Side of the square images, pixels.
    image_size: int = Field(32, gt=0)
    # Side of a square patch, pixels.
    patch_size: int = Field(4, gt=0)
    # A split of at most so many bytes, uint8 pixels or float16 codes, stays in memory. Images of a larger one are read
    # when they are due: at random from our shards on a disk, else by blocks of neighbours, in an order woven of them.
    memory_bytes: int = Field(2**31, ge=0)
    # Damaged images of one split that a run accepts, each replaced by a sound one; more stop the run.
    max_damaged: int = Field(100, ge=0)
    # Training images that are not trained on but looked at in the place of the test images; the same for any seed.
    holdout: int = Field(0, ge=0)
    # Whether half of the training images, other ones in each epoch, are mirrored left to right. Of codes that are
    # encoded ahead it needs those of launch/encode.py --flip.
    flip: bool = False
    # Of each training image a square is shown, at random each time: at least this share of its side, enlarged; 1: all.
    crop: float = Field(1.0, gt=0, le=1)
    # Threads that read batches ahead; 0 reads in the training loop.
    workers: int = Field(2, ge=0)
    # Width of a PatchAE code when the tokens are codes; null when they are the pixels of patches.
    code_dim: int | None = Field(None, gt=0)
    # Where codes come from: latent shards, encoded ahead, or from the images each time they are read.
    encode: Literal["ahead", "on_the_fly"] = "ahead"
    # Folder of the latent shards and of codec.safetensors, which encoding on the fly needs as well.
    latents: str = Field(default_factory=lambda values: f"{_index_folder(**values).rstrip('/')}_latents")
    # The run of stage 1. Where it is there, the latents must be codes of its PatchAE; null takes those of any.
    patch_autoencoder: str | None = None

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in (*SOURCES, TARS):
            raise ValueError(f"no data set is called {source!r}; known are {', '.join((*SOURCES, TARS))}")
        return source

    @field_validator("shards", "test_shards", "latents", "index")
    @classmethod
    def _folder(cls, folder: str | None, info: ValidationInfo) -> str | None:
        if folder in ("", "~"):
            raise ValueError("Input should be a folder")
        if folder is None:
            return None
        is_files = info.data.get("source") == TARS and info.field_name in ("shards", "test_shards")
        try:
            (require_addresses if is_files else require_folder_path)(folder)
        except UserError as error:
            raise ValueError(str(error)) from None
        return folder

    @model_validator(mode="after")
    def _of_tars(self) -> "DataConfig":
        for key in ("test_shards", "label_field", "index"):
            if self.source != TARS and getattr(self, key) is not None:
                raise ValueError(f"{key} belongs to data.source {TARS}, not to {self.source}")
        return self

    @model_validator(mode="after")
    def _whole_patches(self) -> "DataConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        return self

    @model_validator(mode="after")
    def _of_pixels(self) -> "DataConfig":
        if self.crop < 1 and self.code_dim and self.encode == "ahead":
            raise ValueError("crop changes pixels, not codes of whole images: set data.encode=on_the_fly")
        return self

    @property
    def has_views(self) -> bool:
        """Whether training images are shown in other ways than they lie in the files."""
        return self.flip or self.crop < 1

    @property
    def index_folder(self) -> str:
        """Where the index of the images is: with the shards, or beside them where these are not ours."""
        return _index_folder(self.source, self.shards, self.test_shards, self.label_field, self.index)

    @property
    def patches(self) -> int:
        """L: tokens of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def evaluated_split(self) -> str:
        """What a run evaluates and draws: the split "test", or "holdout" where images are held out."""
        return HOLDOUT if self.holdout else "test"

    @property
    def token_dim(self) -> int:
        """D: width of one token, 3 * patch_size^2 values in [0, 1] or a standardised code."""
        return self.code_dim or 3 * self.patch_size**2


def _index_folder(
    source: str = "",
    shards: str = "",
    test_shards: str | None = None,
    label_field: str | None = None,
    index: str | None = None,
    **_,
) -> str:
    if source != TARS:
        return shards
    asked = "\0".join(map(str, (shards, test_shards, label_field)))
    return index or f"datasets/{TARS}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
