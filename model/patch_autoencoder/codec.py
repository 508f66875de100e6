"""Between pixels and the tokens of stage 2: PatchAE codes, standardised per dimension (paper Appendix B)."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from data.errors import UserError
from data.storage.addresses import split_address
from data.storage.storage import storage_of
from model.patch_autoencoder.network import PatchAutoencoder

CODEC = "codec.safetensors"
_FILE_BYTES = 2**26
_HEADER_BYTES = 2**20


class PatchCodec(nn.Module):
    """A frozen PatchAE, and the mean and standard deviation of each dimension of its codes of the training images.

    mean_C, std_C: float32; std_C above 0. images: the checksum of the index of these images. patch_autoencoder:
    identifies the weights of the PatchAE; checksum: the whole codec.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, autoencoder: PatchAutoencoder, mean_C: Tensor, std_C: Tensor, images: str):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.patch_autoencoder = weights_sha256(autoencoder)
        self.register_buffer("mean_C", mean_C.float())
        self.register_buffer("std_C", std_C.float())
        self.images = images
        self.checksum = hashlib.sha256(f"{weights_sha256(self)} {images}".encode()).hexdigest()

    @property
    def code_dim(self) -> int:
        return len(self.mean_C)

    def encode(self, x_BLD: Tensor) -> Tensor:
        """Tokens (B, L, C), float32, of patches of pixels (B, L, 768) in [0, 1]; what latent shards give, too."""
        return self.standardise(codes_of(self.autoencoder, x_BLD))

    def standardise(self, code_BLC: Tensor) -> Tensor:
        """Tokens of codes as they are stored."""
        return (code_BLC.float() - self.mean_C) / self.std_C

    @torch.no_grad()
    def decode(self, token_BLC: Tensor) -> Tensor:
        """Patches of pixels (B, L, 768), float32, of tokens."""
        code_NC = (token_BLC.float() * self.std_C + self.mean_C).flatten(0, 1)
        return self.autoencoder.decode(code_NC).unflatten(0, token_BLC.shape[:2])

    def to_bytes(self) -> bytes:
        """The content of a file that `read_codec` reads."""
        return to_safetensors(self.state_dict(), {"of": f"{self.images} {self.checksum}"})


def to_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A file of tensors with this metadata, and the format that loaders ask for. The same bytes each time."""
    content = save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"format": "pt"} | metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # safetensors writes it in any order
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + written.ljust(end - 8) + content[end:]


@torch.no_grad()
def codes_of(autoencoder: PatchAutoencoder, x_BLD: Tensor) -> Tensor:
    """Codes as they are stored, float16 (B, L, C), of patches of pixels (B, L, 768) in [0, 1]."""
    return autoencoder.encode(x_BLD.flatten(0, 1)).half().unflatten(0, x_BLD.shape[:2])


def weights_sha256(module: nn.Module) -> str:
    """Identifies the weights of a module, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def is_codec_file(folder: Path | str) -> bool:
    """Whether `CODEC` in a folder says that it is ours, however damaged it may be behind its header."""
    try:
        with storage_of(folder).open(CODEC) as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _HEADER_BYTES)))
        return {"mean_C", "std_C"} <= header.keys() and "of" in header["__metadata__"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


def read_codec(path: Path | str) -> PatchCodec:
    """A codec from its file or address. Raises OSError, and UserError, which names it, for what is no codec."""
    folder, name = split_address(str(path))
    with storage_of(folder).open(name) as file:
        if file.size > _FILE_BYTES:
            raise UserError(f"{path} is no codec: it is larger than any of ours")
        return parse_codec(file.read(), path)


def parse_codec(content: bytes, path: Path | str) -> PatchCodec:
    """A codec from the content of its file."""
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        images, _, checksum = header.get("__metadata__", {}).get("of", "").partition(" ")
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error})") from None
    autoencoder = PatchAutoencoder()
    wanted = {f"autoencoder.{name}": tuple(value.shape) for name, value in autoencoder.state_dict().items()}
    wanted |= {"mean_C": (autoencoder.code_dim,), "std_C": (autoencoder.code_dim,)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != wanted or not all(value.dtype == torch.float32 for value in tensors.values()):
        raise UserError(f"{path} holds no PatchAE with the statistics of its codes")
    if not all(value.isfinite().all() for value in tensors.values()) or not (tensors["std_C"] > 0).all():
        raise UserError(f"{path} holds weights that are not finite, or codes of variance 0")
    mean_C, std_C = tensors.pop("mean_C"), tensors.pop("std_C")
    autoencoder.load_state_dict({name.removeprefix("autoencoder."): value for name, value in tensors.items()})
    codec = PatchCodec(autoencoder, mean_C, std_C, images)
    if codec.checksum != checksum:
        raise UserError(f"{path} is damaged (its checksum differs)")
    return codec
