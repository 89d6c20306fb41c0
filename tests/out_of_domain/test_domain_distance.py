"""How far images lie from the training domains: the statistics, the model file that holds them, what users read."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from fakes import TinyEncoder, open_verb
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from PIL import Image
from scripts.data.domains import load_items
from scripts.data.synthetic import DOMAINS, make_synthetic, synthetic_tile
from scripts.errors import DataError
from scripts.inference.tiling import TileInferer
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import load_model, save_model
from scripts.networks.model_file import add_to_model_file, read_model_file
from scripts.networks.sam_encoders import build_encoder
from scripts.out_of_domain.fitting import DescribeDomains, few_of_each_domain
from scripts.out_of_domain.reference import DomainReference, window_features
from scripts.out_of_domain.scoring import DomainDistance
from slides import make_drawing, save_slide, segment_slide

CENTRES = np.array([[0.0] * 6, [8.0] * 6])


def windows(rng, count: int, domain: int) -> np.ndarray:
    """Features (count, 6) of a domain: Gaussian, correlated, of unequal variance."""
    mixing = np.tri(6) * np.linspace(0.3, 2, 6)
    return CENTRES[domain] + rng.normal(size=(count, 6)) @ mixing


@pytest.fixture(scope="module")
def reference() -> DomainReference:
    rng = np.random.default_rng(0)
    features = np.concatenate([windows(rng, 200, 0), windows(rng, 60, 1)])
    domain = np.repeat([0, 1], [200, 60])
    return DomainReference.fit(features, domain, np.arange(260) // 4, ["near", "far"])


@pytest.mark.parametrize("domain", [0, 1])
def test_new_windows_of_a_domain_are_ordinary_and_others_are_not(reference, domain):
    rng = np.random.default_rng(1)
    score = reference.score(reference.distances(torch.as_tensor(windows(rng, 300, domain))))
    assert score.nearest_domain == reference.names[domain]
    assert 0.35 < score.out_of_domain < 0.65 and 0.8 < score.domain_distance < 1.25
    stranger = reference.score(reference.distances(torch.as_tensor(windows(rng, 300, domain) - 40)))
    assert stranger.out_of_domain == 1 and stranger.domain_distance > 3


def test_weights_choose_the_windows_that_count(reference):
    rng = np.random.default_rng(2)
    features = torch.as_tensor(np.concatenate([windows(rng, 50, 1), windows(rng, 50, 1) + 100])).reshape(10, 10, 6)
    distances = reference.distances(features)
    weights = torch.zeros(10, 10)
    assert reference.score(distances, weights) is None, "no tissue: no score"
    weights[:5] = 0.3
    assert reference.score(distances, weights).out_of_domain < 0.8 < reference.score(distances).domain_distance


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0, 50))
@settings(max_examples=30, deadline=None)
def test_scores_are_shares_and_grow_with_the_distance(reference, seed, scale):
    direction = torch.as_tensor(np.random.default_rng(seed).normal(size=6))
    near, far = (reference.means[0] + factor * direction for factor in (scale, scale + 1))
    scores = [reference.score(reference.distances(point)[..., :1].expand(2)) for point in (near, far)]
    assert 0 <= scores[0].out_of_domain <= 1
    assert scores[0].domain_distance <= scores[1].domain_distance + 1e-4


def test_few_windows_and_few_groups():
    rng = np.random.default_rng(0)
    features, one = windows(rng, 9, 0), np.zeros(9, int)
    for groups in (one, np.arange(9), np.arange(9) // 5):
        (held_out,) = DomainReference.fit(features, one, groups, ["only"]).held_out
        assert len(held_out) == 9 and held_out.min() > 0
    with pytest.raises(DataError, match="second: it has fewer than two training windows"):
        DomainReference.fit(features, (np.arange(9) == 8).astype(int), one, ["first", "second"])


def test_windows_are_of_one_size_whatever_the_image():
    features = [torch.ones(2, 3, 600 // s, 250 // s) for s in (4, 8, 16)]
    assert window_features(features, (4, 8, 16)).shape == (2, 2, 1, 3)
    assert window_features([f[..., :4, :4] for f in features], (4, 8, 16)).shape == (2, 1, 1, 3)


def test_items_are_taken_from_as_many_groups_as_can_be():
    items = [{"image": f"{d}{g}{n}", "domain": d, "group": g} for d in (0, 1) for g in "ab" for n in range(4)]
    chosen = [item["image"] for item in few_of_each_domain(items, 3)]
    assert chosen == ["0a0", "0b0", "0a1", "1a0", "1b0", "1a1"]
    assert len(few_of_each_domain([{"image": "x"}, {"image": "y"}], 5)) == 2, "items that MONAI Label gives"


def test_a_model_file_keeps_its_weights_and_tells_what_it_lacks(tmp_path, reference, caplog):
    encoder = TinyEncoder()
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light"))
    path = tmp_path / "model.pt"
    save_model(path, network, {"seed": 0})
    before = read_model_file(path)
    assert DomainDistance(network, path).take() is None and "describing_domains" in caplog.text
    add_to_model_file(path, domain_reference=reference.as_dict())
    after = read_model_file(path)
    assert after["provenance"] == {"seed": 0}
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    load_model(network, path)
    again = DomainReference.of_model(read_model_file(path))
    assert again.names == reference.names and torch.equal(again.precision, reference.precision)
    with torch.no_grad():
        listening = DomainDistance(network, path)
        network(torch.rand(2, 3, 512, 256))
        assert listening.take().shape == (2, 2, 1, 2) and listening.take() is None


def test_the_verb_adds_statistics_to_a_model_that_lacks_them(bundle_root, tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("vit_test")
    path = tmp_path / "model.pt"
    save_model(path, AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light")), {})
    before = read_model_file(path)
    options = {"domain_images": 4, "tile_size": 256}
    options |= {
        "dataset_dir": str(make_synthetic(tmp_path / "synthetic")),
        "ckpt_path": str(path),
        "auxiliary": "synthetic_dark",
    }
    open_verb(bundle_root, "align", None, run_id="describing_domains", **options).run()
    after = read_model_file(path)
    reference = DomainReference.of_model(after)
    assert reference.names == ["synthetic_pink", "synthetic_dark"] and [len(d) for d in reference.held_out] == [4, 4]
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    assert list(after["nucleus_area_px"]) == reference.names and min(after["nucleus_area_px"].values()) > 50


def test_the_description_is_of_the_weights_kept(tmp_path):
    """Adapters in the encoder went on learning after the epoch that was kept."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_test", adapters="all")
    network = AMASAM(encoder, HRDecoder(encoder.channels, encoder.strides, size="light"))
    path = tmp_path / "model.pt"
    save_model(path, network, {})
    load_model(network, path)  # whose frozen weights are rounded
    pink = {"name": "pink", "role": "primary", "root": make_synthetic(tmp_path / "data") / "synthetic_pink"}
    items = load_items([pink], "training")
    described = []
    for _ in range(2):
        trainer = Engine(lambda engine, batch: None)
        DescribeDomains(network, items, 2, None, ["pink"], TileInferer(256), path).attach(trainer)
        learned = {name: value.clone() for name, value in network.state_dict().items()}
        trainer.run([None])
        assert all(torch.equal(value, learned[name]) for name, value in network.state_dict().items())
        described.append(DomainReference.of_model(read_model_file(path)).means)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.requires_grad)
    assert torch.equal(*described)


