"""Two clients of MONAI's federated learning in one process, each with a synthetic domain of its own."""

from __future__ import annotations

import pytest
import torch
from fakes import tiny_encoder
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from scripts.data.synthetic import make_synthetic
from scripts.networks.adapters import is_adapter
from scripts.networks.loading import is_frozen

ROUNDS = 2
TINY = {
    "mode": "single",
    "backbone": "vit_test",
    "decoder_size": "light",
    "crop_size": 64,
    "window_size": 64,
    "cache_windows": 1,
    "batch_size": 4,
    "batches_per_epoch": 2,
    "max_epochs": ROUNDS,  # of all rounds together: the learning rate's schedule ends with them
    "warmup_iterations": 1,
    "val_interval": 1,
    "tile_size": 256,
    "alignment_report": False,
    "adapters": "late",
}


@pytest.fixture(scope="module")
def clients(bundle_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    _, encoder = tiny_encoder(folder)
    data = make_synthetic(folder / "synthetic", {"training": 3, "validation": 1, "testing": 1})
    clients = []
    for name in ("synthetic_pink", "synthetic_dark"):
        settings = {**TINY, "dataset_dir": str(data), "primary": name, "backbone_weights": str(encoder)}
        settings["bundle_root"] = str(bundle_root)
        client = MonaiAlgo(
            bundle_root=str(bundle_root),
            send_weight_diff=False,
            train_kwargs={**settings, "output_dir": str(folder / name)},
            config_evaluate_filename="configs/train.json",
            eval_kwargs={**settings, "output_dir": str(folder / name)},
            config_filters_filename="configs/fl_filters.json",
        )
        client.initialize({ExtraItems.CLIENT_NAME: name})
        clients.append(client)
    return clients


def test_clients_learn_together_by_their_trained_parts_alone(clients):
    encoders = [
        {name: value for name, value in client.trainer.network.network.state_dict().items() if is_frozen(name)}
        for client in clients
    ]
    before = [{name: value.clone() for name, value in encoder.items()} for encoder in encoders]
    shared = clients[0].get_weights().weights
    assert not any(map(is_frozen, shared)) and any(map(is_adapter, shared))
    assert all(name.startswith("decoder.") or is_adapter(name) for name in shared), "alone, they have no adversary"
    for _ in range(ROUNDS):
        answers = []
        for client in clients:
            client.train(ExchangeObject(weights={name: value.clone() for name, value in shared.items()}))
            answer = client.get_weights()
            assert answer.weight_type == WeightType.WEIGHTS and answer.weights.keys() == shared.keys()
            answers.append({name: value.clone() for name, value in answer.weights.items()})
        assert any(not torch.equal(answers[0][name], answers[1][name]) for name in shared), "data differ, so weights do"
        averaged = {name: sum(answer[name] for answer in answers) / len(answers) for name in shared}
        assert any(not torch.equal(averaged[name], shared[name]) for name in shared)
        shared = averaged

    for client, encoder, old in zip(clients, encoders, before):
        assert client.trainer.state.epoch == ROUNDS
        assert all(torch.equal(encoder[name], value) for name, value in old.items()), "frozen means frozen"
        metrics = client.evaluate(ExchangeObject(weights=shared)).metrics
        assert 0 <= metrics["val_dice"] <= 1
        evaluated = client.evaluator.network.state_dict()
        assert all(torch.equal(evaluated[name], value) for name, value in shared.items()), "the average is evaluated"
