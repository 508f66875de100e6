"""Serve trained models over HTTP: in-paint, generate, encode and interpolate, many requests in one batch.

POST /v1/inpaint {"image": "<base64>", "mask": "<base64>", "draws": 4} answers {"images": ["<base64 PNG>", ...]}; /docs
of the service describes the rest, docs/serving.md has examples.
"""

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, find_device, run, say, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

EXAMPLES = """\
examples:
  python launch/serve.py --model runs/digits_8x8-biglearn_u
  python launch/serve.py --model digits=runs/digits_8x8-biglearn_u --model faces=faces-export --port 8080

A token that requests must carry (Authorization: Bearer ...) is the first line of --token-file. Ctrl-C and SIGTERM end
the service when what has come is answered.
"""
_CONNECTIONS = 256


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    what = "a run's directory, a checkpoint or an export; NAME is what requests call it by, default: its folder's"
    add("--model", required=True, action="append", metavar="[NAME=]PATH", help=what)
    add(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of this machine; default: %(default)s"
    )
    add("--port", type=_port, default=8000, metavar="N", help="0 is any that is free; default: %(default)s")
    add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    add("--batch-images", type=whole_number, default=64, metavar="N", help="computed at once; default: %(default)s")
    what = "that a batch waits for requests to come again; default: %(default)s"
    add("--wait-ms", type=whole_number, default=5, metavar="N", help=what)
    what = "images that may wait before requests are refused with 429; default: %(default)s"
    add("--queue-images", type=whole_number, default=1024, metavar="N", help=what)
    add("--max-images", type=whole_number, default=64, metavar="N", help="of one request; default: %(default)s")
    add("--token-file", type=Path, metavar="FILE", help="default: anybody may ask")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text} is no port: give 0 to {2**16 - 1}")
    return int(text)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    paths = _paths(options.model)
    token = _token(options.token_file) if options.token_file else None
    try:
        import uvicorn

        from serving.app import Service
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: install what a service needs with `pip install 'biglearn-vae[serve]'`") from None
    from biglearn_vae.capabilities import BigLearnVAE
    from serving.questions import Limits

    device = find_device(options.device)
    models = {name: BigLearnVAE.load(path, device) for name, path in paths.items()}
    for vae in models.values():
        vae.batch_size = options.batch_images
        vae.generate(1)  # so that the first who asks does not wait for what is done once
    service = Service(
        models,
        limits=Limits(most_images=options.max_images),
        batch_images=options.batch_images,
        wait_s=options.wait_ms / 1000,
        most_waiting=options.queue_images,
        token=token,
    )
    with _listening(options.host, options.port) as listener:
        host, port = listener.getsockname()[:2]
        say(f"serving {', '.join(models)} at http://{host}:{port}, described at http://{host}:{port}/docs")
        config = uvicorn.Config(
            service.app(),
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
    return 0


def _paths(given: list[str]) -> dict[str, Path]:
    """The models by their names. UserError when two are called alike."""
    paths: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).resolve().name, text
        if not name or name in paths:
            raise UserError(f"two models are called {name}: name them, as --model NAME=PATH")
        paths[name] = Path(path).expanduser()
    return paths


def _token(path: Path) -> str:
    try:
        token = path.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    if not token:
        raise UserError(f"the first line of {path} is empty: write the token there")
    return token


def _listening(host: str, port: int) -> socket.socket:
    """UserError when the port is not to be had."""
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


if __name__ == "__main__":
    run(main)