# --- with the shipped weights


@pytest.fixture(scope="module")
def shipped(bundle_root) -> DomainReference:
    path = bundle_root / "models" / "model.pt"
    assert path.stat().st_size < 25e6
    found = DomainReference.of_model(read_model_file(path))
    assert found.names == read_model_file(path)["provenance"]["domains"]
    return found


@pytest.mark.slow
def test_tissue_like_that_of_training_is_near_and_other_pictures_are_far(bundle_root, shipped, real_data, tmp_path):
    """Patients of TNBC that no training saw; fluorescence; drawings."""
    images = tmp_path / "in"
    images.mkdir()
    for name, split in (("tnbc", "validation"), ("dsb2018_fluo", "testing")):
        entries = json.loads((real_data / name / "split.json").read_text())[split]
        for number, entry in enumerate(entries[::3][:3]):
            shutil.copy(real_data / name / entry["image"], images / f"{name}_{number}.png")
    for number in range(2):
        drawing, _ = synthetic_tile(DOMAINS["synthetic_pink"], np.random.default_rng(number))
        Image.fromarray(drawing.astype(np.uint8)).save(images / f"drawing_{number}.png")
    options = {"dataset_dir": str(images), "output_dir": str(tmp_path / "out"), "outputs": ["csv"]}
    open_verb(bundle_root, "inference", "inference", device="$torch.device('cpu')", **options).run()
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {kind: [row for row in rows if f"/{kind}" in row["file"]] for kind in ("tnbc", "dsb2018_fluo", "drawing")}
    assert [len(part) for part in found.values()] == [3, 3, 2]
    near, *far = ([float(row["domain_distance"]) for row in part] for part in found.values())
    assert all(float(row["out_of_domain"]) < 0.95 and row["nearest_domain"] == "tnbc" for row in found["tnbc"])
    assert all(float(row["out_of_domain"]) == 1 for kind in ("dsb2018_fluo", "drawing") for row in found[kind])
    assert min(min(distances) for distances in far) > 2 * max(near)


