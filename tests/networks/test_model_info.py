"""A model file is enough: it says what to build, and what it was trained on."""

from __future__ import annotations

import pytest
import torch
from scripts.errors import DataError
from scripts.networks.ama_sam import AMASAM
from scripts.networks.baselines import SAMMaskDecoder, UNetDecoder
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import load_network, save_model, start_from
from scripts.networks.model_file import read_model_file, write_model_file
from scripts.networks.model_info import ModelInfo, model_info
from scripts.networks.sam_encoders import build_encoder

ABOUT = {"version": "9.9.9", "mpp": 0.5, "domains": [{"name": "mine", "role": "primary"}]}
DECODERS = {
    "light": lambda e: HRDecoder(e.channels, e.strides, size="light", aligned_stride=8),
    "wide, one channel": lambda e: HRDecoder(e.channels, e.strides, size="wide", out_channels=1),
    "quarter": lambda e: HRDecoder(e.channels, e.strides, size="quarter"),
    "unet": lambda e: UNetDecoder(e.channels, e.strides, widths=(8, 8, 8, 16, 16, 8)),
    "sam": lambda e: SAMMaskDecoder(e.channels, e.strides),
}


def saved(path, decoder, backbone="vit_test", about=ABOUT):
    torch.manual_seed(0)
    encoder = build_encoder(backbone)
    encoder.load_state_dict({k: v.half().float() for k, v in encoder.state_dict().items()}, strict=False)
    network = AMASAM(encoder, DECODERS[decoder](encoder)).eval()
    save_model(path, network, {"seed": 0}, about)
    return network


def forget(path, network_settings=None):
    """The file as version 0.4 wrote it."""
    content = {k: v for k, v in read_model_file(path).items() if k in ("model", "backbone", "provenance")}
    if network_settings:
        content["provenance"] = {**content["provenance"], "network": network_settings}
    write_model_file(path, content)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_kind_of_model_is_built_from_its_file_alone(tmp_path, decoder):
    network = saved(tmp_path / "model.pt", decoder)
    loaded = load_network(tmp_path / "model.pt")
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.inference_mode():
        assert torch.equal(loaded(image), network(image)) and not loaded.training
        features = network.image_encoder(image)
        assert torch.equal(loaded.decoder(features, image)[1], network.decoder(features, image)[1]), "aligned features"
    info = model_info(tmp_path / "model.pt")
    assert (info.backbone, info.mpp, info.version, info.domains) == ("vit_test", 0.5, "9.9.9", ABOUT["domains"])
    assert not info.lacks


def test_a_model_at_half_resolution_needs_no_key_either(tmp_path):
    network = saved(tmp_path / "model.pt", "light", backbone="vit_test_half")
    image = torch.rand(1, 3, 96, 64) * 255
    with torch.inference_mode():
        assert torch.equal(load_network(tmp_path / "model.pt")(image), network(image))
    with pytest.raises(DataError, match="vit_test_half.*vit_test.*--backbone"):
        start_from(
            AMASAM(build_encoder("vit_test"), DECODERS["light"](build_encoder("vit_test"))), tmp_path / "model.pt"
        )


def test_a_file_of_the_other_resolution_is_refused_even_where_its_tensors_fit(tmp_path):
    """``ckpt_export`` loads a file as it is; of size quarter both have the same tensors."""
    saved(tmp_path / "model.pt", "quarter", backbone="vit_test_half")
    encoder = build_encoder("vit_test")
    network = AMASAM(encoder, DECODERS["quarter"](encoder))
    with pytest.raises(DataError, match="vit_test_half.*--backbone"):
        network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_a_vit_b_model_needs_no_key_either(tmp_path):
    network = saved(tmp_path / "model.pt", "light", backbone="vit_b")
    loaded = load_network(tmp_path / "model.pt")
    assert type(loaded.image_encoder.backbone) is type(network.image_encoder.backbone)
    assert loaded.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("decoder", ["light", "wide, one channel", "quarter", "sam"])
def test_files_of_earlier_versions_are_recognised_and_what_they_lack_is_told(tmp_path, decoder, caplog):
    path = tmp_path / "model.pt"
    network, now = saved(path, decoder), model_info(path)
    forget(path)
    info = model_info(path)
    assert {"mpp", "domains"} <= set(info.lacks) and f"{path} was written by an earlier version" in caplog.text
    assert {**info.decoder, "aligned_stride": 0} == {**now.decoder, "aligned_stride": 0}
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(load_network(path)(image), network(image))


def test_the_layer_to_align_is_never_guessed_where_it_matters(tmp_path):
    path = tmp_path / "model.pt"
    saved(path, "light")
    forget(path)
    with pytest.raises(DataError, match="model.pt.*did not store its aligned_stride.*--aligned_stride"):
        model_info(path, needs=["aligned_stride"])
    assert model_info(path, {"aligned_stride": 8}, needs=["aligned_stride"]).decoder["aligned_stride"] == 8
    forget(path, {"aligned_stride": 8})
    assert model_info(path, needs=["aligned_stride"]).decoder["aligned_stride"] == 8


@pytest.mark.parametrize(
    "key, value, told",
    [("backbone", "vit_b", "vit_test.*vit_b"), ("decoder_size", "wide", "light.*wide"),
     ("out_channels", 1, "2.*1"), ("aligned_stride", 16, "8.*16")],
)  # fmt: skip
def test_a_key_that_contradicts_the_file_is_refused_with_both_values(tmp_path, key, value, told):
    saved(tmp_path / "model.pt", "light")
    with pytest.raises(DataError, match=f"model.pt: it has {key} {told}"):
        model_info(tmp_path / "model.pt", {key: value})
    same = {"backbone": "vit_test", "decoder_size": "light", "out_channels": "2", "aligned_stride": None}
    assert model_info(tmp_path / "model.pt", same).backbone == "vit_test"


def test_a_file_can_ask_for_our_own_parts_only(tmp_path):
    """A model file is data: a class of another library in its place is refused, and never imported."""
    path = tmp_path / "model.pt"
    saved(path, "light")
    write_model_file(path, {**read_model_file(path), "decoder": {"type": "os.system", "command": "true"}})
    with pytest.raises(DataError, match="decoder 'os.system' is none of this version's"):
        load_network(path)


def test_an_export_says_nothing(tmp_path):
    assert model_info(tmp_path / "model.onnx") == model_info(None) == ModelInfo()


def test_no_file_is_recommended_to_be_run_as_a_program(tmp_path):
    (tmp_path / "image.pt").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="image.pt: it cannot be read as a model: it is damaged, another kind") as error:
        read_model_file(tmp_path / "image.pt")
    assert "weights_only" not in str(error.value)
