"""The objective of a plan on packed rows: what training uses in both modes.

The results are those of `elbo_terms` (model/objective.py), the readable form, row by row.
"""

from typing import Any

from torch import Tensor

from model.biglearn import BigLearnModel
from model.gaussian import Gaussian, Prior
from model.objective import ElboTerms
from model.packed.plan import PackedPlan, Phase, Places
from model.packed.rectangles import attend_by_rectangles
from model.transformer import Attend


def packed_elbo_terms(
    model: BigLearnModel,
    x_BLD: Tensor,
    plan: PackedPlan,
    order_BL: Tensor,
    noise_BZ: Tensor,
    attend: Attend = attend_by_rectangles,
) -> ElboTerms:
    """What `elbo_terms` gives for the S and T of a plan.

    order_BL: the places of each sample; the first |S| of its group are S, the next |T| are T. attend: see Attend.
    """
    place_N, x_ND = order_BL.flatten(), x_BLD.flatten(0, 1)

    def patches(places: Places) -> tuple[Tensor, Tensor]:
        place_of_N = place_N[places.rank_N]
        return x_ND[places.first_N + place_of_N], place_of_N

    def rows(phase: Phase, **z: Any) -> Tensor:
        tokens_NE = model.embed(*patches(phase.patches), masked_place_N=place_N[phase.masked.rank_N], **z)
        return tokens_NE if phase.order_N is None else tokens_NE.index_select(0, phase.order_N)

    encode, decode = plan.encode, plan.decode
    answers_QE, kept = model.encoding_trunk(rows(encode, z_queries=encode.n_z), encode.inner, encode.last, attend)
    answers = model.z_distribution(answers_QE)
    posterior = answers.of(slice(len(noise_BZ)))
    z_BZ = posterior.draw(noise_BZ)
    answers_NE, _ = model.decoding_trunk(rows(decode, z_BZ=z_BZ), decode.inner, decode.last, attend, kept)

    target_ND, _ = patches(plan.targets)
    error_N = (model.x_head(answers_NE).float() - target_ND).square().sum(-1)
    # Each error to the place of its patch, zeros elsewhere: no sum depends on the order of threads.
    error_BL = error_N.new_zeros(place_N.shape).index_copy(0, plan.targets.rank_N, error_N).view(order_BL.shape)
    kl_B = _prior(model, answers, plan, z_BZ).kl_of(posterior, z_BZ)
    return ElboTerms(-0.5 * error_BL.sum(1), kl_B, posterior, z_BZ)


def _prior(model: BigLearnModel, answers: Gaussian, plan: PackedPlan, z_BZ: Tensor) -> Prior:
    """Of each sample. Expanded where it is shared: what is gathered adds up its gradients in any order."""
    if model.method.fixed_prior:
        return model.method.fixed_prior(z_BZ)
    batch = len(z_BZ) // len(plan.priors)
    return Gaussian.merge([answers.of(rows).expand(batch) for rows in plan.priors])
