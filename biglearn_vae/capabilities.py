"""What a trained model can do (paper Table 2), on images with or without missing pixels."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from biglearn_vae.export import CONFIG, EXPORTED, WEIGHTS, Description, read_export, write_export
from biglearn_vae.likelihood import importance_weighted_bound
from biglearn_vae.observation import Observation, Rule, observe
from biglearn_vae.pseudo_gibbs import pseudo_gibbs
from biglearn_vae.trained import read_trained
from data import randomness
from data.errors import UserError
from data.patches import patchify, unpatchify
from data.storage.hub import download
from model.biglearn import BigLearnModel
from model.gaussian import Gaussian, Prior
from model.method import METHODS
from model.objective import elbo_terms
from model.patch_autoencoder.codec import PatchCodec

OfEach = int | Sequence[int]  # one for all images, or one for each


class BigLearnVAE:
    """A trained `biglearn_u`, `biglearn_t` or `vae`.

    Wherever a method takes `images`, it takes an `Observation` (see `observe`) or what makes one: an array (B, H, W, C)
    or (B, C, H, W) of colour or grey, uint8 or floating point in [0, 1], in which NaN is a missing pixel. Images that
    come out are float32 (B, H, W, 3) on the CPU; the means of p(x_T | z, x_S) may leave [0, 1] by a little.

    Everything random follows from `seed` and the number of the image, which is first_index for the first one: the same
    images give the same results in batches of any size. At most `batch_size` images are computed at once. `generate`,
    `infer` and `inpaint` also take lists: of the seed, and as first_index of the number, of each image.

    The joint VAE has no p(z | x_S) for a part of an image: it refuses, and offers `pseudo_gibbs`.

    A model of PatchAE codes has a `codec`: images go in and come out as with every other, through the PatchAE. Its
    bounds are of the standardised codes, not of pixels.
    """

    def __init__(
        self,
        model: BigLearnModel,
        description: Description,
        device: str | torch.device = "cpu",
        codec: PatchCodec | None = None,
    ):
        assert bool(codec) == bool(description.data.code_dim), "tokens are codes if and only if there is a codec"
        self.model, self.description, self.method = model.to(device), description, METHODS[description.method]
        self.codec = codec.to(device) if codec else None
        self.device, self.batch_size = torch.device(device), 256
        self.progress: Callable[[Sequence], Iterable] = iter  # what shows the portions of a long computation

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "BigLearnVAE":
        """From a run's folder (its newest whole checkpoint), a checkpoint, or an export. The averaged weights."""
        path = Path(path)
        try:
            if (path / WEIGHTS).exists() or (path / CONFIG).exists():
                description, weights, codec = read_export(path)
            else:
                description, weights, codec = read_trained(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): give a run or an export") from None
        return cls(description.build(weights), description, device, codec)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device = "cpu") -> "BigLearnVAE":
        """`load` of a folder, or of what the model repository OWNER/NAME of the Hugging Face hub has of an export.

        Only the files of an export are fetched. HF_TOKEN, HF_HOME and HF_ENDPOINT mean what they mean to
        huggingface_hub.
        """
        return cls.load(name if Path(name).is_dir() else download(str(name), EXPORTED), device)

    def export(self, folder: str | Path) -> None:
        """Write weights and configuration, for `load` on a machine without the training code."""
        write_export(Path(folder), self.description, dict(self.model.named_parameters()), self.codec)

    # What is known

    def observe(self, images, mask=None, observed: Rule = "all") -> Observation:
        """An Observation from arrays, as biglearn_vae/observation.py says; one that is made already stays as it is."""
        if isinstance(images, Observation):
            return images.to("cpu")
        data = self.description.data
        return observe(images, mask, observed=observed, image_size=data.image_size, patch_size=data.patch_size)

    # Encode and decode

    def encode(self, images) -> Gaussian:
        """p(z | x_S): the posterior of a whole image, that of an incomplete one, the prior where nothing is known.

        For p(z | x_{S1 ∪ S2}), merge two observations first: `vae.encode(one.merge(other))`.
        """
        given = self._known(images)
        return Gaussian(*self._in_portions(self.encode_portion, given))

    def decode(self, z_BZ: Tensor, images=None) -> Tensor:
        """The mean of p(x_T | z, x_S), T everything that is missing; known pixels come back untouched.

        images: x_S; None for p(x | z).
        """
        latent_dim = self.description.model.latent_dim
        if z_BZ.dim() != 2 or z_BZ.shape[1] != latent_dim:
            raise UserError(f"z has the shape {tuple(z_BZ.shape)}, the model needs (B, {latent_dim})")
        given = self._nothing(len(z_BZ)) if images is None else self._known(images)
        if len(given) != len(z_BZ):
            raise UserError(f"{len(z_BZ)} codes for {len(given)} images: give as many of both")
        (images_BHWC,) = self._in_portions(self.decode_portion, given, z_BZ)
        return given.complete(images_BHWC)

    def prior(self, count: int = 1) -> Prior:
        """p(z) for so many samples: learned, N(0, I) for the joint VAE."""
        if self.method.fixed_prior:
            return self.method.fixed_prior(torch.zeros(count, self.description.model.latent_dim))
        return self.encode(self._nothing(1)).expand(count)

    # Combinations of the two

    def generate(self, count: int, *, seed: OfEach = 0, first_index: OfEach = 0) -> Tensor:
        """New images: z ~ p(z), then p(x | z)."""
        _require(count=count)
        return self.decode(self.prior(count).draw(self._noise("generate", seed, count, first_index)))

    def reconstruct(self, images) -> Tensor:
        """p(x | z) with z the mean of p(z | x), of whole images."""
        given = self._known(images)
        if not given.observed_BL.all():
            raise UserError("a reconstruction needs whole images: infer or in-paint what has missing pixels")
        return self.decode(self.encode(given).mu_BZ)

    def infer(self, images, *, draws: int = 1, seed: OfEach = 0, first_index: OfEach = 0) -> Tensor:
        """From incomplete images to z, and from z alone to whole images: z ~ p(z | x_S), then p(x | z).

        draws: so many for each image; 0: one, with z the mean of p(z | x_S). Returns (max(draws, 1), B, H, W, 3).
        """
        given = self._known(images)
        return torch.stack([self.decode(z_BZ) for z_BZ in self._codes(given, draws, seed, first_index)])

    def inpaint(self, images, *, draws: int = 1, seed: OfEach = 0, first_index: OfEach = 0) -> Tensor:
        """Diverse completions: z ~ p(z | x_S), then p(x_T | z, x_S). Known pixels come back untouched.

        draws: as in `infer`. Strokes guide it as x_S: `inpaint(vae.observe(strokes, mask, observed="any"))`.
        """
        given = self._known(images)
        return torch.stack([self.decode(z_BZ, given) for z_BZ in self._codes(given, draws, seed, first_index)])

    def pseudo_gibbs(
        self,
        images,
        *,
        draws: int = 1,
        burn_in: int = 50,
        steps: int = 10,
        start_HWC: Tensor | None = None,
        metropolis: bool = False,
        seed: int = 0,
        first_index: int = 0,
    ) -> Tensor:
        """In-painting by a chain of whole images through p(z | x) and p(x | z) (Rezende et al. 2014), with σ² = β.

        What a joint VAE can do. start_HWC: what first stands at missing patches, such as the mean training image;
        None: the mean of 64 images that the model generates. The chain makes burn_in steps, then gives an image
        every `steps` steps, draws of them: (draws, B, H, W, 3), known pixels untouched, missing patches without the
        noise of p(x | z). metropolis: it corrects for a p(z | x) that is not the posterior (Mattei & Frellsen 2018).
        """
        _require(draws=draws, steps=steps)
        _require(0, burn_in=burn_in)
        given = self.observe(images)
        start_HWC = self.generate(64, seed=seed).mean(0) if start_HWC is None else start_HWC
        if tuple(start_HWC.shape) != given.images_BHWC.shape[1:]:
            raise UserError(f"start_HWC is {tuple(start_HWC.shape)}, not {tuple(given.images_BHWC.shape[1:])}")
        start_LD = self._tokens(self.observe(start_HWC[None].clamp(0, 1)).to(self.device))[0]

        def chain(part: Observation, index_B: Tensor) -> tuple[Tensor, ...]:
            states = pseudo_gibbs(
                self.model,
                self._tokens(part),
                part.observed_BL,
                start_LD,
                variance=self.variance,
                burn_in=burn_in,
                steps=steps,
                draws=draws,
                seed=seed,
                index_B=index_B,
                metropolis=metropolis,
            )
            return tuple(part.complete(self._images(x_BLD)) for x_BLD in states)

        return torch.stack(self._in_portions(chain, given, self._indices(len(given), first_index)))

    def interpolate(self, images, others, steps: int = 8) -> Tensor:
        """From images to others along straight lines between the means of their codes: (steps, B, H, W, 3).

        The first and the last are reconstructions (Fig. 9).
        """
        _require(steps=steps)
        start, end = self.encode(images).mu_BZ, self.encode(others).mu_BZ
        if len(start) != len(end):
            raise UserError(f"{len(start)} images cannot go over to {len(end)}: give as many of both")
        return torch.stack([self.decode(start.lerp(end, share)) for share in torch.linspace(0, 1, steps).tolist()])

    def decoding_sensitivity(
        self, images, dimensions: Sequence[int], *, delta: float = 5.0, seed: int = 0, first_index: int = 0
    ) -> tuple[Tensor, Tensor]:
        """p(x_T | z, x_S) and p(x_T | z + Δz, x_S), z ~ p(z | x_S), Δz = delta in one dimension each time (Fig. 11).

        Returns (B, H, W, 3) and (len(dimensions), B, H, W, 3).
        """
        given = self._known(images)
        (z_BZ,) = self._codes(given, 1, seed, first_index)
        latent_dim = self.description.model.latent_dim
        if not len(dimensions) or not all(0 <= dimension < latent_dim for dimension in dimensions):
            raise UserError(f"z has the dimensions 0 to {latent_dim - 1}: give some of them, not {[*dimensions]}")
        step_ZZ = delta * torch.eye(latent_dim)
        changed = [self.decode(z_BZ + step_ZZ[dimension], given) for dimension in self.progress(dimensions)]
        return self.decode(z_BZ, given), torch.stack(changed)

    def encoding_sensitivity(self, images, change_BHWC: Tensor) -> tuple[Gaussian, Gaussian]:
        """p(z | x_S) and p(z | x_S + Δx), Δx added to the known pixels, which may leave [0, 1] (Fig. 12)."""
        given = self._known(images)
        if change_BHWC.shape != given.images_BHWC.shape:
            raise UserError(f"the change is {tuple(change_BHWC.shape)}, not {tuple(given.images_BHWC.shape)}")
        changed_BHWC = given.images_BHWC + change_BHWC.cpu() * given.seen_BHW[..., None]
        return self.encode(given), self.encode(Observation(changed_BHWC, given.seen_BHW, given.observed_BL))

    # Evidence

    @property
    def variance(self) -> float:
        """σ² of p(x_T | z, x_S) as a likelihood of pixels: β, because the objective divided by β is a true bound."""
        return self.description.objective.beta

    def elbo(
        self,
        images,
        observed_BL: Tensor | None = None,
        target_BL: Tensor | None = None,
        *,
        seed: int = 0,
        first_index: int = 0,
    ) -> Tensor:
        """The objective of eq. (7), as it is trained (σ = 1, without constants), of each whole image, (B,), nats.

        observed_BL, target_BL: S and T, bool, disjoint. Without S it is empty, without T it is the rest: the JointELBO
        of eq. (1) without both. One draw of z.
        """
        given, parts = self._task(images, observed_BL, target_BL)

        def terms(part: Observation, index_B: Tensor, S_BL: Tensor, T_BL: Tensor) -> tuple[Tensor]:
            noise_BZ = randomness.normal(seed, "elbo", index_B, self.description.model.latent_dim)
            found = elbo_terms(self.model, self._tokens(part), S_BL, T_BL, noise_BZ)
            return (found.elbo_B(self.description.objective.beta),)

        return self._in_portions(terms, given, self._indices(len(given), first_index), *parts)[0]

    def log_likelihood_bound(
        self,
        images,
        observed_BL: Tensor | None = None,
        target_BL: Tensor | None = None,
        *,
        samples: int = 64,
        seed: int = 0,
        first_index: int = 0,
    ) -> Tensor:
        """Importance-weighted lower bound of log p(x_T | x_S) of each whole image, (B,), nats, with σ² = β.

        S and T as in `elbo`: log p(x) without both. samples: draws of z from p(z | x_{S∪T}), k; the bound rises with
        it towards the likelihood (Burda et al. 2015). All constants are there.
        """
        _require(samples=samples)
        if not self.variance:
            raise UserError("the model was trained with objective.beta=0: pixels of variance 0 have no likelihood")
        given, parts = self._task(images, observed_BL, target_BL)

        def bound(part: Observation, index_B: Tensor, S_BL: Tensor, T_BL: Tensor) -> tuple[Tensor]:
            args = (self.model, self._tokens(part), S_BL, T_BL)
            how = {"variance": self.variance, "samples": samples, "seed": seed, "index_B": index_B}
            return (importance_weighted_bound(*args, **how),)

        return self._in_portions(bound, given, self._indices(len(given), first_index), *parts)[0]

    # Between images and what the model computes on

    def draw(self, distribution: Gaussian, purpose: str, seed: int, first_index: int = 0) -> Tensor:
        """z ~ N(mu, sigma²) of each image, (B, Z)."""
        return distribution.draw(self._noise(purpose, seed, len(distribution.mu_BZ), first_index))

    def encode_portion(self, given: Observation) -> tuple[Tensor, Tensor]:
        """mu and logvar of p(z | x_S), (B, Z) each, of images on the device, all at once."""
        mu_BZ, logvar_BZ = self.model.encode(self._tokens(given), given.observed_BL)
        if not self.method.is_conditional:
            knows_B1 = given.observed_BL.any(1, keepdim=True)
            mu_BZ, logvar_BZ = mu_BZ * knows_B1, logvar_BZ * knows_B1
        return mu_BZ, logvar_BZ

    def decode_portion(self, given: Observation, z_BZ: Tensor) -> tuple[Tensor]:
        """The mean of p(x | z, x_S) at every place, (B, H, W, 3), of images on the device, all at once."""
        return (self._images(self.model.decode(z_BZ, self._tokens(given), given.observed_BL)),)

    def _noise(self, purpose: str, seed: OfEach, count: int, first_index: OfEach) -> Tensor:
        if not isinstance(seed, int):
            seed = _of_each("seed", seed, count)
        return randomness.normal(seed, purpose, self._indices(count, first_index), self.description.model.latent_dim)

    def _known(self, images) -> Observation:
        """Images of which the model can take what is known."""
        given = self.observe(images)
        if not self.method.is_conditional and (given.observed_BL.any(1) != given.observed_BL.all(1)).any():
            raise UserError(
                "the joint VAE was not trained on parts of images: use pseudo_gibbs (the command pseudo-gibbs), "
                "or a BigLearn-VAE"
            )
        return given

    def _nothing(self, count: int) -> Observation:
        side, patches = self.description.data.image_size, self.description.data.patches
        seen_BHW, observed_BL = (torch.zeros(1, *shape, dtype=torch.bool) for shape in ((side, side), (patches,)))
        images_BHWC = torch.zeros(1, side, side, 3)
        return Observation(*(x.expand(count, *x.shape[1:]) for x in (images_BHWC, seen_BHW, observed_BL)))

    def _task(self, images, observed_BL: Tensor | None, target_BL: Tensor | None):
        """Whole images, and S and T of them."""
        given = self.observe(images)
        if not given.observed_BL.all():
            raise UserError("a bound needs whole images: S and T say which part is given and which is predicted")
        S_BL = torch.zeros_like(given.observed_BL) if observed_BL is None else torch.as_tensor(observed_BL).cpu()
        T_BL = S_BL.logical_not() if target_BL is None else torch.as_tensor(target_BL).cpu()
        for name, chosen_BL in (("observed_BL", S_BL), ("target_BL", T_BL)):
            if chosen_BL.shape != given.observed_BL.shape or chosen_BL.dtype != torch.bool:
                wanted = tuple(given.observed_BL.shape)
                raise UserError(f"{name} is {chosen_BL.dtype} {tuple(chosen_BL.shape)}, not bool {wanted}")
        if (S_BL & T_BL).any() or not T_BL.any(1).all():
            raise UserError("S and T share a patch, or T is empty: they must be disjoint, and T hold a patch")
        if not self.method.is_conditional and S_BL.any():
            raise UserError("the joint VAE has no p(x_T | x_S): leave S empty, or use a BigLearn-VAE")
        return given, (S_BL, T_BL)

    def _codes(self, given: Observation, draws: int, seed: OfEach, first_index: OfEach) -> list[Tensor]:
        """z of each draw; the mean for none."""
        _require(0, draws=draws)
        distribution = self.encode(given)
        if draws == 0:
            return [distribution.mu_BZ]
        knows_B1 = given.observed_BL.any(1, keepdim=True)
        codes = []
        for k in range(draws):
            noise_BZ = self._noise(f"draw {k}", seed, len(given), first_index)
            z_BZ = distribution.draw(noise_BZ)
            if self.method.fixed_prior:  # which is perhaps no Gaussian
                z_BZ = torch.where(knows_B1, z_BZ, self.prior(len(given)).draw(noise_BZ))
            codes.append(z_BZ)
        return codes

    def _indices(self, count: int, first_index: OfEach) -> Tensor:
        if not isinstance(first_index, int):
            return _of_each("first_index", first_index, count)
        return torch.arange(first_index, first_index + count)

    def _tokens(self, given: Observation) -> Tensor:
        pixels_BLD = patchify(given.images_BHWC, self.description.data.patch_size)
        return self.codec.encode(pixels_BLD) if self.codec else pixels_BLD

    def _images(self, x_BLD: Tensor) -> Tensor:
        pixels_BLD = self.codec.decode(x_BLD) if self.codec else x_BLD
        return unpatchify(pixels_BLD, self.description.data.patch_size)

    @torch.no_grad()  # not inference_mode: codes and images that come out can be changed in place, and learned from
    def _in_portions(self, compute: Callable[..., tuple[Tensor, ...]], *inputs) -> tuple[Tensor, ...]:
        """Results of `compute` on the CPU, from portions of at most batch_size images on the device."""
        if len(inputs[0]) == 0:
            raise UserError("there are no images: give at least one")
        results = []
        for start in self.progress(range(0, len(inputs[0]), self.batch_size)):
            portion = (x[start : start + self.batch_size].to(self.device) for x in inputs)
            results.append([value.cpu() for value in compute(*portion)])
        return tuple(torch.cat(values) for values in zip(*results, strict=True))


def _of_each(name: str, values: Sequence[int], count: int) -> Tensor:
    if len(values) != count:
        raise UserError(f"{name} has {len(values)} numbers for {count} images: give one for all, or one for each")
    return torch.tensor(values, dtype=torch.int64)


def _require(least: int = 1, **counts: int) -> None:
    """UserError that names a count which is too small."""
    for name, count in counts.items():
        if count < least:
            raise UserError(f"{name} is {count}: set it to at least {least}")
