"""What is told about each nucleus, and the files it is told in."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import shapely
import tifffile
import torch
from fakes import open_verb
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from results import read_geojson, read_table
from scipy import ndimage
from scripts.data.synthetic import DOMAINS, synthetic_tile
from scripts.inference.outputs import PredictionWriter
from scripts.nuclei.geojson import NucleusFormat
from scripts.nuclei.label_maps import save_label_map
from scripts.nuclei.measures import describe_nuclei
from scripts.nuclei.nuclei_files import write_nuclei
from skimage.measure import regionprops


@pytest.fixture(scope="module")
def tile():
    """Image (3, H, W), instances (H, W) and a probability (H, W) that differs from nucleus to nucleus."""
    image, label = synthetic_tile(DOMAINS["synthetic_pink"], np.random.default_rng(3))
    return SimpleNamespace(image=image.transpose(2, 0, 1), label=label, probability=0.5 + (label % 5) / 10)


@pytest.fixture(scope="module")
def nuclei(tile):
    return describe_nuclei(tile.label, tile.probability, tile.image)


def test_measures_are_those_of_skimage(tile, nuclei):
    regions = regionprops(tile.label)
    assert len(nuclei) == len(regions) > 20
    for nucleus, region in zip(nuclei, regions):
        assert nucleus.box == region.bbox and nucleus.area == region.area
        np.testing.assert_array_equal(nucleus.mask, region.image)
        assert (nucleus.y - 0.5, nucleus.x - 0.5) == pytest.approx(region.centroid)
        assert nucleus.perimeter == pytest.approx(region.perimeter)
        assert nucleus.eccentricity == pytest.approx(region.eccentricity)
        # skimage counts a pixel's own extent (1/12) from some version on
        assert nucleus.major == pytest.approx(region.axis_major_length, rel=0.01)
        assert nucleus.minor == pytest.approx(region.axis_minor_length, rel=0.01)
        assert nucleus.probability == pytest.approx(0.5 + (region.label % 5) / 10)
        assert 0 < nucleus.circularity <= 1
        assert 0 < nucleus.solidity <= 1
        assert nucleus.solidity == pytest.approx(region.solidity, abs=0.06)  # skimage counts whole pixels


def test_solidity_is_one_without_bays_and_less_with_them():
    label = np.zeros((30, 60), int)
    label[5:25, 5:25] = 1
    label[5:25, 35:55] = 2
    label[10:20, 35:45] = 0  # a quarter of the square, open to the left
    square, bay = describe_nuclei(label, np.ones(label.shape), np.zeros((3, 30, 60)))
    assert square.solidity == pytest.approx(1, abs=0.005)
    assert bay.solidity == pytest.approx(0.75, abs=0.01)


def test_sure_nuclei_have_no_uncertainty_and_dark_ones_more_stain(tile):
    sure = describe_nuclei(tile.label, np.ones(tile.label.shape), tile.image)
    unsure = describe_nuclei(tile.label, np.full(tile.label.shape, 0.5), tile.image // 2)
    assert max(nucleus.uncertainty for nucleus in sure) < 1e-4
    assert min(nucleus.uncertainty for nucleus in unsure) == pytest.approx(1)
    assert all(dark.haematoxylin > pale.haematoxylin > 0 for dark, pale in zip(unsure, sure))


def test_haematoxylin_is_optical_density():
    """A pixel of pure haematoxylin, by the colours of Ruifrok and Johnston, has the density it was made with."""
    vector = np.array([0.65, 0.70, 0.29])
    pixel = 255 * 10 ** -(0.8 * vector)
    image = np.broadcast_to(pixel[:, None, None], (3, 4, 4))
    (nucleus,) = describe_nuclei(np.ones((4, 4), int), np.ones((4, 4)), image)
    assert nucleus.haematoxylin == pytest.approx(0.8, rel=0.02)


@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.4, 2.5))
@settings(max_examples=60, deadline=None)
def test_outlines_are_valid_polygons_around_the_pixels(seed, sigma):
    """Whatever the shape, even with holes and corners that only touch."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 24)), sigma)
    components, _ = ndimage.label(noise > 0, structure=np.ones((3, 3)))
    for nucleus in describe_nuclei(components, np.ones(noise.shape), np.zeros((3, 24, 24))):
        polygon = shapely.Polygon(nucleus.polygon)
        assert polygon.is_valid
        rows, columns = np.nonzero(nucleus.mask)
        centres = shapely.points(columns + nucleus.box[1] + 0.5, rows + nucleus.box[0] + 0.5)
        assert shapely.contains(polygon, centres).all()
        filled = ndimage.binary_fill_holes(nucleus.mask).sum()
        assert abs(polygon.area - filled) <= 0.5 * polygon.length


