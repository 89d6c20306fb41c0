from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from skimage.color import hed_from_rgb, rgb_from_hed

__all__ = ["RandBlurd", "RandCropAffined", "RandStaind"]

SHRINKS = 1.4  # image pixels in a row that one pixel of a crop covers; above, it is the mean of four samples


class RandStaind(RandomizableTransform, MapTransform):
    """
    Randomly change the amounts of haematoxylin and eosin of an RGB image in [0, 255].

    The optical density ``-ln((I + 1) / 256)`` is unmixed with the stain vectors of Ruifrok and Johnston (as in
    ``skimage.color.rgb2hed``), the amount of each of the two stains becomes
    ``amount * U(1 - scale, 1 + scale) + U(-shift, shift)``, and the result is mixed again, after Tellez et al. (2018),
    doi:10.1109/TMI.2018.2820199. The third, residual stain is left alone: changing it gives browns and greens that
    H&E does not have. ``tint`` also scales the optical density of R, G and B by ``U(1 - tint, 1 + tint)``, as other
    stain batches and scanners do. ``fading`` multiplies the whole optical density, as thin sections and faded slides
    do. All of this is linear in optical density, hence one 3x3 matrix.

    Args:
        keys: keys of images (3, H, W), float in [0, 255]; all of an item get the same change.
        prob: probability that an item is changed.
        scale: greatest relative change of a stain's amount.
        shift: greatest added amount, in units of optical density (natural logarithm).
        tint: greatest relative change of the optical density of a colour.
        fading: least and greatest factor of the optical density, drawn log-uniformly.
    """

    version = 1

    def __init__(
        self,
        keys: Sequence[str] | str = "image",
        prob: float = 0.8,
        scale: float = 0.3,
        shift: float = 0.03,
        tint: float = 0.05,
        fading: Sequence[float] = (1.0, 1.0),
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 < fading[0] <= fading[1]:
            raise ValueError(f"fading must be two positive factors in order, got {tuple(fading)}.")
        self.scale, self.shift, self.tint, self.fading = scale, shift, tint, tuple(fading)
        self._unmix, self._mix = np.asarray(hed_from_rgb), np.asarray(rgb_from_hed)
        self._matrix, self._offset = np.eye(3), np.zeros(3)

    def randomize(self, data: object = None) -> None:
        super().randomize(None)
        factors = np.append(1 + self.R.uniform(-self.scale, self.scale, 2), 1)
        shifts = np.append(self.R.uniform(-self.shift, self.shift, 2), 0)
        tint = 1 + self.R.uniform(-self.tint, self.tint, 3)
        fading = np.exp(self.R.uniform(*np.log(self.fading)))
        self._matrix = self._unmix @ np.diag(factors) @ self._mix * tint * fading
        self._offset = shifts @ self._mix

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.keys:
                item[key] = self._restain(item[key])
        return item

    def _restain(self, image: torch.Tensor) -> torch.Tensor:
        # a plain tensor: arithmetic on a MetaTensor costs more than the arithmetic. Log-intensity is minus the density
        light = (convert_to_tensor(image).float().flatten(1) + 1).div_(256).log_()
        matrix, offset = (torch.as_tensor(x, dtype=torch.float32) for x in (self._matrix.T, self._offset))
        changed = torch.addmm(-offset[:, None], matrix, light).exp_().mul_(256).sub_(1).clamp_(0, 255)
        return _like(changed.reshape(image.shape), image)


class RandBlurd(RandomizableTransform, MapTransform):
    """
    Randomly blur images (C, H, W) with a Gaussian, as a scanner out of focus does.

    MONAI's ``RandGaussianSmoothd`` pads with zeros, which draws a dark frame around a bright image; here the image is
    reflected at its border.

    Args:
        keys: keys of images, float.
        prob: probability that an item is blurred.
        sigma: least and greatest standard deviation in pixels.
    """

    version = 1

    def __init__(
        self, keys: Sequence[str] | str = "image", prob: float = 0.3, sigma: Sequence[float] = (0.3, 1.2)
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma must be two positive numbers in order, got {tuple(sigma)}.")
        self.sigma = tuple(sigma)
        self._sigma = self.sigma[0]

    def randomize(self, data: object = None) -> None:
        super().randomize(None)
        self._sigma = self.R.uniform(*self.sigma)

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        self.randomize()
        if self._do_transform:
            weights = gaussian_1d(torch.tensor(self._sigma), truncated=3.0, normalize=True).tolist()
            reach = len(weights) // 2
            for key in self.keys:
                image = torch.nn.functional.pad(convert_to_tensor(item[key])[None], (reach,) * 4, mode="reflect")[0]
                item[key] = _like(_weighted_sum(_weighted_sum(image, weights, 1), weights, 2), item[key])
        return item


class RandCropAffined(RandomizableTransform, MapTransform):
    """
    Crop a random square, turned, mirrored and scaled, in one resampling.

    Every crop is turned by a random multiple of 90 degrees and mirrored with probability 1/2. With probability
    ``prob`` it is also turned by up to 45 degrees either way, hence by any angle, and scaled. Only the pixels of the
    crop are computed, whatever the size of the image. Crops that are not turned or scaled freely copy pixels
    unchanged. The square lies inside the image where it can; beyond the border the image is reflected, or, with
    ``smallest``, the crop gets smaller. Images that shrink to .7 and below are averaged, so that they look like those
    of a lower magnification.

    Args:
        keys: keys of images (C, H, W) and label maps (1, H, W) of the same H, W.
        crop_size: height and width of the result, or one number for both.
        prob: probability of free rotation and scale.
        scale: least and greatest magnification, drawn log-uniformly.
        mode: ``"bilinear"`` or ``"nearest"`` for each key; ``"nearest"`` keeps ids and the data type.
        smallest: where the (magnified) image is smaller than ``crop_size``, the sides of the crop shrink with it to
            multiples of 32 pixels, which any encoder takes, but not below this. By default every crop has
            ``crop_size``.
    """

    version = 2

    def __init__(
        self,
        keys: Sequence[str] | str = ("image", "label"),
        crop_size: Sequence[int] | int = 256,
        prob: float = 0.75,
        scale: Sequence[float] = (0.6, 1.7),
        mode: Sequence[str] = ("bilinear", "nearest"),
        smallest: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(mode) != len(self.keys):
            raise ValueError(f"mode must name an interpolation for each of keys {self.keys}, got {tuple(mode)}.")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two positive magnifications in order, got {tuple(scale)}.")
        self.crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        self.smallest = tuple(
            side if smallest is None else min(-(-smallest // 32) * 32, side) for side in self.crop_size
        )
        self.scale = tuple(scale)
        self.mode = tuple(mode)
        self._size = self.crop_size
        self._matrix, self._centre = np.eye(2), np.zeros(2)

    def randomize(self, data: Sequence[int]) -> None:
        """
        Draw the map from crop to image, ``image_pixel = matrix @ (crop_pixel - crop_centre) + centre``.

        Args:
            data: (H, W) of the image.
        """
        super().randomize(None)
        turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), self.R.randint(4))
        mirror = np.diag([1, self.R.choice([-1, 1])])
        angle = self.R.uniform(-np.pi / 4, np.pi / 4)
        magnification = np.exp(self.R.uniform(*np.log(self.scale)))
        magnified = np.abs(turn) @ np.asarray(data) * (magnification if self._do_transform else 1)
        self._size = tuple(
            min(max(int(side / 32 + 0.5) * 32, least), most)
            for side, least, most in zip(magnified, self.smallest, self.crop_size)
        )
        self._matrix = (turn @ mirror).astype(float)
        if self._do_transform:
            rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            self._matrix = self._matrix @ rotation / magnification
        extent = np.abs(self._matrix) @ self._size  # of the upright box around the square, in image pixels
        slack = np.asarray(data) - extent
        start = [self.R.randint(int(free) + 1) if free >= 0 else np.floor(free / 2) for free in slack]
        self._centre = np.asarray(start) + (extent - 1) / 2

    def __call__(self, data: Mapping[Hashable, object]) -> dict:
        item = dict(data)
        height, width = item[self.keys[0]].shape[1:]
        self.randomize((height, width))
        shrinks = np.sqrt(abs(np.linalg.det(self._matrix))) > SHRINKS
        grids = {1: self._grids(height, width, 1)}
        if shrinks:
            grids[2] = self._grids(height, width, 2)
        for key, mode in zip(self.keys, self.mode, strict=True):
            source = convert_to_tensor(item[key])
            pixels = source[None].float()  # exact for ids below 2**24
            samples = [
                torch.nn.functional.grid_sample(pixels, grid, mode, padding_mode="reflection", align_corners=False)[0]
                for grid in grids[2 if shrinks and mode == "bilinear" else 1]
            ]
            crop = samples[0] if len(samples) == 1 else sum(samples).div_(len(samples))
            item[key] = _like(crop.to(source.dtype), item[key])
        return item

    def _grids(self, height: int, width: int, parts: int) -> list[torch.Tensor]:
        """
        Where the crop's pixels lie, as ``grid_sample`` wants it: a grid for each of the ``parts`` x ``parts`` that a
        pixel is divided into.
        """
        rows, columns = ((torch.arange(parts * side) + 0.5) / parts - side / 2 for side in self._size)
        matrix, centre = self._matrix.tolist(), self._centre.tolist()
        grids = []
        for row in range(parts):
            for column in range(parts):
                grid = torch.empty(1, *self._size, 2)
                for axis, side in enumerate((height, width)):
                    down, across = matrix[axis]
                    place = down * rows[row::parts, None] + across * columns[column::parts]
                    # (x, y) with -1 and 1 at the outer edges of the outer pixels
                    grid[..., 1 - axis] = place.add_(centre[axis]).mul_(2).add_(1).div_(side).sub_(1)
                grids.append(grid)
        return grids


def _weighted_sum(image: torch.Tensor, weights: list[float], axis: int) -> torch.Tensor:
    """
    Correlation along an axis, where all weights find a pixel. Convolutions of PyTorch take several times as long for so
    few channels.
    """
    length = image.shape[axis] - len(weights) + 1
    total = image.narrow(axis, 0, length) * weights[0]
    for start, weight in enumerate(weights[1:], start=1):
        total.add_(image.narrow(axis, start, length), alpha=weight)
    return total


def _like(result: torch.Tensor, source: object) -> torch.Tensor:
    """Give the result the meta data of what it was made from."""
    if not isinstance(source, MetaTensor):
        return result
    return MetaTensor(result, meta=source.meta)
