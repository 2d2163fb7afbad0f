"""Import before torchvision: makes a CUDA build of torchvision work with a CPU build of torch.

On import, torchvision registers fake kernels for two detection ops that only its CUDA library
defines. Declaring their schemas is enough for data sets, transforms and models; the detection ops
stay unavailable.
"""

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms does not exist" not in str(error):
        raise
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_name]
    # At module level, because a Library undoes its definitions when it is garbage-collected.
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
