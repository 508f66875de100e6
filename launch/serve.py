"""Serve trained models over HTTP: in-paint, generate, encode and interpolate, many requests in one batch.

POST /v1/inpaint {"image": "<base64>", "mask": "<base64>", "draws": 4} answers {"images": ["<base64 PNG>", ...]}; /docs
of the service describes the rest, docs/serving.md has examples.
"""

import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, find_device, run, whole_number
    from launch.commands.http import add_options, import_service, load_models, named_paths, serve
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


def _parser() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add_options(parser, port=8000)
    add("--batch-images", type=whole_number, default=64, metavar="N", help="computed at once; default: %(default)s")
    what = "that a batch waits for requests to come again; default: %(default)s"
    add("--wait-ms", type=whole_number, default=5, metavar="N", help=what)
    what = "images that may wait before requests are refused with 429; default: %(default)s"
    add("--queue-images", type=whole_number, default=1024, metavar="N", help=what)
    add("--max-images", type=whole_number, default=64, metavar="N", help="of one request; default: %(default)s")
    add("--token-file", type=Path, metavar="FILE", help="default: anybody may ask")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    paths = named_paths(options.model)
    token = _token(options.token_file) if options.token_file else None
    Service = import_service()
    from serving.questions import Limits

    models = load_models(paths, find_device(options.device), options.batch_images)
    service = Service(
        models,
        limits=Limits(most_images=options.max_images),
        batch_images=options.batch_images,
        wait_s=options.wait_ms / 1000,
        most_waiting=options.queue_images,
        token=token,
    )
    names = ", ".join(models)
    serve(service.app(), options.host, options.port, lambda url: f"serving {names} at {url}, described at {url}/docs")
    return 0


def _token(path: Path) -> str:
    try:
        token = path.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    if not token:
        raise UserError(f"the first line of {path} is empty: write the token there")
    return token


if __name__ == "__main__":
    run(main)
