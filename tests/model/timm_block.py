"""timm's block, importable beside any torchvision.

timm imports torchvision. Beside a CPU build of torch, torchvision's PyPI wheel (a CUDA build) cannot load its
compiled operators, and its import fails while registering shapes for them. The block uses none of them, so naming
them is enough.
"""

import sys

from torch.library import Library

try:
    import timm.layers  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]
    _operators = Library("torchvision", "FRAGMENT")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.models.vision_transformer import Block as TimmBlock

__all__ = ["TimmBlock"]
