"""
Lets torchvision's CUDA build be imported beside a CPU build of torch, where it stops at operators that it lacks.

MONAI Label imports torchvision, of which it uses only pictures' grids. Import this module before it; for MONAI Label's
own apps, which cannot, a copy of it called ``sitecustomize.py`` in a folder of ``PYTHONPATH`` does the same.
"""

import torch

try:
    import torchvision  # noqa: F401
except ImportError:
    pass  # MONAI Label tells what to install
except RuntimeError:
    _operators = torch.library.Library("torchvision", "DEF")  # they are declared as long as this object lives
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
