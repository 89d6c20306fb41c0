from __future__ import annotations

import hashlib
import shutil
from urllib.error import URLError

import pytest
import torch
from file_server import CONTENT, SHA256, serving
from scripts.errors import DataError
from scripts.networks.sam_encoders import build_encoder, fingerprint
from scripts.networks.weights import OFFICIAL_WEIGHTS, Weights, find_backbone_weights, load_encoder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache and no network, in every test."""

    def no_network(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setenv("AMA_SAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serving() as state:
        yield state


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def save_model(path, backbone):
    """A trained model as the bundle writes it; returns the fingerprint of its encoder."""
    model = torch.nn.Module()
    model.image_encoder = build_encoder("vit_test")
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    torch.save({"model": state, "backbone": backbone}, path)
    model.load_state_dict(state)
    return fingerprint(model.image_encoder)


# ---------------------------------------------------------------- order of search


def test_places_are_searched_in_the_documented_order(tmp_path, models, cache):
    own = tmp_path / "own.pth"
    in_models = models / "backbones" / "mobile_sam.pt"
    cached = cache / "mobile_sam.pt"
    for file in (own, in_models, cached):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    save_model(models / "model.pt", "vit_t")

    assert find_backbone_weights("vit_t", own, models) == own
    assert find_backbone_weights("vit_t", models_dir=models) == in_models
    in_models.unlink()
    assert find_backbone_weights("vit_t", models_dir=models) == models / "model.pt"
    save_model(models / "model.pt", "vit_b")
    assert find_backbone_weights("vit_t", models_dir=models) == cached
    assert find_backbone_weights("vit_t") == cached


def test_a_model_without_backbone_entry_is_passed_over(models, cache):
    torch.save({"conv.weight": torch.zeros(1)}, models / "model.pt")
    cache.mkdir()
    (cache / "mobile_sam.pt").touch()
    assert find_backbone_weights("vit_t", models_dir=models) == cache / "mobile_sam.pt"


def test_download_is_verified_and_lands_in_the_cache(cache, monkeypatch, server):
    monkeypatch.undo()
    monkeypatch.setenv("AMA_SAM_CACHE", str(cache))
    address = f"{server['url']}/x"
    monkeypatch.setitem(OFFICIAL_WEIGHTS, "vit_t", Weights("mobile_sam.pt", address, "0" * 64))
    with pytest.raises(DataError, match="mobile_sam.pt.*downloading"):
        find_backbone_weights("vit_t")
    assert list(cache.iterdir()) == []
    monkeypatch.setitem(OFFICIAL_WEIGHTS, "vit_t", Weights("mobile_sam.pt", address, SHA256))
    assert find_backbone_weights("vit_t").read_bytes() == CONTENT
    assert [f.name for f in cache.iterdir()] == ["mobile_sam.pt"]


def test_a_broken_download_of_weights_goes_on(cache, monkeypatch, server):
    monkeypatch.undo()
    monkeypatch.setenv("AMA_SAM_CACHE", str(cache))
    monkeypatch.setitem(OFFICIAL_WEIGHTS, "vit_t", Weights("mobile_sam.pt", f"{server['url']}/cut", SHA256))
    with pytest.raises(DataError, match="mobile_sam.pt.*downloading.*broke off.*again to go on.*curl"):
        find_backbone_weights("vit_t")
    have = (cache / "mobile_sam.pt.ama_sam.part").stat().st_size
    assert find_backbone_weights("vit_t").read_bytes() == CONTENT
    assert server["requests"][1] == ("/cut", f"bytes={have}-") and 0 < have < len(CONTENT)


# ---------------------------------------------------------------- loading


def test_the_encoder_of_a_trained_model_is_reused(models):
    expected = save_model(models / "model.pt", "vit_test")
    assert fingerprint(load_encoder("vit_test", models_dir=models)) == expected


def test_a_model_lends_its_encoder_to_a_training_at_half_resolution(models):
    save_model(models / "model.pt", "vit_test")
    half, full = (load_encoder(name, models_dir=models) for name in ("vit_test_half", "vit_test"))
    assert all(torch.equal(half.state_dict()[name], tensor) for name, tensor in full.state_dict().items())


def test_the_published_file_loads_and_is_the_published_one(mobile_sam, models):
    assert hashlib.sha256(mobile_sam.read_bytes()).hexdigest() == OFFICIAL_WEIGHTS["vit_t"].sha256
    (models / "backbones").mkdir()
    shutil.copy(mobile_sam, models / "backbones" / "mobile_sam.pt")
    encoder = load_encoder("vit_t", models_dir=models)
    assert fingerprint(encoder) == fingerprint(load_encoder("vit_t", mobile_sam))


def test_random_weights_only_when_asked_for_by_name(models):
    assert find_backbone_weights("vit_test", "random", models) is None
    assert load_encoder("vit_test", "random").backbone_type == "vit_test"
    with pytest.raises(DataError, match="vit_test.*no published weights.*--backbone_weights"):
        load_encoder("vit_test", models_dir=models)


# ---------------------------------------------------------------- errors


def test_a_missing_path_is_an_error_even_where_other_weights_exist(tmp_path, models, cache):
    cache.mkdir()
    (cache / "mobile_sam.pt").touch()
    with pytest.raises(DataError, match="nowhere.pt.*no such file"):
        find_backbone_weights("vit_t", tmp_path / "nowhere.pt", models)


def test_nothing_found_and_no_network_names_the_file_and_the_commands(models, cache):
    with pytest.raises(DataError) as error:
        load_encoder("vit_b", models_dir=models)
    message = str(error.value)
    official = OFFICIAL_WEIGHTS["vit_b"]
    assert f"curl -fL --create-dirs -o {cache / official.name} {official.url}" in message
    assert "--backbone_weights PATH" in message and "no network in tests" in message
    assert not (cache / official.name).exists()


def test_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ValueError, match="resnet.*vit_t.*vit_b.*vit_l.*vit_h"):
        load_encoder("resnet")


def test_a_file_cut_short_is_named(mobile_sam, tmp_path):
    broken = tmp_path / "cut.pt"
    broken.write_bytes(mobile_sam.read_bytes()[:1_000_000])
    with pytest.raises(DataError, match="cut.pt: not a readable checkpoint.*curl"):
        load_encoder("vit_t", broken)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, models, content):
    foreign = tmp_path / "foreign.pt"
    foreign.write_bytes(content)
    with pytest.raises(DataError, match="foreign.pt: not a readable checkpoint"):
        load_encoder("vit_t", foreign)
    (models / "model.pt").write_bytes(content)
    with pytest.raises(DataError, match="model.pt: not a readable checkpoint"):
        load_encoder("vit_t", models_dir=models)


@pytest.mark.parametrize("content", [{"conv.weight": torch.zeros(1)}, {"model": {"a": torch.zeros(1)}}, {}])
def test_a_checkpoint_of_another_network_is_named(tmp_path, content):
    foreign = tmp_path / "foreign.pt"
    torch.save(content, foreign)
    with pytest.raises(DataError, match="foreign.pt: no weights for vit_t: no tensors named image_encoder"):
        load_encoder("vit_t", foreign)
    torch.save(torch.zeros(1), foreign)
    with pytest.raises(DataError, match="foreign.pt: a checkpoint is a dict, this is a Tensor"):
        load_encoder("vit_t", foreign)


def test_weights_of_another_backbone_are_refused(tmp_path):
    save_model(tmp_path / "small.pt", "vit_test")
    with pytest.raises(DataError, match="small.pt: no weights for vit_t: its image encoder is not a vit_t"):
        load_encoder("vit_t", tmp_path / "small.pt")
