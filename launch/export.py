"""Write a trained model as a folder that loads without the training code, and is a model repository of a hub as it is.

config.json and model.safetensors (with codec.safetensors, of codes) are the model. README.md is its card, with the last
evaluation of the run. preview.png shows what it makes of test images, and config.json names the folder of the images:
look at both before you publish them.
"""

import argparse
import io
import re
import sys
from contextlib import suppress
from pathlib import Path

try:
    from launch.commands.cli import Parser, run, say, show_warnings
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

from data.errors import UserError

EXAMPLES = """\
examples:
  python launch/export.py --model runs/digits_8x8-biglearn_u --out digits-model
  python launch/export.py --model runs/digits_8x8-biglearn_u --out digits-model --license cc-by-4.0
  python launch/sample.py inpaint --model digits-model --test 12 --hide half

In Python: `from biglearn_vae import BigLearnVAE; vae = BigLearnVAE.from_pretrained("digits-model")`.
"""
_SHOWN = 12  # images of a row


def main(arguments: list[str]) -> int:
    parser = Parser(description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="a run's directory, a checkpoint or an export")
    what = "the folder to write; what an export wrote there is replaced, nothing that was edited since"
    add("--out", required=True, metavar="DIR", help=what)
    what = "of the weights, as apache-2.0 or cc-by-4.0; default: the card says that none is stated"
    add("--license", type=_license, metavar="ID", help=what)
    add("--onnx", action="store_true", help="encoder.onnx and decoder.onnx, too: the model without torch")
    options = parser.parse_args(arguments)
    show_warnings(rank=0)

    from biglearn_vae.capabilities import BigLearnVAE
    from biglearn_vae.hub.card import model_card
    from biglearn_vae.hub.files import CARD, PREVIEW, require_replaceable, write_beside
    from biglearn_vae.hub.onnx_graphs import onnx_files
    from biglearn_vae.trained import run_of
    from trainer.run_directory import RunDirectory

    vae, out = BigLearnVAE.load(options.model), Path(options.out)
    if (out / "config.yaml").exists() or (out / "manifest.json").exists():
        raise UserError(f"{out} is a run or a checkpoint: choose another --out")
    require_replaceable(out)
    directory = RunDirectory(run_of(Path(options.model)).path)
    shows, picture = _preview(vae, options.model, directory)
    if options.onnx:
        say("tracing the model for ONNX: up to a minute")
    files = {PREVIEW: picture} | (onnx_files(vae) if options.onnx else {})
    card = model_card(
        vae,
        license_id=options.license,
        preview=shows,
        evaluation=_evaluation(vae, directory),
        has_onnx=options.onnx,
    )
    try:
        vae.export(out)
        write_beside(out, card, files)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written ({error.strerror}): choose another --out") from None
    parameters = sum(p.numel() for p in vae.model.parameters())
    print(f"wrote {out} ({', '.join([CARD, *files])}): {vae.description.method}, {parameters:,} parameters")
    return 0


def _license(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no license identifier: give one as apache-2.0 or cc-by-4.0")
    return text


def _preview(vae, model: str, directory) -> tuple[str, bytes]:
    """What the picture shows, and its PNG: that of the run at this point; else of test images, if any; else samples."""
    from biglearn_vae.find_images import open_images
    from biglearn_vae.hub.card import data_set
    from biglearn_vae.images import open_stream
    from biglearn_vae.pictures import capability_rows, read_test_images, sheet

    what = f"Test images of {data_set(vae)} and what the model makes of them, then samples"
    drawn = directory.picture(vae.description.images)
    if drawn.exists():
        return what, drawn.read_bytes()
    rows = [(f"samples {k}", vae.generate(_SHOWN, first_index=k * _SHOWN)) for k in range(1, 4)]
    try:
        data, index = open_images(vae.description, model)
        stream = open_stream(data, index, data.evaluated_split, None)
        rows = capability_rows(vae, read_test_images(stream, min(_SHOWN, stream.images))[1])
    except UserError:
        what = "Samples"
    content = io.BytesIO()
    sheet(rows, f"{vae.method.name}: {vae.description.images:,} training images").save(content, "png")
    return what, content.getvalue()


def _evaluation(vae, directory) -> str:
    """What was last measured of these very weights: the full evaluation, or that of the training."""
    from evaluation.report import ELBOS, read_report, words
    from trainer.tasks.biglearn import INPAINTING_ERRORS

    images = vae.description.images
    with suppress(UserError):
        report = read_report(directory.reports / "evaluation.json")
        of_these = vae.description.data_checksum in (None, report.get("data_checksum"))
        if report["images"] == images and of_these:
            text = (
                f"By `launch/evaluate.py`: ELBOs with variance 1 and bounds with variance β, in nats, of"
                f" {report['latent']['images']:,} test images; the squared error a pixel of what four masks hide in"
                f" {report['filling'][0]['images']:,} of them, filled in by the model and by what is simpler."
            )
            return f"{text}\n\n```\n{words({'this model': report})}\n```"
    line = directory.evaluation(images)
    if not line:
        return "These weights were not evaluated."
    names = ELBOS | {name: f"squared error a value, {mask}" for name, mask in INPAINTING_ERRORS.items()}
    trained_on = names if vae.method.is_conditional else [name for name in names if name.startswith("joint")]
    rows = [f"| {names[name]} | {line[name]:.4g} |" for name in trained_on if name in line]
    split = "held-out training" if vae.description.data.holdout else "test"
    text = f"Of {split} images, by the training: ELBOs with variance 1, in nats"
    text += "; errors of filling in with mean z." if vae.method.is_conditional else "."
    return "\n".join([text, "", "| | |", "|---|---|", *rows])


if __name__ == "__main__":
    run(main)
