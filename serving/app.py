"""The routes of the service. A request is refused as early as it can be, with a plain reason: {"error": "..."}."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from biglearn_vae.capabilities import BigLearnVAE
from data.errors import UserError, printable
from serving.batches import Batcher, FullError
from serving.jobs import Job
from serving.metrics import Metrics
from serving.questions import (
    Encode,
    Fill,
    Generate,
    Infer,
    Inpaint,
    Interpolate,
    Limits,
    Question,
    Read,
    RefusedError,
    as_png,
    parse,
)
from serving.served import Fillers, Served

QUESTIONS: dict[str, type[Question]] = {
    "inpaint": Inpaint,
    "infer": Infer,
    "generate": Generate,
    "encode": Encode,
    "interpolate": Interpolate,
    "fill": Fill,
    "read": Read,
}
_FILES, _FIELDS = 2, 8  # of a form
_RETRY_S = 1
_SMALL_VALUES = 2**16  # of images, which are written within some milliseconds
_DECODED_AT_ONCE = 2  # requests, whose images may take hundreds of megabytes each
_COUNTED_FROM_0 = (200, 429, 500)  # or Prometheus would take the first for none: it sees increases


class Service:
    """models: by the names that requests give. token: what requests must carry, if not None.

    fillers: other ways to fill what is missing, by the names of the models, for POST /v1/fill; as futures, of which one
    that fails has a UserError.
    """

    def __init__(
        self,
        models: Mapping[str, BigLearnVAE],
        *,
        limits: Limits | None = None,
        batch_images: int = 64,
        wait_s: float = 0.005,
        most_waiting: int = 1024,
        token: str | None = None,
        fillers: Mapping[str, Future[Fillers]] | None = None,
    ):
        self._models = {name: Served(vae, (fillers or {}).get(name)) for name, vae in models.items()}
        self._limits, self._token = limits or Limits(), token
        self._metrics, self._is_ready = Metrics(), False
        self._how = {"most_images": batch_images, "wait_s": wait_s, "most_waiting": most_waiting}
        self._batchers: dict[str, Batcher] = {}
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)

    def app(self) -> FastAPI:
        app = FastAPI(
            title="BigLearn-VAE",
            description="A model in-paints, generates, encodes and interpolates. Images: PNG or JPEG files in base64.",
            lifespan=self._lifespan,
        )
        for name, question in QUESTIONS.items():
            self._add(app, name, question)
        app.get("/v1/models", summary="The models, and the images that they are of")(self._list)
        app.get("/healthz", summary="Whether the process answers")(lambda: {"status": "ok"})
        app.get("/readyz", summary="Whether models are there to be asked")(self._ready)
        app.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)(self._show_metrics)
        app.exception_handler(HTTPException)(_plain)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        for name, served in self._models.items():
            took = self._metrics.batch_images.labels(name).observe
            self._batchers[name] = batcher = Batcher(served.vae, **self._how, took=took)
            self._metrics.waiting_images.labels(name).set_function(lambda batcher=batcher: batcher.waiting_images)
            self._metrics.most_waiting_images.labels(name).set(self._how["most_waiting"])
        self._is_ready = True
        yield
        self._is_ready = False
        for batcher in self._batchers.values():
            await asyncio.to_thread(batcher.close)

    def _add(self, app: FastAPI, name: str, question: type[Question]) -> None:
        for status in _COUNTED_FROM_0:
            self._metrics.requests.labels(name, status)

        async def route(request: Request) -> Response:
            status, came = 500, None
            try:
                self._require_token(request)
                values = await self._body(request)
                came = time.perf_counter()
                content, status = await self._answer(parse(question, values)), 200
            except RefusedError as error:
                content, status = {"error": str(error)}, error.status
            except ClientDisconnect:
                content, status = {"error": "the client has left"}, 499
            finally:
                self._metrics.requests.labels(name, status).inc()
                if came is not None:  # what a client takes to send is not of the service
                    self._metrics.seconds.labels(name).observe(time.perf_counter() - came)
            headers = {"Retry-After": str(_RETRY_S)} if status in (429, 503) else {}
            return JSONResponse(content, status, headers)

        schema = question.model_json_schema()
        kinds = ("application/json", "multipart/form-data")
        described = {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in kinds}}}
        first_line = (question.__doc__ or "").partition("\n")[0]
        app.post(f"/v1/{name}", summary=first_line, openapi_extra=described)(route)

    async def _answer(self, question: Question) -> dict[str, Any]:
        names = ", ".join(self._models)
        if question.model is None and len(self._models) > 1:
            raise RefusedError(422, f"model: give one of {names}")
        name = question.model or names
        if name not in self._models:
            raise RefusedError(422, f"model: {printable(name)} is none of {names}")
        notes: list[str] = []
        batcher = self._batchers[name]
        try:
            batcher.require_room()
            read = partial(question.job, self._models[name], self._limits, notes)
            if question.is_small:
                job = read()  # a thread would cost more
            else:
                async with self._decoding:
                    job = await asyncio.to_thread(read)
            result = await asyncio.wrap_future(batcher.submit(job))
        except FullError:
            raise RefusedError(429, "too many images wait: ask again in a second") from None
        except UserError as error:
            raise RefusedError(422, str(error)) from None
        is_small = result.numel() <= _SMALL_VALUES
        return {**(_shown(job, result) if is_small else await asyncio.to_thread(_shown, job, result)), "notes": notes}

    async def _body(self, request: Request) -> bytes | dict[str, Any]:
        """What a request holds, no more of it than it may; before anything is decoded."""
        most = self._limits.most_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise RefusedError(413, f"more than {most:,} bytes")
        content = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in request.stream():
                    content += part
                    if len(content) > most:
                        raise RefusedError(413, f"more than {most:,} bytes")
        except TimeoutError:
            raise RefusedError(408, f"the request did not arrive within {self._limits.body_s:g} seconds") from None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            return bytes(content)
        return await _form(Request(request.scope, _again(bytes(content))))

    def _require_token(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise RefusedError(401, "give the token of this service: Authorization: Bearer ...")

    def _list(self) -> dict[str, Any]:
        def described(served: Served) -> dict[str, Any]:
            of, data = served.vae.description, served.vae.description.data
            seen = {"images_seen": of.images, "data_checksum": of.data_checksum}
            size = {"image_size": data.image_size, "patch_size": data.patch_size, "latent_dim": of.model.latent_dim}
            can = {"is_conditional": served.vae.method.is_conditional, "fills": served.fillers is not None}
            return {"method": of.method, "source": data.source, **seen, **size, **can}

        return {"models": {name: described(served) for name, served in self._models.items()}}

    def _ready(self) -> JSONResponse:
        return JSONResponse({"status": "ready" if self._is_ready else "ending"}, 200 if self._is_ready else 503)

    def _show_metrics(self) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _form(request: Request) -> dict[str, Any]:
    try:
        async with request.form(max_files=_FILES, max_fields=_FIELDS) as form:
            found = {}
            for name, value in form.multi_items():
                if name in found:
                    raise RefusedError(422, f"{printable(name)}: stands twice in the form")
                found[name] = value if isinstance(value, str) else await value.read()
            return found
    except (MultiPartException, HTTPException, ValueError, KeyError) as error:
        reason = getattr(error, "detail", None) or getattr(error, "message", None) or "it is no form"
        raise RefusedError(422, printable(str(reason), 200)) from None


def _again(content: bytes):
    """A body that has been read, to be read by a parser."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _shown(job: Job, result: torch.Tensor) -> dict[str, Any]:
    """The answer to a job."""
    if result.dim() == 2:
        mu_Z, logvar_Z = result.tolist()
        return {"mu": mu_Z, "logvar": logvar_Z}
    names = {"names": list(job.names)} if job.names else {}
    return {"images": [as_png(image_HWC) for image_HWC in result], **names}


async def _plain(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
