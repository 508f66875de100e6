"""What can be asked: fields and files of a request, read within limits, before anything of an image is decoded."""

import io
import math
import warnings
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.observation import Observation
from data.errors import printable
from data.sources.images import DamagedImageError
from data.sources.incomplete import decode_incomplete, decode_mask
from serving import jobs
from serving.jobs import Job, Work
from serving.served import Served

_SEED = Annotated[int, Field(0, ge=0, lt=2**63, description="of all draws")]
_FORMATS = ("PNG", "JPEG")
_SMALL_BYTES, _SMALL_PIXELS = 2**14, 2**16


@dataclass(frozen=True)
class Limits:
    """most_bytes: of a request. most_pixels: of an image that comes. most_images: that one request may ask for.

    body_s: seconds that a request may take to arrive.
    """

    most_bytes: int = 2**23
    most_pixels: int = 2**24
    most_images: int = 64
    body_s: float = 30.0


class RefusedError(Exception):
    """A request that is not answered. status: of HTTP."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def _of_base64(text: Any) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ValueError("give a PNG or JPEG file in base64")
    try:
        return a2b_base64(text.partition(",")[2] if text.startswith("data:") else text, strict_mode=True)
    except (Base64Error, ValueError):
        raise ValueError("this is no base64") from None


# A file, as base64 in JSON or as a part of a multipart form.
Picture = Annotated[
    Any,
    AfterValidator(_of_base64),
    Field(json_schema_extra={"type": "string", "contentEncoding": "base64"}, description="a PNG or JPEG file"),
]


class Question(BaseModel):
    """model: one of those that are served; may be left out where there is one."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None

    @property
    def is_small(self) -> bool:
        """Whether its files are so small that they are read within milliseconds, whatever they hold."""
        files = [value for _, value in self if isinstance(value, bytes)]
        return all(len(file) <= _SMALL_BYTES and math.prod(_header(file)) <= _SMALL_PIXELS for file in files)


class Incomplete(Question):
    """An image of which a part may be missing, by alpha 0 or by the mask."""

    image: Picture
    mask: Picture | None = Field(None, description="black where nothing is known, an image of the same shape")
    observed: Literal["all", "any"] = Field("all", description="which of the partly known patches count as known")

    def known(self, served: Served, limits: Limits, notes: list[str]) -> Observation:
        return _read(self.image, self.mask, served.vae, limits, notes, self.observed)


class Inpaint(Incomplete):
    """Several completions of an image of which a part is missing, by alpha 0 or by the mask."""

    work: ClassVar[Work] = staticmethod(jobs.inpaint)

    draws: int = Field(1, ge=1, description="completions")
    seed: _SEED = 0

    def job(self, served: Served, limits: Limits, notes: list[str]) -> Job:
        _require_few("draws", self.draws, limits)
        given = self.known(served, limits, notes)
        if given.observed_BL.all():
            notes.append("nothing of the image is missing")
        return Job(self.work, self.draws, (given,), self.seed)


class Infer(Inpaint):
    """From what is known of an image to its code z, and from z alone to whole images, for each draw of z."""

    work: ClassVar[Work] = staticmethod(jobs.infer)


class Fill(Incomplete):
    """What is missing, filled by each way there is, the closed-form Gaussian and the mean image among them."""

    def job(self, served: Served, limits: Limits, notes: list[str]) -> Job:
        if served.fillers is None:
            raise RefusedError(422, "this model is served without other ways to fill")
        if not served.fillers.done():
            raise RefusedError(503, "the training images are being read, for the Gaussian and its like: ask again")
        names = tuple(served.fillers.result())
        return Job(served.fill, len(names), (self.known(served, limits, notes),), names=names)


class Generate(Question):
    """New images."""

    count: int = Field(1, ge=1, description="images")
    seed: _SEED = 0

    def job(self, served: Served, limits: Limits, notes: list[str]) -> Job:
        _require_few("count", self.count, limits)
        return Job(jobs.generate, self.count, (), self.seed)


