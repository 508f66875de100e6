"""The model card of a repository: what a model is, how it is used, how good it is, and where its limits are."""

import yaml

from biglearn_vae.capabilities import BigLearnVAE
from biglearn_vae.hub.files import DECODER, ENCODER, PREVIEW

_TITLE = "Big Learning Variational Auto-Encoders"
_PAPER = "https://openreview.net/search?term=Big%20Learning%20Variational%20Auto-Encoders"
_DATA_SETS = {
    "digits": "the handwritten digits of scikit-learn",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "celeba": "CelebA",
    "folder": "images of a folder",
    "webdataset": "images in tar files",
}
_ON_THE_HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}
_OF_ALL_TASKS = (
    "learned all joint, marginal and conditional distributions of an image at once: it generates images, infers a "
    "latent code z from whatever part of an image there is, and fills in the rest."
)
_METHODS = {
    "biglearn_u": f"One transformer, Ξ, that {_OF_ALL_TASKS}",
    "biglearn_t": f"A pair of transformers, Φ to encode and Θ to decode, that {_OF_ALL_TASKS}",
    "vae": "A joint VAE, a pair of transformers: it generates, encodes and reconstructs whole images.",
}


def model_card(vae: BigLearnVAE, *, license_id: str | None, preview: str, evaluation: str, has_onnx: bool) -> str:
    """README.md of a model repository: metadata, then Markdown.

    license_id: of the weights, as the hub spells it; None: the card says that none is stated. preview: what the picture
    shows, in a sentence without its full stop. evaluation: what was measured, Markdown.
    """
    parts = [
        f"---\n{_metadata(vae, license_id, has_onnx)}---",
        f"# `{vae.method.name}` of {data_set(vae)}",
        _METHODS[vae.method.name],
        f"![{preview}]({PREVIEW})",
        f"{preview}.",
        _facts(vae, license_id),
        f"## Use\n\nWith the package `biglearn_vae` installed, in the folder of this file:\n\n{_example(vae)}",
        f"## Evaluation\n\n{evaluation}",
        *([f"## ONNX\n\n{_onnx(vae)}"] if has_onnx else []),
        f"## Limits\n\n{_limits(vae)}",
        f"## Paper\n\nPlease cite [*{_TITLE}*]({_PAPER}) when you use the model.",
    ]
    return "\n\n".join(parts) + "\n"


def data_set(vae: BigLearnVAE) -> str:
    """What a model was trained on, in words."""
    return _DATA_SETS[vae.description.data.source]


def _metadata(vae: BigLearnVAE, license_id: str | None, has_onnx: bool) -> str:
    tags = ["biglearn-vae", "variational-autoencoder"]
    tags += ["image-inpainting"] * vae.method.is_conditional + ["onnx"] * has_onnx
    values = {"license": license_id} if license_id else {}
    values |= {"library_name": "biglearn-vae", "pipeline_tag": "unconditional-image-generation", "tags": tags}
    if on_the_hub := _ON_THE_HUB.get(vae.description.data.source):
        values["datasets"] = [on_the_hub]
    return yaml.safe_dump(values, sort_keys=False)


def _facts(vae: BigLearnVAE, license_id: str | None) -> str:
    of, data, model = vae.description, vae.description.data, vae.description.model
    side, grid = data.image_size, data.image_size // data.patch_size
    token = f"codes of {data.code_dim} by a convolutional PatchAE, which is there as well" if vae.codec else "pixels"
    trunks = "one for both" if vae.method.trunks == 1 else "one for each"
    rows = {
        "method": f"`{vae.method.name}`",
        "parameters": f"{sum(p.numel() for p in vae.model.parameters()):,}",
        "images": f"{side}×{side} pixels, values in [0, 1]; grey ones have three equal channels",
        "tokens": f"{grid}×{grid} patches of {data.patch_size}×{data.patch_size} pixels, as {token}",
        "transformer": f"{model.encoder_depth} layers to encode and {model.decoder_depth} to decode, {trunks}, width "
        f"{model.embed_dim}, {model.num_heads} heads, mask tokens `{model.mask_tokens}`",
        "latent code z": f"{model.latent_dim} dimensions",
        "objective": f"ELBO with β = {of.objective.beta:g} before the KL divergence",
        "training": f"{of.images:,} images of {data_set(vae)} were seen, repetitions counted",
        "license of the weights": license_id or "not stated: ask who published them before you use them",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _example(vae: BigLearnVAE) -> str:
    side, latent = vae.description.data.image_size, vae.description.model.latent_dim
    lines = [
        "from biglearn_vae import BigLearnVAE",
        "",
        'vae = BigLearnVAE.from_pretrained(".")  # or "OWNER/NAME" of the hub; device="cuda" for a GPU',
        f"images = vae.generate(4, seed=0).clamp(0, 1)  # float32 (4, {side}, {side}, 3)",
    ]
    if vae.method.is_conditional:
        lines += [
            f'images[:, {side // 2}:] = float("nan")  # the lower half is missing',
            f"z = vae.encode(images).mu_BZ  # the mean of p(z | x_S), (4, {latent})",
            f"completed = vae.inpaint(images, draws=3)  # (3, 4, {side}, {side}, 3), what was there is untouched",
        ]
    else:
        lines += [
            f"z = vae.encode(images).mu_BZ  # the mean of p(z | x), (4, {latent})",
            f"again = vae.decode(z)  # (4, {side}, {side}, 3)",
        ]
    return _python(lines)


def _onnx(vae: BigLearnVAE) -> str:
    side, patches = vae.description.data.image_size, vae.description.data.patches
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "",
        f'encoder = onnxruntime.InferenceSession("{ENCODER}")',
        f'decoder = onnxruntime.InferenceSession("{DECODER}")',
        f"images = np.random.rand(2, {side}, {side}, 3).astype(np.float32)",
    ]
    text = f"`{ENCODER}` and `{DECODER}` compute the same without torch, in batches of any size."
    if vae.method.is_conditional:
        text += (
            " `observed` says which patches are known, row by row; where none is, the encoder gives the prior p(z), and"
            " the decoder an image of z alone."
        )
        lines += [
            f"observed = np.arange({patches}) < {patches} // 2  # the upper half",
            "observed = np.stack([observed, observed])",
            'mu, logvar = encoder.run(None, {"images": images, "observed": observed})',
            'completed = decoder.run(None, {"z": mu, "images": images, "observed": observed})[0]',
        ]
    else:
        lines += ['mu, logvar = encoder.run(None, {"images": images})', 'again = decoder.run(None, {"z": mu})[0]']
    return f"{text}\n\n{_python(lines)}"


def _limits(vae: BigLearnVAE) -> str:
    side = vae.description.data.image_size
    return (
        f"The model knows square images of {side}×{side} pixels like those of its training, with their biases, and"
        " takes every other image for one of them. What it generates or fills in is likely by that training, not what"
        " was there: it is no evidence of what a picture hides, least of all of a person."
    )


def _python(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
