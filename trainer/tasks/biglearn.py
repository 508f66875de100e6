"""`vae`, `biglearn_t` and `biglearn_u`: the paper's objective, and what is measured of it."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.export import Description
from biglearn_vae.pictures import draw_sheet
from data import randomness
from data.batch import Batch
from data.read.config import DataConfig
from data.read.stream import Stream
from model.biglearn import BigLearnModel
from model.gaussian import Gaussian
from model.masks import EVALUATION_SEED, Plan, drawn_masks, plan_order, standard_mask
from model.objective import ObjectiveConfig, elbo_terms
from model.packed.objective import packed_elbo_terms
from model.packed.packing import pack
from model.packed.plan import PackedPlan
from model.packed.rectangles import attend_by_rectangles
from model.patch_autoencoder.codec import PatchCodec
from model.transformer import Attend, Trunk
from trainer.tasks.task import Evaluator, Task

ACTIVE_VARIANCE = 0.01  # of a unit's posterior mean over images, from which on it is active (Burda et al. 2015)
REFERENCE_BETA = 0.01  # at which every evaluation gives its ELBOs, too: the paper's, for MNIST
INPAINTING_IMAGES = 1000
# The error of each of STANDARD_MASKS, as evaluations call it.
INPAINTING_ERRORS = {
    "inpainting_error": "half seen",
    "inpainting_error_fifth": "fifth seen",
    "inpainting_error_block": "centre missing",
    "inpainting_error_lower": "lower half missing",
}


class BigLearnTask(Task):
    """Training and evaluation of `vae`, `biglearn_t` and `biglearn_u`. attend: how training in query_only attends."""

    def __init__(
        self, model: BigLearnModel, objective: ObjectiveConfig, seed: int, attend: Attend = attend_by_rectangles
    ):
        super().__init__()
        self.model, self.objective, self.seed, self.attend = model, objective, seed, attend
        self.plans = model.method.plans(objective, model.patches, seed)
        self.groups = len(self.plans[0].groups)
        self._packed: dict[tuple[Plan, int, torch.device], PackedPlan] = {}

    def matrices(self) -> dict[str, tuple[int, int, int]]:
        """Those of the trunk."""
        trunks = [(name, module) for name, module in self.named_modules() if isinstance(module, Trunk)]
        return {f"{name}.{key}": shape for name, trunk in trunks for key, shape in trunk.matrices().items()}

    def compile(self, **options: Any) -> None:
        """Let training run kernels that torch.compile makes of all that lies between the attentions.

        Not of `forward` as a whole, which would be compiled for every plan. The parts take any number of rows, and
        what is compiled for one layer serves all: the first step compiles, later ones of whatever plan do not.
        options: as torch.compile takes them.
        """
        options = {"dynamic": True, **options}
        model = self.model
        for trunk in {model.encoding_trunk, model.decoding_trunk}:
            for block in trunk.blocks:
                block.before_attention = torch.compile(block.before_attention, **options)  # type: ignore[method-assign]
                block.after_attention = torch.compile(block.after_attention, **options)  # type: ignore[method-assign]
        for module in (model.embed, model.z_head, model.x_head):
            module.compile(**options)

    def sample_terms(self, batch: Batch, plan: Plan, beta: Tensor | float) -> dict[str, Tensor]:
        """elbo, reconstruction and kl of each sample, (B,); the samples are the plan's groups one after the other."""
        model, x_BLD, index_B = self.model, batch.x_BLD, batch.index_B
        noise_BZ = self._noise(index_B, self.seed)
        order_BL, _, _ = plan_order(plan, index_B, model.patches, self.seed, self.objective.connected_share)
        packed = self._packed_plan(plan, len(index_B), x_BLD.device)
        terms = packed_elbo_terms(model, x_BLD, packed, order_BL, noise_BZ, self.attend)
        elbo_B = terms.elbo_B(beta)
        return {"elbo": elbo_B, "reconstruction": terms.reconstruction_B, "kl": terms.kl_B}

    def _packed_plan(self, plan: Plan, samples: int, device: torch.device) -> PackedPlan:
        """Made once: plans repeat, and a recorded graph reads their tensors for ever."""
        key = plan, samples, device
        if key not in self._packed:
            model = self.model
            dense = model.config.mask_tokens == "dense"
            with torch.device(device):
                self._packed[key] = pack(plan, samples, model.patches, dense=dense, method=model.method)
        return self._packed[key]

    def forward(self, batch: Batch, plan: Plan, beta: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss -E[ELBO] of a batch at this weight of the KL, and its terms."""
        of_samples = self.sample_terms(batch, plan, beta)
        means = {name: value_B.mean() for name, value_B in of_samples.items()}
        loss = means["loss"] = -means["elbo"]
        elbo_GB = of_samples["elbo"].view(len(plan.groups), -1)
        for name in ("joint", "marginal", "conditional"):
            groups = [g for g, size in enumerate(plan.groups) if self._task_name(*size) == name]
            if groups:
                # A list as an index would be sent to the device, for which the host waits.
                means[f"elbo_{name}"] = torch.stack([elbo_GB[g] for g in groups]).mean()
        return loss, {name: value.detach() for name, value in means.items()}

    @property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """What an evaluation measures. In-painting on few images, for its passes would double the cost."""
        return (Evaluator(self.evaluate), Evaluator(self.inpainting_errors, INPAINTING_IMAGES))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample float32 values under fixed masks and noise, each (B,) but for the latent ones.

        biglearn_elbo: eq. (7) with S and T drawn from the true Betas; the vae, which never saw such a task, gets
        N(0, I) for its prior. joint_elbo: eq. (1) with the method's own prior (learned p(z); N(0, I) for the
        vae), joint_elbo_standard_prior: with N(0, I). Each weighs the KL with objective.beta, the last
        value where training changes it; NAME_at_0.01 is the same with β = 0.01, whatever the model was trained with, by
        which models of different β compare. posterior_mean, (B, Z): of p(z | x), and its square.
        """
        x_BLD, index_B = batch.x_BLD, batch.index_B
        noise_BZ = self._noise(index_B, EVALUATION_SEED)
        nothing_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device)

        drawn_S_and_T = drawn_masks(self.objective, index_B, self.model.patches, EVALUATION_SEED)
        joint = elbo_terms(self.model, x_BLD, nothing_BL, ~nothing_BL, noise_BZ)
        mu_BZ = joint.posterior.mu_BZ
        elbos = {
            "biglearn_elbo": elbo_terms(self.model, x_BLD, *drawn_S_and_T, noise_BZ),
            "joint_elbo": joint,
            "joint_elbo_standard_prior": joint.with_prior(Gaussian.standard(mu_BZ)),
        }
        return {
            **{name: found.elbo_B(self.objective.beta) for name, found in elbos.items()},
            **{f"{name}_at_{REFERENCE_BETA}": found.elbo_B(REFERENCE_BETA) for name, found in elbos.items()},
            "posterior_mean": mu_BZ,
            "posterior_mean_square": mu_BZ.square(),
        }

    @torch.no_grad()
    def inpainting_errors(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error a pixel (a value, of codes) of what each of STANDARD_MASKS hides, (B,) float32 each.

        What is missing is decoded from x_S and the mean of p(z | x_S).
        """
        x_BLD = batch.x_BLD

        def error_B(mask: str) -> Tensor:
            seen_BL = standard_mask(mask, batch.index_B, self.model.patches)
            z_BZ = self.model.encode(x_BLD, seen_BL).mu_BZ
            error_BL = (self.model.decode(z_BZ, x_BLD, seen_BL) - x_BLD).square().mean(-1)
            return (error_BL * ~seen_BL).sum(-1) / (~seen_BL).sum(-1)

        return {name: error_B(mask) for name, mask in INPAINTING_ERRORS.items()}

    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        """The means, but for those of the latent units, of which it counts the active ones."""
        of_units = {"posterior_mean", "posterior_mean_square"}
        variance_Z = means["posterior_mean_square"] - means["posterior_mean"].square()
        active = {"active_units": int((variance_Z > ACTIVE_VARIANCE).sum())}
        return {name: value.item() for name, value in means.items() if name not in of_units} | active

    def score(self, values: dict[str, float]) -> float:
        """An ELBO, nats: the one that the method names."""
        return values[self.model.method.score]

    def picture(self, stream: Stream, data: DataConfig, codec: PatchCodec | None, values: dict) -> Image.Image:
        """Reconstructions, in-paintings, samples."""
        name, config, images = self.model.method.name, self.model.config, values["images"]
        description = Description(
            method=name, data=data, model=config, objective=self.objective, seed=self.seed, images=images
        )
        title = f"{name}, {config.mask_tokens}: {images:,} training images, test BigLearnELBO "
        title += f"{values['biglearn_elbo']:.2f}, JointELBO {values['joint_elbo']:.2f}"
        return draw_sheet(BigLearnVAE(self.model, description, stream.device, codec), stream, title)

    def _noise(self, index_B: Tensor, seed: int) -> Tensor:
        return randomness.normal(seed, "noise", index_B, self.model.config.latent_dim)

    def _task_name(self, n_S: int, n_T: int) -> str:
        if n_S:
            return "conditional"
        return "joint" if n_T == self.model.patches else "marginal"
