"""Whether fillings and samples look like images: a small classifier, trained on the same data, judges them.

The squared error rewards a blurred mean. Two figures do not: how often the classifier gives a filled image the class
of the original, and the Fréchet distance between the features of generated and of real images (as Heusel et al. 2017,
but with features of this classifier, so that values compare within one data set alone).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.pictures import read_images
from data.read.stream import Stream
from evaluation.inpainting import Filler
from evaluation.shares import gathered, share
from model.masks import STANDARD_MASKS, standard_mask
from trainer.metrics.progress import progress
from trainer.ranks.world import World

FEATURES = 64
_TRAINING_IMAGES, _SEEN_IMAGES, _BATCH = 20_000, 60_000, 128  # of the classifier
_TRAINING_BYTES = 2**29


class Judge(nn.Module):
    """Classes of images (B, H, W, 3): a small CNN, whose FEATURES go into one linear layer. H, W: at least 8."""

    def __init__(self, classes: int):
        super().__init__()
        widths = (3, 32, 64, FEATURES)
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * FEATURES, FEATURES))
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, FEATURES) and logits (B, classes)."""
        x_BF = self.layers(images_BHWC.permute(0, 3, 1, 2).contiguous())
        return x_BF, self.head(x_BF.relu())


def train_judge(train: Stream, classes: int, seed: int = 0) -> Judge:
    """On images spread over the training split; the same on every rank, but for rounding between machines."""
    one_image = read_images(train, torch.arange(1)).nbytes
    count = min(_TRAINING_IMAGES, train.images, max(1, _TRAINING_BYTES // one_image))
    position_N = torch.arange(count) * (train.images // count)
    images_NHWC, label_N = read_images(train, position_N), train.read(position_N).label_B.cpu()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Judge(classes).to(train.device)
        epochs = range(max(1, _SEEN_IMAGES // count))
        steps = [part for _ in epochs for part in torch.randperm(count).split(_BATCH)]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=len(steps))
    for index_B in progress(steps, "a classifier that judges", shown=True):
        _, logits_BK = judge(images_NHWC[index_B].to(train.device))
        nn.functional.cross_entropy(logits_BK, label_N[index_B].to(train.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return judge.eval().requires_grad_(False)


def sharpness(
    vae: BigLearnVAE, ways: Mapping[str, Filler], judge: Judge, test: Stream, world: World, images: int, seed: int
) -> list[dict[str, str | int | float | None]]:
    """Rows of what the judge makes of test images, of samples, and of fillings of the standard masks. Collective.

    of: "test images", "samples" or a mask; way: how it is filled, its first draw. accuracy: share of the images whose
    class is seen, None for samples. frechet: the distance to the test images, in features of the judge.
    """
    count = min(images, test.images)
    label_B = test.read(torch.arange(count)).label_B.cpu()
    parts: dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]] = {}
    for index_B in progress(share(count, world, portion=50), "what the classifier sees", shown=world.is_main):
        for of, way, images_BHWC in _judged(vae, ways, test, index_B, seed):
            x_BF, logits_BK = judge(images_BHWC.to(test.device))
            features, classes = parts.setdefault((of, way), ([], []))
            features.append(x_BF.cpu())
            classes.append(logits_BK.argmax(1).cpu())
    rows, real_BF = [], None
    for of, way in world.gather([*parts])[0]:
        x_BF, class_B = (gathered(world, part) for part in parts.get((of, way), ([], [])))
        real_BF = x_BF if real_BF is None else real_BF  # test images come first
        accuracy = None if of == "samples" else (class_B == label_B).double().mean().item()
        distance = frechet_distance(x_BF, real_BF)
        rows.append({"of": of, "way": way, "images": count, "accuracy": accuracy, "frechet": distance})
    return rows


def _judged(
    vae: BigLearnVAE, ways: Mapping[str, Filler], test: Stream, index_B: Tensor, seed: int
) -> Iterator[tuple[str, str, Tensor]]:
    """(of, way, images) of these test images."""
    whole, first_index = vae.observe(read_images(test, index_B)), index_B[0].item()
    yield "test images", "", whole.images_BHWC
    yield "samples", "", vae.generate(len(index_B), seed=seed, first_index=first_index).clamp(0, 1)
    for mask in STANDARD_MASKS:
        given = whole.hide(~standard_mask(mask, index_B, vae.description.data.patches))
        for way, fill in ways.items():
            yield mask, way, fill(given, first_index)[0].clamp(0, 1)


def frechet_distance(one_NF: Tensor, other_MF: Tensor) -> float:
    """Between the Gaussians with the means and covariances of two sets, two or more each."""
    one_NF, other_MF = one_NF.double(), other_MF.double()
    root_FF = _root(torch.cov(one_NF.T))
    product_FF = _root(root_FF @ torch.cov(other_MF.T) @ root_FF)
    between = (one_NF.mean(0) - other_MF.mean(0)).square().sum()
    spread = torch.cov(one_NF.T).trace() + torch.cov(other_MF.T).trace() - 2 * product_FF.trace()
    return (between + spread).clamp(min=0).item()


def _root(symmetric_FF: Tensor) -> Tensor:
    """Of a matrix that is positive but for rounding."""
    value_F, vector_FF = torch.linalg.eigh((symmetric_FF + symmetric_FF.T) / 2)
    return vector_FF * value_F.clamp(min=0).sqrt() @ vector_FF.T
