from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy import ndimage
from scripts.judging import judge
from scripts.nuclei.measures import outline, solidity
from scripts.nuclei.metrics import known_mpp
from scripts.nuclei.separating import separate
from scripts.nuclei.targets import channel_count, usual_targets
from skimage.measure import label as connected_components

__all__ = ["LogitsToInstancesd", "logits_to_instances"]

METHODS = ("watershed", "components")
PEAK = 10  # pixels that have to be as sure as ``min_peak``: one alone is noise
SMALL = 2.5  # times min_area: below it a nucleus must have min_solidity, see docs/experiments.md


def logits_to_instances(
    logits: np.ndarray | torch.Tensor,
    threshold: float = 0.4,
    marker_depth: float = 0.1,
    min_area: float = 20,
    method: str = "watershed",
    targets: str | None = None,
    min_solidity: float = 0.0,
    min_peak: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Turn a network's logits into a mask and its nuclei.

    The foreground is cut into nuclei by what the other channels say, see :func:`scripts.nuclei.separating.separate`.
    Holes inside of one nucleus are filled, gaps between nuclei are not. With one channel the nuclei are the connected
    components, as with ``components``.

    Args:
        logits: (C, H, W), the channels of ``targets``; or (1, H, W), the foreground alone.
        threshold: foreground probability from which a pixel belongs to a nucleus, in (0, 1).
        marker_depth: in (0, 1], how clear a boundary must be: smaller values separate more touching nuclei and split
            more single ones. For ``distance``, on its scale of 0 at a nucleus' border and 1 at its centre.
        min_area: smaller nuclei are removed, in pixels.
        method: ``watershed``, or ``components`` to leave touching nuclei together.
        targets: what the channels mean, a key of ``targets.CHANNELS``; None what so many usually mean.
        min_solidity: in [0, 1]; of nuclei smaller than 2.5 times ``min_area`` those of less are removed, which are
            debris more often than not. 0 removes none.
        min_peak: in [0, 1); nuclei of fewer than 10 pixels whose foreground probability is higher are removed, however
            large they are above ``threshold``: two thresholds, as Canny's. 0 removes none.

    Returns:
        mask (1, H, W) uint8 in {0, 1} and instances (1, H, W) int32 with ids 1..N; the mask is where instances are.

    Raises:
        ValueError: when the logits have other channels, or the method or the targets are not known.
    """
    if method not in METHODS:
        raise ValueError(f"method must be {' or '.join(METHODS)}, got {method!r}")
    if logits.ndim != 3:
        raise ValueError(f"logits must be (C, H, W), got {tuple(logits.shape)}")
    targets = targets or usual_targets(logits.shape[0])
    channels = channel_count(targets)
    if logits.shape[0] not in (1, channels):
        raise ValueError(f"logits must be ({channels}, H, W) or (1, H, W), got {tuple(logits.shape)}")
    probability = torch.as_tensor(logits).detach().float().sigmoid().cpu().numpy()
    foreground = probability[0] > threshold
    instances = connected_components(foreground, connectivity=2)
    if len(probability) > 1 and method == "watershed":
        instances = separate(instances, probability[1:], targets, marker_depth)
    instances = _without_holes(instances)
    if min_peak > threshold:
        instances = _without_doubtful(instances, probability[0] > min_peak)
    instances = _without_debris(instances, min_area, min_solidity)
    return (instances > 0).astype(np.uint8)[None], instances.astype(np.int32)[None]


class LogitsToInstancesd(MapTransform):
    """
    Dictionary version of :func:`logits_to_instances`: adds ``mask`` and ``instances`` beside the logits.

    They take over the logits' meta data.

    Args:
        keys: key of the logits.
        threshold: see :func:`logits_to_instances`.
        marker_depth: see :func:`logits_to_instances`.
        min_area: in pixels; see :func:`logits_to_instances`.
        min_area_um2: the same in square micrometres; it goes before ``min_area`` where ``mpp`` is known, from the
            logits' meta data or else from the item.
        method: see :func:`logits_to_instances`.
        with_spread: the last channel is no logit but the spread over views, and becomes ``spread``.
        targets: what the network's channels mean, see :func:`logits_to_instances`.
        min_solidity: see :func:`logits_to_instances`.
        min_peak: see :func:`logits_to_instances`.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        threshold: float = 0.4,
        marker_depth: float = 0.1,
        min_area: float = 20,
        min_area_um2: float | None = None,
        method: str = "watershed",
        with_spread: bool = False,
        targets: str | None = None,
        min_solidity: float = 0.0,
        min_peak: float = 0.0,
    ) -> None:
        super().__init__(keys)
        # a verb has judged its settings already; a config of one's own can also name them here
        given = {
            "threshold": threshold,
            "marker_depth": marker_depth,
            "min_solidity": min_solidity,
            "min_peak": min_peak,
        }
        judge("inference", {**given, "min_area": min_area, "min_area_um2": min_area_um2})
        self.threshold = threshold
        self.marker_depth = marker_depth
        self.min_area = min_area
        self.min_area_um2 = min_area_um2
        self.method = method
        self.with_spread = with_spread
        self.targets = targets
        self.min_solidity = min_solidity
        self.min_peak = min_peak

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        logits = item[self.first_key(item)]
        if self.with_spread:
            logits, item["spread"] = logits[:-1], logits[-1:]
        mpp = getattr(logits, "meta", {}).get("mpp", item.get("mpp"))
        maps = logits_to_instances(
            logits,
            self.threshold,
            self.marker_depth,
            self._min_area(mpp),
            self.method,
            self.targets,
            self.min_solidity,
            self.min_peak,
        )
        for key, values in zip(("mask", "instances"), maps):
            item[key] = convert_to_dst_type(values, logits, dtype=values.dtype)[0]
        return item

    def _min_area(self, mpp: object) -> float:
        size = known_mpp(mpp)
        return self.min_area if self.min_area_um2 is None or size is None else self.min_area_um2 / size**2


