from __future__ import annotations

import torch
from scripts.errors import DataError
from scripts.networks.model_file import ABOUT
from torch import nn

__all__ = ["AMASAM"]


def _drop_what_is_no_tensor(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """
    Load hook (a plain function, so that modules stay copyable): a file may tell more than the weights.

    Tensors of one shape can be of two encoders (one sees images at half their resolution), so what it tells is heeded.
    """
    about = state_dict.get(prefix + ABOUT)
    theirs = about.get("backbone") if isinstance(about, dict) else None
    ours = getattr(module.image_encoder, "backbone_type", theirs)
    if theirs not in (None, ours):
        raise DataError("model file", f"it holds a {theirs} model, not {ours}", f"Add --backbone {theirs}")
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
        self.register_load_state_dict_pre_hook(_drop_what_is_no_tensor)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: (B, 3, H, W) RGB in [0, 255]; H and W multiples of ``image_encoder.size_multiple``.

        Returns:
            logits (B, C, H, W): channel 0 foreground; the others, if any, separate nuclei as ``targets`` says.
        """
        return self.decoder(self.image_encoder(image), image)[0]