def test_one_pixel_and_nothing():
    label = np.zeros((5, 5), int)
    assert describe_nuclei(label, label, np.zeros((3, 5, 5))) == []
    label[0, 4] = 1
    (nucleus,) = describe_nuclei(label, np.ones((5, 5)), np.zeros((3, 5, 5)))
    assert (nucleus.x, nucleus.y, nucleus.area, nucleus.eccentricity, nucleus.solidity) == (4.5, 0.5, 1, 0, 1)
    assert shapely.Polygon(nucleus.polygon).is_valid


# --- files


def test_geojson_and_table_say_the_same_in_micrometres(nuclei, tmp_path):
    form = NucleusFormat("slide", mpp=0.5, scale=2.0, offset=(100, 50))
    write_nuclei(nuclei, form, tmp_path / "a.geojson", tmp_path / "a.csv")
    features, rows = read_geojson(tmp_path / "a.geojson"), read_table(tmp_path / "a.csv")
    assert len(features) == len(rows) == len(nuclei)
    assert len({feature["id"] for feature in features}) == len(nuclei)
    for number, (nucleus, feature, row) in enumerate(zip(nuclei, features, rows), start=1):
        assert int(row["id"]) == number
        measured = feature["properties"]["measurements"]
        assert measured == {name: float(row[name]) for name in row if name not in ("x_px", "y_px", "class")}
        assert measured["area_um2"] == pytest.approx(nucleus.area * 0.25)
        assert measured["perimeter_um"] == pytest.approx(nucleus.perimeter / 2, abs=1e-3)
        assert measured["solidity"] == pytest.approx(nucleus.solidity, abs=1e-4)
        assert feature["properties"]["centroid"] == [float(row["x_px"]), float(row["y_px"])]
        assert float(row["x_px"]) == pytest.approx((nucleus.x + 100) * 2, abs=0.01)
        outline = shapely.geometry.shape(feature["geometry"])
        assert outline.area == pytest.approx(nucleus.area * 4, rel=0.1)
        assert outline.centroid.distance(shapely.Point(feature["properties"]["centroid"])) < 1.5


def test_without_mpp_lengths_are_in_pixels(nuclei, tmp_path):
    write_nuclei(nuclei[:1], NucleusFormat("a"), tmp_path / "a.geojson", tmp_path / "a.csv")
    (feature,), (row,) = read_geojson(tmp_path / "a.geojson"), read_table(tmp_path / "a.csv")
    assert feature["properties"]["measurements"]["area_px2"] == float(row["area_px2"]) == nuclei[0].area


def test_no_nuclei_are_valid_files(tmp_path):
    write_nuclei([], NucleusFormat("a", 0.5), tmp_path / "a.geojson", tmp_path / "a.csv")
    assert read_geojson(tmp_path / "a.geojson") == [] == read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("count, dtype", [(300, np.uint16), (70_000, np.uint32)])
def test_label_maps_keep_ids_and_pixel_size(tmp_path, count, dtype):
    label = np.arange(300 * 310).reshape(300, 310) % (count + 1)
    for suffix in ("tif", "nii.gz", "png"):
        if suffix == "png" and count > 65_535:
            with pytest.raises(ValueError, match="do not fit a 16-bit PNG"):
                save_label_map(tmp_path / "a.png", label)
            continue
        save_label_map(tmp_path / f"a.{suffix}", label, mpp=0.25)
    volume = nibabel.load(tmp_path / "a.nii.gz")
    stored = [tifffile.imread(tmp_path / "a.tif"), np.asarray(volume.dataobj)[..., 0].T]
    if count < 65_536:
        stored.append(np.asarray(Image.open(tmp_path / "a.png")))
    for values in stored:
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, label)
    assert volume.header.get_zooms()[:2] == pytest.approx((0.25e-3, 0.25e-3))
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
    assert 1e4 / (numerator / denominator) == pytest.approx(0.25, rel=1e-4)


