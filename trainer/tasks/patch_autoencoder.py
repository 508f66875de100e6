"""Stage 1: each patch is reconstructed from its own code."""

import torch
from PIL import Image
from torch import Tensor

from biglearn_vae.pictures import draw_codes
from data.batch import Batch
from data.read.config import DataConfig
from data.read.stream import Stream
from model.masks import Plan, place_order
from model.patch_autoencoder.codec import PatchCodec
from model.patch_autoencoder.network import PatchAEConfig, PatchAutoencoder
from trainer.tasks.task import Evaluator, Task


class PatchAETask(Task):
    """The loss is the mean squared error a pixel."""

    groups, plans = 1, (Plan(((0, 1),)),)  # no masks

    def __init__(self, model: PatchAutoencoder, config: PatchAEConfig, seed: int):
        super().__init__()
        self.model, self.config, self.seed = model, config, seed

    def matrices(self) -> dict[str, tuple[int, int, int]]:
        """The weights of the convolutions as matrices of their first dimension times the rest: (1, rows, columns)."""
        weights = {name: p for name, p in self.named_parameters() if p.ndim == 4}
        return {name: (1, len(p), p[0].numel()) for name, p in weights.items()}

    def sample_terms(self, batch: Batch, plan: Plan, beta: Tensor | float) -> dict[str, Tensor]:
        """mse of each image over the patches that were drawn for it, (B,). There is no KL for beta to weigh."""
        patches, chosen = batch.x_BLD.shape[1], self.config.patches_per_image
        x_BLD = batch.x_BLD
        if chosen < patches:
            place_BK = place_order(batch.index_B, patches, self.seed)[:, :chosen]
            x_BLD = x_BLD.gather(1, place_BK[..., None].expand(-1, -1, x_BLD.shape[-1]))
        return {"mse": (self._reconstruct(x_BLD) - x_BLD).square().mean((1, 2))}

    def forward(self, batch: Batch, plan: Plan, beta: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.sample_terms(batch, plan, beta)["mse"].mean()
        return loss, {"loss": loss.detach()}

    @property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """The error, on all images."""
        return (Evaluator(self.evaluate),)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Of each whole image, (B,): the mean squared error a pixel, and the PSNR in dB of its clamped pixels."""
        found_BLD = self._reconstruct(batch.x_BLD)
        mse_B = (found_BLD - batch.x_BLD).square().mean((1, 2))
        clamped_mse_B = (found_BLD.clamp(0, 1) - batch.x_BLD).square().mean((1, 2))
        return {"mse": mse_B, "psnr": -10 * clamped_mse_B.log10()}

    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        """The means."""
        return {name: value.item() for name, value in means.items()}

    def score(self, values: dict[str, float]) -> float:
        """PSNR, dB."""
        return values["psnr"]

    def picture(self, stream: Stream, data: DataConfig, codec: PatchCodec | None, values: dict) -> Image.Image:
        """What codes keep of images."""
        title = f"patch_ae: {values['images']:,} training images, test PSNR {values['psnr']:.2f} dB"
        return draw_codes(self.model, stream, title)

    def _reconstruct(self, x_BLD: Tensor) -> Tensor:
        x_ND = x_BLD.flatten(0, 1)
        return self.model.decode(self.model.encode(x_ND)).view_as(x_BLD)
