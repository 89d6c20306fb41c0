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

    Where an image is smaller than a tile, the tile shrinks to the image's size rounded up to ``size_multiple``. What
    then is still missing is filled by mirroring the image. The output has exactly the size of the input.

    Args:
        roi_size: side of the square tile in pixels, a multiple of ``size_multiple``.
        overlap: share of a tile that neighbours have in common, in [0, 1).
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
        tiles.roi_size = tuple(
            min(tile, -(-size // self.size_multiple) * self.size_multiple) for tile, size in zip(self.roi_size, sizes)
        )
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