def _without_holes(instances: np.ndarray) -> np.ndarray:
    """Fill background that one nucleus alone encloses; what lies between several, or at the image border, stays."""
    holes = connected_components(instances == 0, connectivity=1)
    # ids of the nuclei beside each hole; the frame of -1 stands for the world beyond the image
    framed = np.pad(instances, 1, constant_values=-1)
    lowest = np.full(holes.max(initial=0) + 1, np.iinfo(np.int64).max)
    highest = np.full_like(lowest, -1)
    for shift in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbour = framed[shift[0] : shift[0] + instances.shape[0], shift[1] : shift[1] + instances.shape[1]]
        rim = (holes > 0) & (neighbour != 0)
        np.minimum.at(lowest, holes[rim], neighbour[rim])
        np.maximum.at(highest, holes[rim], neighbour[rim])
    fill = np.where((lowest == highest) & (highest > 0), highest, 0)
    fill[0] = 0
    return instances + fill[holes]


def _without_doubtful(instances: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Drop nuclei of fewer than ``PEAK`` sure pixels."""
    keep = np.bincount(instances[sure], minlength=instances.max(initial=0) + 1) >= PEAK
    return np.where(keep[instances], instances, 0)


def _without_debris(instances: np.ndarray, min_area: float, min_solidity: float) -> np.ndarray:
    """Drop nuclei of fewer than ``min_area`` pixels, and small ragged ones, and number the rest 1..N."""
    area = np.bincount(instances.ravel())
    keep = area >= max(min_area, 1)
    keep[0] = False
    small = np.flatnonzero(keep & (area < SMALL * min_area)) if min_solidity > 0 else []
    boxes = ndimage.find_objects(instances) if len(small) else []
    for index in small:
        box = boxes[index - 1]
        keep[index] = solidity(outline(instances[box] == index)) >= min_solidity
    return (np.cumsum(keep) * keep)[instances]