class Encode(Incomplete):
    """p(z | x_S): mean and log variance of the code of an image, of which a part may be missing."""

    def job(self, served: Served, limits: Limits, notes: list[str]) -> Job:
        return Job(jobs.encode, 1, (self.known(served, limits, notes),))


class Read(Incomplete):
    """An image as the model takes it: cut and resized, alpha 0 where nothing is known."""

    def job(self, served: Served, limits: Limits, notes: list[str]) -> Job:
        return Job(jobs.read, 1, (self.known(served, limits, notes),))


class Interpolate(Question):
    """From an image to another one, along the line between their codes."""

    image: Picture
    other: Picture
    steps: int = Field(8, ge=1, description="images, both ends among them")

    def job(self, served: Served, limits: Limits, notes: list[str]) -> Job:
        _require_few("steps", self.steps, limits)
        given = tuple(_read(each, None, served.vae, limits, notes) for each in (self.image, self.other))
        return Job(jobs.interpolate, self.steps, given)


def parse(question: type[Question], values: bytes | dict[str, Any]) -> Question:
    """From the body of a request, JSON, or the parts of a form. RefusedError that names the field."""
    try:
        return question.model_validate_json(values) if isinstance(values, bytes) else question.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    what = fault["msg"].removeprefix("Value error, ")
    known = f"; known are {', '.join(question.model_fields)}" if fault["type"] == "extra_forbidden" else ""
    raise RefusedError(422, printable(f"{where}: {what}{known}" if where else what, 300))


def as_png(image_HWC: torch.Tensor) -> str:
    """An image in [0, 1], clipped to it, as a PNG file in base64."""
    content = io.BytesIO()
    pixels_HWC = (image_HWC.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels_HWC).save(content, "png")
    return b64encode(content.getvalue()).decode()


def _require_few(name: str, count: int, limits: Limits) -> None:
    if count > limits.most_images:
        raise RefusedError(422, f"{name}: {count} are more than {limits.most_images}: ask again for the others")


def _read(
    image: bytes,
    mask: bytes | None,
    vae: BigLearnVAE,
    limits: Limits,
    notes: list[str],
    observed: Literal["all", "any"] = "all",
) -> Observation:
    """What is known of an image. notes: gets what was done to it that its sender may not expect."""
    size = vae.description.data.image_size
    width, height = _size_of("image", image, limits)
    try:
        image_HWC = decode_incomplete(image, size)
    except DamagedImageError as error:
        raise RefusedError(422, f"image: {error}") from None
    if (width, height) != (size, size):
        notes.append(f"the image was cut to its centre square and resized, {width}x{height} to {size}x{size} pixels")
    known_HW = None
    if mask is not None:
        if _size_of("mask", mask, limits) != (width, height):
            raise RefusedError(422, "mask: it has another size than the image")
        try:
            known_HW, _, _ = decode_mask(mask, size)
        except DamagedImageError as error:
            raise RefusedError(422, f"mask: {error}") from None
    seen_HW = ~np.isnan(image_HWC).any(-1) & (True if known_HW is None else known_HW)
    given = vae.observe(image_HWC[None], None if known_HW is None else seen_HW, observed)
    if not given.observed_BL.any():
        notes.append("nothing of the image is known")
    if dropped := given.dropped_pixels:
        notes.append(f"{dropped} known pixels lie in partly known patches, which the model does not see")
    return given


def _size_of(name: str, content: bytes, limits: Limits) -> tuple[int, int]:
    width, height = _header(content)
    if not width * height:
        raise RefusedError(422, f"{name}: no {' or '.join(_FORMATS)} file")
    if width * height > limits.most_pixels:
        raise RefusedError(413, f"{name}: it has more than {limits.most_pixels:,} pixels")
    return width, height


def _header(content: bytes) -> tuple[int, int]:
    """Width and height that the header of an image file says; 0 of what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                return image.size
    except Image.DecompressionBombError:
        return 2**31, 1
    except Exception:  # PIL's errors on damaged files are many
        return 0, 0
