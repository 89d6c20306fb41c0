"""A model file tells what its channels mean, and is not taken for another kind."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyEncoder, tiny_encoder, tiny_model
from scripts.errors import DataError
from scripts.networks.ama_sam import AMASAM
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.loading import load_model, load_network, save_model
from scripts.networks.model_file import read_model_file, write_model_file
from scripts.networks.model_info import model_info


def network(folder, targets: str, out_channels: int = 2) -> AMASAM:
    encoder, _ = tiny_encoder(folder)
    decoder = HRDecoder(encoder.channels, encoder.strides, size="light", out_channels=out_channels)
    return AMASAM(encoder, decoder, targets)


def test_channels_of_the_same_number_and_another_meaning_are_refused(tmp_path):
    path = tiny_model(tmp_path / "model.pt")
    assert read_model_file(path)["targets"] == "distance"
    load_model(network(tmp_path, "distance"), path)
    assert load_network(path).targets == "distance"
    with pytest.raises(DataError, match="it has targets distance, and --targets says border. Leave --targets out"):
        model_info(path, {"targets": "border"})
    with pytest.raises(DataError, match="model.pt: it was taught distance, not border. Add --targets distance"):
        load_model(network(tmp_path, "border"), path)


def test_files_that_do_not_say_were_taught_the_distance(tmp_path):
    path = tiny_model(tmp_path / "model.pt")
    old = {key: value for key, value in read_model_file(path).items() if key != "targets"}
    write_model_file(path, old)
    load_model(network(tmp_path, "distance"), path)
    with pytest.raises(DataError, match="taught distance"):
        load_model(network(tmp_path, "border"), path)


def test_a_model_of_another_kind_is_built_as_its_file_says(tmp_path):
    save_model(tmp_path / "hv.pt", network(tmp_path, "hv", out_channels=3), {})
    built = load_network(tmp_path / "hv.pt")
    assert built.targets == "hv" and built(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_the_meaning_does_not_hinder_scripting():
    decoder = HRDecoder((4, 6, 8), (4, 8, 16), size="light", out_channels=3)
    scripted = torch.jit.script(AMASAM(TinyEncoder(), decoder, "hv").eval())
    assert scripted(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
