from __future__ import annotations

import numpy as np
from scipy import ndimage
from scripts.errors import DataError

__all__ = ["CHANNELS", "channel_count", "make_targets", "normalised_distance", "usual_targets"]

# what the network's channels mean, by the name of the targets it is taught. All values are in [0, 1], so every channel
# is a logit
CHANNELS = {
    "foreground": ("foreground",),
    "distance": ("foreground", "distance"),
    "border": ("foreground", "contact"),
    "hv": ("foreground", "horizontal", "vertical"),
}

CONTACT = 2  # pixels; how far a contact reaches to either side


def channel_count(targets: str, given: int | None = None) -> int:
    """
    Number of channels of a network that is taught these targets.

    Args:
        targets: a key of :data:`CHANNELS`.
        given: what a user says it is, or None.

    Raises:
        ValueError: when the name is not known.
        DataError: when another number is given.
    """
    if targets not in CHANNELS:
        raise ValueError(f"targets must be one of {', '.join(CHANNELS)}, got {targets!r}")
    count = len(CHANNELS[targets])
    if given is not None and int(given) != count:
        hint = "Leave it out; --targets foreground has one channel"
        raise DataError("out_channels", f"it is {given}, but --targets {targets} has {count} channels", hint)
    return count


def usual_targets(channels: int) -> str:
    """
    What so many channels usually mean: those of a network that does not say it, as an export. Two are the distance.

    Raises:
        ValueError: when no targets have so many.
    """
    usual = {1: "foreground", 2: "distance", 3: "hv"}
    if channels not in usual:
        raise ValueError(f"no targets have {channels} channels")
    return usual[channels]


def make_targets(label: np.ndarray, targets: str) -> np.ndarray:
    """
    What a network is taught of an instance map.

    - ``foreground``: every labelled pixel; the first channel of all.
    - ``distance``: :func:`normalised_distance`, high inside, low where nuclei end or touch.
    - ``border``: ``contact``, 1 where two nuclei lie within 2 pixels: where they touch, not where they end.
    - ``hv``: for a pixel of a nucleus where it lies in it, from left (0) to right (1) and from top to bottom, its
      centre of mass at .5; after HoVer-Net (Graham et al., MedIA 2019). In the background .5.

    Args:
        label: (H, W) integer instance map, 0 is background.
        targets: a key of :data:`CHANNELS`.

    Returns:
        (channels, H, W) float32 in [0, 1].

    Raises:
        ValueError: when the name is not known.
    """
    channel_count(targets)
    channels = [(label > 0).astype(np.float32)]
    if targets == "distance":
        channels.append(normalised_distance(label))
    elif targets == "border":
        channels.append(_contact(label))
    elif targets == "hv":
        channels += _places(label)
    return np.stack(channels)


def normalised_distance(label: np.ndarray) -> np.ndarray:
    """
    Per-nucleus distance map, as in the distance regression of Naylor et al. (2019), doi:10.1109/TMI.2018.2865709.

    For a pixel of a nucleus: the Euclidean distance to the nearest pixel that is not of this nucleus, be it
    background or a touching neighbour, divided by the greatest such distance in the nucleus. The image border is
    no border of a nucleus.

    Args:
        label: (H, W) integer instance map, 0 is background.

    Returns:
        (H, W) float32 in [0, 1]: 1 at the centre of every nucleus, towards 0 at its border, 0 in the background.
    """
    result = np.zeros(label.shape, np.float32)
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        # one pixel of margin shows the surroundings, except at the image border
        around = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        nucleus = label[around] == index
        if nucleus.all():  # nothing but this nucleus in the whole image: there is no border to measure from
            return nucleus.astype(np.float32)
        distance = ndimage.distance_transform_edt(nucleus)
        result[around] += (distance / distance.max()).astype(np.float32)
    return result


def _contact(label: np.ndarray) -> np.ndarray:
    """1 where a square of 5 x 5 pixels holds two nuclei or more."""
    # the lowest id of a square, background aside: the highest of ids counted from above
    top = int(label.max(initial=0)) + 1
    size = 2 * CONTACT + 1
    highest = ndimage.maximum_filter(label, size)
    lowest = top - ndimage.maximum_filter(np.where(label > 0, top - label, 0), size)
    return ((highest > 0) & (lowest < highest)).astype(np.float32)


def _places(label: np.ndarray) -> list[np.ndarray]:
    """Where a pixel lies in its nucleus, across and down: 0 at one end, .5 at the centre of mass, 1 at the other."""
    pixels = np.flatnonzero(label > 0)  # of nuclei alone: most of an image is none
    ids = label.ravel()[pixels]
    if ids.max(initial=0) > label.size:  # a crop of a large map: the counts below have a place for each id up to it
        ids = np.unique(ids, return_inverse=True)[1]
    area = np.maximum(np.bincount(ids), 1)
    places = []
    for position in (pixels % label.shape[1], pixels // label.shape[1]):
        offset = position - (np.bincount(ids, position) / area)[ids]
        before, behind = np.zeros((2, len(area)))
        np.maximum.at(before, ids, -offset)
        np.maximum.at(behind, ids, offset)
        extent = np.where(offset > 0, behind[ids], before[ids])
        place = np.full(label.shape, 0.5, np.float32)
        place.ravel()[pixels] = 0.5 + 0.5 * offset / np.maximum(extent, 1e-6)
        places.append(place)
    return places
