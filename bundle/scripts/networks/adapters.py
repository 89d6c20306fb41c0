from __future__ import annotations

import copy
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterState",
    "NoAdapter",
    "adapted_blocks",
    "is_adapter",
    "share_frozen",
    "without_adapters",
]

# which blocks of an encoder have a trained adapter beside them; "late" is the last half
ADAPTERS = ("none", "late", "early", "all")
WIDTH = 32  # channels inside an adapter


class Adapter(nn.Module):
    """
    A small trained path beside a frozen block: norm, few channels, depthwise 3x3, GELU, and back.

    Its last layer begins at zero, so that an untrained adapter leaves the block as it is. After AdaptFormer (Chen et
    al., arXiv:2205.13535), with a convolution, for nuclei are told by what lies next to them.

    Args:
        channels: of the block's input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.down = nn.Linear(channels, WIDTH)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.up = nn.Linear(WIDTH, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's input and its output, (B, C, H, W) -> the output with what the adapter adds."""
        hidden = self.down(self.norm(x.permute(0, 2, 3, 1)))
        hidden = F.gelu(self.mix(hidden.permute(0, 3, 1, 2)))
        return y + self.up(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NoAdapter(nn.Module):
    """Stands where a block has no adapter."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y


def adapted_blocks(adapters: str, late: list[bool]) -> list[bool]:
    """
    Which blocks have an adapter.

    Args:
        adapters: one of :data:`ADAPTERS`.
        late: of each block, whether it belongs to the encoder's last half.

    Raises:
        ValueError: for another name.
    """
    if adapters not in ADAPTERS:
        raise ValueError(f"adapters must be one of {', '.join(ADAPTERS)}, got {adapters!r}")
    return [adapters == "all" or adapters == ("late" if block else "early") for block in late]


def is_adapter(name: str) -> bool:
    """Whether a tensor of an encoder, by its name in a state dict, is an adapter's, hence trained."""
    return "adapters" in name.split(".")


def share_frozen(network: nn.Module) -> nn.Module:
    """A copy with weights of its own for all that is trained; frozen weights are those of the network itself."""
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad})


def without_adapters(encoder: nn.Module) -> nn.Module:
    """The encoder as it was published, on the same frozen tensors; the encoder itself if it has no adapter."""
    if not any(isinstance(module, Adapter) for module in encoder.modules()):
        return encoder
    plain = share_frozen(encoder)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, Adapter):
                module.add_module(name, NoAdapter())
    return plain


class AdapterState:
    """
    An encoder's adapters alone, for a checkpoint.

    Args:
        encoder: with adapters.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.encoder.state_dict().items() if is_adapter(name)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.encoder.load_state_dict({**self.encoder.state_dict(), **state})
