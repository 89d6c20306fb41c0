from __future__ import annotations

import torch
from scripts.networks.model_file import ABOUT, check_encoder
from torch import nn

__all__ = ["AMASAM"]


def _heed_what_is_told(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Load hook (a plain function, so that modules stay copyable): a file tells more than weights, see ``ABOUT``."""
    about = state_dict.get(prefix + ABOUT)
    ours = getattr(module.image_encoder, "backbone_type", None)
    if ours and isinstance(about, dict) and "backbone" in about:
        check_encoder("model file", about["backbone"], ours)
    for name in [name for name, value in state_dict.items() if not isinstance(value, torch.Tensor)]:
        del state_dict[name]


class AMASAM(nn.Module):
    """
    AMA-SAM's segmentation network: a frozen SAM image encoder and a trained High-Resolution Decoder.

    It knows nothing of domains, so it exports, serves and tiles like any segmentation network. The adversary that
    aligns domains in training is in ``domain_adversary``. After AMA-SAM, https://arxiv.org/abs/2503.21695.

    Args:
        image_encoder: frozen encoder, image -> list of features (see ``sam_encoders.FrozenEncoder``).
        decoder: features and image -> logits and aligned features (see ``decoder.Decoder``).
        targets: what the channels mean, a key of ``nuclei.targets.CHANNELS``; model files tell it.
    """

    def __init__(self, image_encoder: nn.Module, decoder: nn.Module, targets: str = "distance") -> None:
        super().__init__()
        self.targets = targets
        self.image_encoder = image_encoder
        self.decoder = decoder
        # MONAI's tools and the model zoo load a model file as it is
        self.register_load_state_dict_pre_hook(_heed_what_is_told)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: (B, 3, H, W) RGB in [0, 255]; H and W multiples of ``image_encoder.size_multiple``.

        Returns:
            logits (B, C, H, W): channel 0 foreground; the others, if any, separate nuclei as ``targets`` says.
        """
        return self.decoder(self.image_encoder(image), image)[0]