@pytest.mark.slow
def test_tiles_of_a_slide_tell_their_distance_and_views_their_spread(bundle_root, shipped, tmp_path):
    path = save_slide(tmp_path / "a.tif", make_drawing(1000, 900, seed=3), 0.25)
    network = {"_target_": "scripts.networks.loading.load_network", "path": "@ckpt_path"}
    model = str(bundle_root / "models" / "model.pt")
    out = tmp_path / "out"
    folder = segment_slide(bundle_root, path, out, network=network, ckpt_path=model, views=2)
    with (folder / "tiles.csv").open() as file:
        tiles = list(csv.DictReader(file))
    summary = json.loads((folder / "summary.json").read_text())
    assert len(tiles) == summary["tiles"] and sum(int(tile["nuclei"]) for tile in tiles) == summary["nuclei"] > 0
    scores = [float(tile["out_of_domain"]) for tile in tiles if tile["out_of_domain"]]
    assert scores and summary["out_of_domain"] == pytest.approx(np.median(scores)) == 1
    assert summary["unusual_tiles"] == 1 and summary["nearest_domain"] in shipped.names
    with (folder / "nuclei.csv").open() as file:
        spreads = [float(row["view_spread"]) for row in csv.DictReader(file)]
    assert 0 < max(spreads) <= 0.5
    (feature, *_) = json.loads((folder / "nuclei.geojson").read_text())["features"]
    assert 0 <= feature["properties"]["measurements"]["view_spread"] <= 0.5


@pytest.mark.slow
def test_a_tile_scores_alike_as_an_image_and_as_a_slide(bundle_root, shipped, real_data, tmp_path):
    """A slide's windows reach beyond it; what is there must not make its tissue strange."""
    (tmp_path / "images").mkdir()
    (tmp_path / "slides").mkdir()
    entries = json.loads((real_data / "tnbc" / "split.json").read_text())["validation"][:2]
    for number, entry in enumerate(entries):
        pixels = np.asarray(Image.open(real_data / "tnbc" / entry["image"]).convert("RGB"))
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        options = {"photometric": "rgb", "metadata": None, "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / "slides" / f"{number}.tif", pixels, tile=(256, 256), **options)
    out = {"outputs": ["csv"], "device": "cpu"}
    images, slides = {"dataset_dir": str(tmp_path / "images")}, {"slide": str(tmp_path / "slides")}
    open_verb(bundle_root, "inference", "inference", output_dir=str(tmp_path / "a"), **images, **out).run()
    open_verb(bundle_root, "wsi", "inference", output_dir=str(tmp_path / "b"), **slides, **out).run()
    with (tmp_path / "a" / "summary.csv").open() as file, (tmp_path / "b" / "slides.csv").open() as table:
        scores = [[float(row["out_of_domain"]) for row in csv.DictReader(one)] for one in (file, table)]
    np.testing.assert_allclose(*scores, atol=0.15)