# --- the verb


class Darkness(torch.nn.Module):
    """Stands for the network: what is dark is nucleus."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (128 - x.mean(1, keepdim=True)) / 10


def segment(bundle_root, folder, out, **overrides) -> list[dict]:
    """Features of one image, segmented by the real config with another network."""
    pixels = np.full((80, 120, 3), 240, np.uint8)
    pixels[10:14, 10:14] = pixels[30:50, 60:80] = 30  # 16 and 400 pixels
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "a.png")
    network = {"_target_": f"{__name__}.Darkness"}
    options = {"min_area": 1, "dataset_dir": str(folder), "output_dir": str(out), **overrides}
    open_verb(bundle_root, "inference", "inference", network=network, **options).run()
    return read_geojson(out / "a.geojson")


@pytest.mark.parametrize("target_mpp", [None, 0.25])
@pytest.mark.parametrize("mpp, found", [(1.0, 2), (0.5, 1), (None, 2)])
def test_smallest_area_in_micrometres_acts_from_the_config(bundle_root, tmp_path, mpp, target_mpp, found):
    """16 pixels are 16 um2 or 4 um2. The pixel size must be the file's, not that the network worked at."""
    settings = {"mpp": mpp, "target_mpp": target_mpp, "min_area_um2": 8}
    features = segment(bundle_root, tmp_path / "in", tmp_path / "out", **settings)
    assert len(features) == found
    name, side = ("area_px2", 1.0) if mpp is None else ("area_um2", mpp)
    area = max(feature["properties"]["measurements"][name] for feature in features)
    assert area == pytest.approx(400 * side**2, rel=0.08)


def test_outputs_and_label_format_are_keys(bundle_root, tmp_path):
    out = tmp_path / "out"
    (feature, _) = segment(bundle_root, tmp_path / "in", out, outputs=["geojson", "instances"], label_format="nii.gz")
    written = {path.name for path in out.iterdir() if path.name.startswith("a")}
    assert written == {"a.geojson", "a_instances.nii.gz"}
    assert json.loads((out / "summary.json").read_text())["nuclei"] == 2
    assert math.isclose(feature["properties"]["measurements"]["probability"], 1, abs_tol=0.01)
    with pytest.raises(ValueError, match="outputs must be some of .* got geojsn"):
        PredictionWriter(out, [], outputs=["geojsn"])
    with pytest.raises(ValueError, match="label_format must be one of"):
        PredictionWriter(out, [], label_format="jpg")


def test_table_geojson_and_label_map_join_by_id_on_a_real_tile(bundle_root, tmp_path):
    """Also where the network saw another size, and nuclei were brought back to that of the file."""
    name, out = "01_1", tmp_path / "out"
    shutil.copy(bundle_root / "sample" / "sample_tnbc" / "images" / f"{name}.png", tmp_path / f"{name}.png")
    network = {"_target_": f"{__name__}.Darkness"}
    options = {"dataset_dir": str(tmp_path), "output_dir": str(out), "mpp": 0.25, "target_mpp": 0.5, "min_area": 4}
    options |= {"threshold": 0.01, "min_peak": 0}  # what is darker than 174
    open_verb(bundle_root, "inference", "inference", network=network, **options).run()
    label = np.asarray(Image.open(out / f"{name}_instances.png")).astype(int)
    rows = {int(row["id"]): row for row in read_table(out / f"{name}_nuclei.csv")}
    features = {f["properties"]["measurements"]["id"]: f for f in read_geojson(out / f"{name}.geojson")}
    assert set(rows) == set(features) == set(np.unique(label)) - {0} and len(rows) > 20
    areas = np.bincount(label.ravel()) * 0.25**2
    for number, row in rows.items():
        measured = features[number]["properties"]["measurements"]
        assert {column: float(row[column]) for column in measured} == measured
        assert measured["area_um2"] == pytest.approx(areas[number], abs=1e-3)
        y, x = ndimage.center_of_mass(label == number)
        assert (float(row["x_px"]), float(row["y_px"])) == pytest.approx((x + 0.5, y + 0.5), abs=0.01)
