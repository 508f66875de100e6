"""How much of an image its codes keep: PatchAE beside PCA and a linear auto-encoder of patches, in one run.

All three turn a patch of 768 values into 512 and back, and are measured on the same test images: PSNR of the clamped
picture, mean over the images. PCA is fitted to all patches of the training images. The linear auto-encoder is trained
by AdamW on as many patches as the PatchAE was, drawn from the training sequence. "Codes as stored" are those of the
latent shards, rounded to float16.

examples:
  python benchmarks/patch_autoencoder.py --run runs/celeba_patchae-patch_ae
  python benchmarks/patch_autoencoder.py --run runs/faces/patch_ae --images 500 --out psnr.json --picture psnr.png
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

try:
    from launch.commands.cli import Parser, find_device, run, whole_number
except ModuleNotFoundError as error:
    print(f"error: {error}: install this checkout (`make install`), or set PYTHONPATH to it", file=sys.stderr)
    sys.exit(2)

import torch
from torch import Tensor, nn
from tqdm import trange

from biglearn_vae.checkpoint import newest_whole
from biglearn_vae.find_images import find_data
from biglearn_vae.images import open_index, open_stream
from biglearn_vae.pictures import sheet
from biglearn_vae.trained import read_patch_autoencoder
from data.patches import unpatchify
from data.read.stream import Stream
from launch.commands.machine import machine
from model.patch_autoencoder.codec import codes_of
from trainer.config import load_config
from trainer.run_directory import RunDirectory

CODE_DIM, PORTION, LINEAR_BATCH = 512, 128, 512

Codec = Callable[[Tensor], Tensor]  # patches (N, 768) to patches


def main(arguments: list[str]) -> int:
    parser = Parser(
        description=__doc__,
        prog="benchmarks/patch_autoencoder.py",
    )
    add = parser.add_argument
    add("--run", required=True, metavar="RUN", help="a run of stage 1")
    add("--shards", metavar="DIR", help="the folder of the data set; default: that of the training")
    add("--images", type=whole_number, metavar="N", help="test images, the first so many; default: all")
    add("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    add("--out", type=Path, help="write the rows as JSON")
    add("--picture", type=Path, help="write test images beside what each keeps of them")
    options = parser.parse_args(arguments)
    device, folder = find_device(options.device), RunDirectory(options.run)
    config = load_config(folder.config)
    data = find_data(config.data, options.run, options.shards)
    index = open_index(data)
    train, test = (
        open_stream(data, index, split, seed, device) for split, seed in (("train", config.seed), ("test", None))
    )
    images = min(options.images or test.images, test.images)
    _, checkpoint, _ = newest_whole(folder.checkpoints)
    seen = checkpoint.state.images
    patches = seen * min(config.patch_ae.patches_per_image, config.data.patches)

    autoencoder = read_patch_autoencoder(Path(options.run)).to(device)
    ways: dict[str, Codec] = {
        "PatchAE": lambda x_ND: autoencoder.decode(autoencoder.encode(x_ND)),
        "PatchAE, codes as stored": lambda x_ND: autoencoder.decode(codes_of(autoencoder, x_ND[None])[0].float()),
        "PCA": fit_pca(train),
        "linear auto-encoder": train_linear(train, patches, config.seed),
    }
    rows = [
        {
            "way": name,
            **measure(name, codec, test, images),
            "code_dim": CODE_DIM,
            "test_images": images,
            "training_images": train.images,
            "training_patches": train.images * train.patches if name == "PCA" else patches,
            **machine("torch", device=device.type),
        }
        for name, codec in ways.items()
    ]
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    if options.picture:
        x_BLD = test.read(torch.arange(8) * (test.images // 8)).x_BLD
        shown = {"test images": x_BLD} | {name: through(codec, x_BLD) for name, codec in ways.items()}
        title = f"{CODE_DIM} of 768 values of a patch; PatchAE after {seen:,} images, {patches:,} patches"
        rows_of_images = [(name, unpatchify(x.cpu(), config.data.patch_size)) for name, x in shown.items()]
        sheet(rows_of_images, title).save(options.picture)
    return 0


def fit_pca(train: Stream) -> Codec:
    """The leading principal components of all training patches."""
    total, sum_D, square_DD = 0, 0.0, 0.0
    for start in trange(0, train.images, PORTION, desc="PCA", unit=" portions", disable=None):
        positions = torch.arange(start, min(start + PORTION, train.images))
        x_ND = train.read(positions).x_BLD.flatten(0, 1).double()
        total, sum_D, square_DD = total + len(x_ND), sum_D + x_ND.sum(0), square_DD + x_ND.T @ x_ND
    mean_D = sum_D / total
    _, vector_DD = torch.linalg.eigh(square_DD / total - mean_D.outer(mean_D))
    basis_DC, mean_D = vector_DD[:, -CODE_DIM:].float(), mean_D.float()
    return lambda x_ND: (x_ND - mean_D) @ basis_DC @ basis_DC.T + mean_D


def train_linear(train: Stream, patches: int, seed: int, learning_rate: float = 1e-3) -> Codec:
    """Two linear layers, on so many patches: LINEAR_BATCH a step, warmed up, then along a cosine to 0."""
    torch.manual_seed(seed)
    width = train.read(torch.arange(1)).x_BLD.shape[-1]
    model = nn.Sequential(nn.Linear(width, CODE_DIM), nn.Linear(CODE_DIM, width)).to(train.device)
    steps = max(1, patches // LINEAR_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1)
    images = LINEAR_BATCH // 8
    for step in trange(steps, desc="linear auto-encoder", unit=" steps", disable=None):
        x_BLD = train.read(torch.arange(step * images, (step + 1) * images)).x_BLD
        place_BK = torch.rand(images, x_BLD.shape[1]).argsort(1)[:, : LINEAR_BATCH // images].to(x_BLD.device)
        x_ND = x_BLD.gather(1, place_BK[..., None].expand(-1, -1, width)).flatten(0, 1) - 0.5
        loss = (model(x_ND) - x_ND).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return lambda x_ND: model(x_ND - 0.5) + 0.5


@torch.no_grad()
def through(codec: Codec, x_BLD: Tensor) -> Tensor:
    return codec(x_BLD.flatten(0, 1)).view_as(x_BLD).clamp(0, 1)


def measure(name: str, codec: Codec, test: Stream, images: int) -> dict[str, float]:
    """PSNR, dB, of the test images."""
    parts = []
    for start in trange(0, images, PORTION, desc=name, unit=" portions", disable=None):
        x_BLD = test.read(torch.arange(start, min(start + PORTION, images))).x_BLD
        parts.append(-10 * (through(codec, x_BLD) - x_BLD).square().mean((1, 2)).log10())
    psnr_B = torch.cat(parts).double()
    return {"psnr": psnr_B.mean().item(), "psnr_lowest": psnr_B.min().item()}


def table(rows: list[dict]) -> str:
    lines = [
        f"{rows[0]['test_images']:,} test images, codes of {CODE_DIM} of 768 values, on {rows[0]['hardware']}",
        "",
        "| codes by | PSNR, dB | lowest of an image | trained on patches |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row['way']} | {row['psnr']:.2f} | {row['psnr_lowest']:.2f} | {row['training_patches']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
