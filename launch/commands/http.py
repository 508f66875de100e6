"""What the commands that answer over HTTP do alike: models by their names, a port, and the server until it is ended."""

import argparse
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, printable
from launch.commands.cli import Parser, say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from biglearn_vae.capabilities import BigLearnVAE
    from serving.app import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # addresses that nobody else can ask
_CONNECTIONS = 256


def add_options(parser: Parser, port: int) -> None:
    """--model, --host, --port and --device."""
    add = parser.add_argument
    what = "a run's directory, a checkpoint or an export; NAME is what requests call it by, default: its folder's"
    add("--model", required=True, action="append", metavar="[NAME=]PATH", help=what)
    what = "address to listen at; 0.0.0.0 is all of this machine; default: %(default)s"
    add("--host", default="127.0.0.1", help=what)
    add("--port", type=_port, default=port, metavar="N", help="0 is any that is free; default: %(default)s")
    add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text} is no port: give 0 to {2**16 - 1}")
    return int(text)


def import_service() -> "type[Service]":
    """The service; UserError when what it needs is not installed."""
    try:
        import uvicorn  # noqa: F401

        from serving.app import Service
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: install what a service needs with `pip install 'biglearn-vae[serve]'`") from None
    return Service


def named_paths(given: list[str]) -> dict[str, Path]:
    """The models by their names. UserError when two are called alike."""
    paths: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or os.path.exists(os.path.expanduser(text)):
            name, path = printable(Path(text).expanduser().resolve().name), text
        if not name:
            raise UserError(f"{text} gives the model no name: name it, as --model NAME=PATH")
        if name in paths:
            raise UserError(f"two models are called {name}: name them, as --model NAME=PATH")
        paths[name] = Path(path).expanduser()
    return paths


def load_models(paths: dict[str, Path], device: str, batch_images: int) -> "dict[str, BigLearnVAE]":
    """Ready to be asked, batch_images at once."""
    from biglearn_vae.capabilities import BigLearnVAE

    models = {name: BigLearnVAE.load(path, device) for name, path in paths.items()}
    for vae in models.values():
        vae.batch_size = batch_images
        vae.generate(1)  # so that the first who asks does not wait for what is done once
    return models


def serve(app: "FastAPI", host: str, port: int, words: Callable[[str], str]) -> None:
    """Answer until Ctrl-C or SIGTERM, and then what has come. words: said first, of the address.

    UserError when the port is not to be had.
    """
    import uvicorn

    with _listening(host, port) as listener:
        say(words(_url(*listener.getsockname()[:2])))
        config = uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=60,
            server_header=False,
        )
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # forms that are none are answered, not told
        for number in (signal.SIGINT, signal.SIGTERM):  # which uvicorn raises once more when it has ended
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
    say("ended")


def _url(host: str, port: int) -> str:
    """Where a browser finds what listens at an address; of all addresses of a machine, by its name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay in
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_CONNECTIONS)  # who asks from now on waits, and is answered
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or "no address"
        raise UserError(f"port {port} of {host} is not to be had ({reason}): choose another --port, or 0") from None
    return listener
