"""How much memory tensors hold while something runs, counted storage by storage."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """Inside it the storages that operations make are counted until they are freed.

    device: the kind of tensors that count. now, peak: bytes, of those that live and the most that ever did. Scratch
    memory of kernels is not seen. What the host reads of a tensor without storage is zeros.
    """

    def __init__(self, device: str):
        super().__init__()
        self._device, self._storages = device, dict[int, weakref.ref]()
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == _CPU:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=_CPU)
        made = operation(*args, **kwargs)
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, Tensor):
                self.count(x)
        return made

    def count(self, x: Tensor) -> None:
        """Count a tensor, which may have been made before."""
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if x.device.type != self._device or key in self._storages:
            return

        def freed(_: object) -> None:
            del self._storages[key]
            self.now -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
