"""The page: a few static files, and the images that it offers. All else it asks of the service."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.questions import as_png

_STATIC = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing from elsewhere is loaded, and no other site may show the page in a frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI, images: Mapping[str, Sequence[torch.Tensor]], hosts: Collection[str] | None = None) -> None:
    """images: to begin with, (H, W, 3) in [0, 1], by the name of the model that they are for.

    hosts: under whose names the page is asked for; None: any.
    """
    offered = {name: [as_png(image_HWC) for image_HWC in of_model] for name, of_model in images.items()}
    for path in sorted(_STATIC.iterdir()):
        address = "/" if path.name == "index.html" else f"/page/{path.name}"
        response = Response(path.read_bytes(), media_type=_KINDS[path.suffix], headers=_HEADERS)
        app.get(address, include_in_schema=False)(_always(response))
    app.get("/page/images", include_in_schema=False)(lambda: {"images": offered})
    app.add_middleware(_OwnPagesAlone, hosts=hosts)


def _always(response: Response) -> Callable[[], Response]:
    return lambda: response


class _OwnPagesAlone:
    """Refuses what pages of other sites send from the browser of a person who may use this one.

    They say so themselves (Origin), or have had their own name lead here (DNS rebinding), which Host tells.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_of_another(Headers(scope=scope)):
            answer = JSONResponse({"error": "this service answers to its own page alone"}, 403)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_of_another(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            is_unknown = self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts
            return is_unknown or (origin is not None and urlsplit(origin).netloc != host)
        except ValueError:
            return True
