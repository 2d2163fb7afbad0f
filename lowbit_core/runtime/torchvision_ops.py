"""Import before torchvision: lets a CUDA build of torchvision import beside a CPU build of torch.

Its import registers fake kernels for two detection ops that only its CUDA library defines.
Declaring their schemas is enough for datasets, transforms and models; detection stays unavailable.
"""

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms does not exist" not in str(error):
        raise
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_name]
    # Kept alive at module level: a Library undoes its definitions when it is collected.
    _library = torch.library.Library("torchvision", "DEF")
    for _schema in _SCHEMAS:
        _library.define(_schema)
    import torchvision  # noqa: F401
