from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from scripts.inference.views import VIEWS, view_network

__all__ = ["TileInferer"]


class TileInferer(SlidingWindowInferer):
    """
    Tiles that slide over images of any size, without black borders and without work on padding.

    There are as few tiles as reach across the image, and they are as small as then suffices, rounded up to
    ``size_multiple``. Where an image is smaller than that, what is missing is filled by mirroring it. The output has
    exactly the size of the input.

    Args:
        roi_size: longest side of a tile in pixels, a multiple of ``size_multiple``.
        overlap: what neighbours have in common at least, as a share of ``roi_size``, in [0, 1).
        mode: how overlapping tiles are blended, ``gaussian`` or ``constant``.
        size_multiple: the network takes sides that are multiples of this.
        sw_batch_size: tiles per forward pass.
        views: see :func:`scripts.inference.views.view_network`; more than one add a channel to the output.
        amp: run the network in mixed precision, on whatever device the image is; the output is float32 all the same.
        kwargs: further arguments of MONAI's ``SlidingWindowInferer``, such as ``device`` or ``progress``.

    Raises:
        ValueError: when ``roi_size`` is not a multiple of ``size_multiple``, or ``views`` is not known.
    """

    def __init__(
        self,
        roi_size: int = 512,
        overlap: float = 0.25,
        mode: str = "gaussian",
        size_multiple: int = 32,
        sw_batch_size: int = 4,
        views: int = 1,
        amp: bool = False,
        **kwargs: Any,
    ) -> None:
        if roi_size <= 0 or roi_size % size_multiple:
            raise ValueError(
                f"roi_size must be a positive multiple of size_multiple, got {roi_size} and {size_multiple}"
            )
        if views not in VIEWS:
            raise ValueError(f"views must be one of {', '.join(map(str, VIEWS))}, got {views!r}")
        super().__init__((roi_size, roi_size), sw_batch_size, overlap, mode, **kwargs)
        self.size_multiple = size_multiple
        self.views, self.amp = views, amp

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """
        Args:
            inputs: (B, C, H, W).
            network: takes (B', C, h, w), h and w multiples of ``size_multiple``, to a tensor (B', K, h, w).

        Returns:
            (B, K, H, W), a MetaTensor with the input's meta data if the input is one.
        """
        sizes = tuple(inputs.shape[2:])
        tiles = copy.copy(self)  # this object may serve several threads: its own roi_size stays
        common = int(self.overlap * self.roi_size[0])
        tiles.roi_size = tuple(
            _fitting(size, tile, common, self.size_multiple) for size, tile in zip(sizes, self.roi_size)
        )
        # half a pixel less: MONAI rounds the step from tile to tile down
        tiles.overlap = [max(common - 0.5, 0) / tile if tile < size else 0 for size, tile in zip(sizes, tiles.roi_size)]
        starts = []
        for dim, (size, tile) in enumerate(zip(sizes, tiles.roi_size), start=2):
            missing = max(tile - size, 0)
            starts.append(missing // 2)
            if missing:
                # torch mirrors only by less than the image's size; numpy goes back and forth as often as needed
                mirrored = np.pad(np.arange(size), (missing // 2, missing - missing // 2), mode="reflect")
                inputs = inputs.index_select(dim, torch.as_tensor(mirrored, device=inputs.device))
        looks = view_network(network, self.views, self.size_multiple)

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            with torch.autocast(x.device.type, enabled=self.amp):
                return looks(x, *args, **kwargs).float()

        outputs = SlidingWindowInferer.__call__(tiles, inputs, forward, *args, **kwargs)
        return outputs[:, :, starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]


def _fitting(size: int, longest: int, common: int, multiple: int) -> int:
    """Side of the tiles, as few as possible, that reach across ``size`` pixels with ``common`` ones of neighbours."""
    count = max(-(-(size - common) // (longest - common)), 1)
    side = -(-(size + (count - 1) * common) // count)
    return -(-side // multiple) * multiple
