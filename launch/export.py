"""Write a trained model as two files, model.safetensors and config.json, that load without the training code."""

import sys
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, show_warnings
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

EXAMPLES = """\
examples:
  python launch/export.py --model runs/digits_8x8-biglearn_u --out digits-model
  python launch/sample.py inpaint --model digits-model --test 12 --hide half

In Python: `from biglearn_vae import BigLearnVAE; vae = BigLearnVAE.load("digits-model")`.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--model", required=True, metavar="PATH", help="a run's directory or a checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; what it exports is replaced")
    options = parser.parse_args(arguments)
    show_warnings(rank=0)

    from biglearn_vae.capabilities import BigLearnVAE
    from biglearn_vae.export import CONFIG, WEIGHTS

    vae, out = BigLearnVAE.load(options.model), Path(options.out)
    if (out / "config.yaml").exists() or (out / "manifest.json").exists():
        raise UserError(f"{out} is a run or a checkpoint: choose another --out")
    try:
        vae.export(out)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written ({error.strerror}): choose another --out") from None
    parameters = sum(p.numel() for p in vae.model.parameters())
    print(f"wrote {out / WEIGHTS} and {out / CONFIG}: {vae.description.method}, {parameters:,} parameters")
    return 0


if __name__ == "__main__":
    run(main)
