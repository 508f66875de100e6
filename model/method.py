"""The methods: which trunks a model has, what it is trained on, and what its prior is. All else is shared.

Another method is an entry of METHODS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from model.gaussian import Gaussian, Prior
from model.masks import Plan, joint_plans, make_plans


@dataclass(frozen=True)
class Method:
    """trunks: 1, for encode and decode alike, or one for each. score: the evaluation by which checkpoints are compared.

    plans: from the objective's configuration, the number of patches and the seed. fixed_prior: p(z), made for a tensor
    in the shape of z; then the plans have no S. None: it is learned, p(z | x_S) for any S.
    """

    name: str
    trunks: int
    plans: Callable[..., tuple[Plan, ...]]
    score: str
    fixed_prior: Callable[[Tensor], Prior] | None = None

    @property
    def is_conditional(self) -> bool:
        """Whether it is trained on parts of images."""
        return self.fixed_prior is None


def _joint(objective: object, patches: int, seed: int) -> tuple[Plan, ...]:
    return joint_plans(patches)


METHODS = {
    method.name: method
    for method in (
        Method("vae", 2, _joint, "joint_elbo", fixed_prior=Gaussian.standard),  # eq. (1)
        Method("biglearn_t", 2, make_plans, "biglearn_elbo"),  # eq. (6)
        Method("biglearn_u", 1, make_plans, "biglearn_elbo"),  # eq. (7)
    )
}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
