"""The page: a few static files, and the images that it offers. All else it asks of the service."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import Response

from serving.questions import as_png

_STATIC = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Nothing from elsewhere is loaded, and no other site may show the page in a frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI, images: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """images: to begin with, (H, W, 3) in [0, 1], by the name of the model that they are for."""
    offered = {name: [as_png(image_HWC) for image_HWC in of_model] for name, of_model in images.items()}

    def file_route(path: Path) -> Any:
        content = path.read_bytes()
        return lambda: Response(content, media_type=_KINDS[path.suffix], headers=_HEADERS)

    for path in sorted(_STATIC.iterdir()):
        address = "/" if path.name == "index.html" else f"/page/{path.name}"
        app.get(address, include_in_schema=False)(file_route(path))
    app.get("/page/images", include_in_schema=False)(lambda: {"images": offered})
