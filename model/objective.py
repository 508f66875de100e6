"""The objective: eq. (7) of the paper as one function of (S, T). Eqs. (1), (4), (5), (6) are cases of it."""

from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from data.section import Section
from model.biglearn import BigLearnModel
from model.gaussian import Gaussian, Prior

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class ObjectiveConfig(Section):
    """What is maximised, and how S and T are drawn (Algorithm 1)."""

    beta: float = Field(0.01, ge=0, allow_inf_nan=False)  # weight of the KL: at the end, and in every evaluation
    beta_start: float | None = Field(None, gt=0)  # at the beginning; null: beta all the time
    beta_range: tuple[Share, Share] = (0.3, 0.7)  # the shares of a run between which beta_start grows to beta
    s_beta: tuple[Positive, Positive] = (0.5, 3.0)  # S-ratio ~ Beta(a, b)
    t_beta: tuple[Positive, Positive] = (3.0, 0.5)  # T-ratio ~ Beta(a, b)
    joint_probability: float = Field(0, ge=0, le=1)  # extra share of the joint task (S empty, T everything)
    connected_share: float = Field(0, ge=0, le=1)  # of the samples whose S is a half-plane, a block or all but one
    groups: int = Field(8, gt=0)  # mask sizes in one batch
    plans: int = Field(16, gt=0)  # steps after which the mask sizes repeat

    @model_validator(mode="after")
    def _grows(self) -> Self:
        first, last = self.beta_range
        if self.beta_start is not None and not (first <= last and self.beta > 0):
            raise ValueError(
                "beta_start grows to beta between the two shares of beta_range: give them in order, and beta > 0"
            )
        return self


@dataclass(frozen=True)
class ElboTerms:
    """For each sample: reconstruction_B = -½ SSE over the pixels of x_T, and kl_B, both float32 in nats.

    posterior: p(z | x_{S∪T}). z_BZ: its draw, which was decoded.
    """

    reconstruction_B: Tensor
    kl_B: Tensor
    posterior: Gaussian
    z_BZ: Tensor

    def elbo_B(self, beta: float | Tensor) -> Tensor:
        return self.reconstruction_B - beta * self.kl_B

    def with_prior(self, prior: Prior) -> "ElboTerms":
        """The same with another prior of z: another KL alone."""
        return replace(self, kl_B=prior.kl_of(self.posterior, self.z_BZ))


def elbo_terms(
    model: BigLearnModel, x_BLD: Tensor, observed_BL: Tensor, target_BL: Tensor, noise_BZ: Tensor
) -> ElboTerms:
    """One-sample estimate of E log p(x_T | z, x_S) and KL(p(z | x_{S∪T}) || p(z | x_S)), eq. (7).

    observed_BL, target_BL: S and T, bool, disjoint. noise_BZ: standard normal, z = mu + sigma * noise. Gradients flow
    through both arms of the KL. The log-likelihood is that of unit variance without its constant (Sec. 2.1).
    """
    posterior = model.encode(x_BLD, observed_BL | target_BL)
    prior = model.prior(x_BLD, observed_BL)
    z_BZ = posterior.draw(noise_BZ)
    error_BLD = (model.decode(z_BZ, x_BLD, observed_BL) - x_BLD).square()
    sse_B = (error_BLD.sum(-1) * target_BL).sum(-1)
    return ElboTerms(-0.5 * sse_B, prior.kl_of(posterior, z_BZ), posterior, z_BZ)
