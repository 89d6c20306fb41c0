from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from scripts.errors import DataError
from scripts.networks.decoder import Decoder, interpolate
from scripts.networks.sam_encoders import sam_modeling
from scripts.networks.weights import read_checkpoint
from torch import nn

__all__ = ["SAMMaskDecoder", "UNetDecoder"]


class UNetDecoder(Decoder):
    """
    MONAI's ``BasicUNet`` on the image, from scratch: what the images teach without SAM. The features are ignored.

    As in the HR-Decoder the finest level lies at stride 2: each 2x2 square of pixels goes in as channels and comes out
    by a sub-pixel step. At stride 1 most of the time would go into the level that matters least. The aligned features
    are those of the upward path at stride 16.

    Args:
        in_channels: of the encoder's features, not used.
        strides: theirs, not used.
        out_channels: as of ``HRDecoder``.
        widths: channels at strides 2, 4, 8, 16, 32 and after the last step up; the default is the standard
            HR-Decoder's.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        out_channels: int = 2,
        widths: Sequence[int] = (24, 48, 96, 128, 128, 24),
    ) -> None:
        widths = list(widths)
        super().__init__(
            out_channels=out_channels,
            aligned_channels=widths[3],
            settings={"out_channels": out_channels, "widths": widths},
        )
        self.unet = BasicUNet(spatial_dims=2, in_channels=12, out_channels=4 * out_channels, features=tuple(widths))

    def forward(self, features: list[torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Decoder`; sides of the image are multiples of 32."""
        unet = self.unet
        squares = F.pixel_unshuffle(image / 127.5 - 1.0, 2).contiguous(memory_format=torch.channels_last)
        # BasicUNet.forward, taken apart for the features at stride 16
        down = [unet.conv_0(squares)]
        for step in (unet.down_1, unet.down_2, unet.down_3, unet.down_4):
            down.append(step(down[-1]))
        aligned = unet.upcat_4(down[4], down[3])
        x = unet.upcat_2(unet.upcat_3(aligned, down[2]), down[1])
        return F.pixel_shuffle(unet.final_conv(unet.upcat_1(x, down[0])), 2), aligned


class SAMMaskDecoder(Decoder):
    """
    SAM's own mask decoder, built from segment-anything's parts, trained without prompts.

    Two-way attention between mask tokens, one for each output channel, and the encoder's last feature; two transposed
    convolutions to stride 4; bilinear interpolation, as in SAM. The aligned features are the image's after the
    attention, at stride 16.

    Args:
        in_channels: channels of the encoder's features; the last, at stride 16, is what is read, and must divide by 16.
        strides: their strides.
        out_channels: as of ``HRDecoder``.
        checkpoint: file of a whole SAM or MobileSAM, to start with its decoder's weights; None starts from scratch.

    Raises:
        DataError: when the checkpoint cannot be read or holds no such decoder.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        out_channels: int = 2,
        checkpoint: str | os.PathLike | None = None,
    ) -> None:
        width = in_channels[-1]
        if strides[-1] != 16 or width % 16:
            raise ValueError(
                f"SAM's mask decoder reads a last feature of stride 16 whose channels divide by 16, got stride "
                f"{strides[-1]} and {width} channels"
            )
        super().__init__(out_channels=out_channels, aligned_channels=width, settings={"out_channels": out_channels})
        modeling = sam_modeling()
        # the numbers of segment-anything's build_sam
        transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=8 * width, num_heads=8)
        decoder = modeling.MaskDecoder(
            transformer_dim=width, transformer=transformer, num_multimask_outputs=out_channels - 1
        )
        del decoder.iou_prediction_head  # nothing would train it
        self.decoder = decoder
        self.no_prompt = nn.Parameter(torch.zeros(1, width, 1, 1))  # SAM's no_mask_embed
        self.register_buffer("frequencies", torch.randn(2, width // 2))  # of SAM's random position embedding
        if checkpoint is not None:
            self._start_from(checkpoint)

    def _start_from(self, checkpoint: str | os.PathLike) -> None:
        found = read_checkpoint(checkpoint, "Give a whole SAM or MobileSAM")
        of_sam = {
            "no_prompt": "prompt_encoder.no_mask_embed.weight",
            "frequencies": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        }
        state = self.state_dict()
        for name, own in state.items():
            theirs = found.get(of_sam.get(name, f"mask_{name}"))
            # SAM has more masks than are trained here
            if theirs is None or theirs[: len(own)].numel() != own.numel():
                raise DataError(checkpoint, f"it has no SAM decoder with '{name}'", "Give a whole SAM or MobileSAM")
            state[name] = theirs[: len(own)].reshape(own.shape)
        self.load_state_dict(state)

    def forward(self, features: list[torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Decoder`; of the image only the size is used."""
        decoder, embedding = self.decoder, features[-1] + self.no_prompt
        # MaskDecoder.predict_masks for a batch of images, where SAM has a batch of prompts on one image
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(embedding), -1, -1)
        queries, keys = decoder.transformer(embedding, self._positions(embedding), tokens)
        aligned = keys.transpose(1, 2).reshape(embedding.shape)
        upscaled = decoder.output_upscaling(aligned)
        kernels = [mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        masks = torch.einsum("bmc,bchw->bmhw", torch.stack(kernels, dim=1), upscaled)
        return interpolate(masks, image), aligned

    def _positions(self, embedding: torch.Tensor) -> torch.Tensor:
        """SAM's ``PositionEmbeddingRandom`` of a feature's grid, for each sample: (B, C, h, w)."""
        h, w = embedding.shape[2:]
        y = (torch.arange(h, device=embedding.device) + 0.5) / h
        x = (torch.arange(w, device=embedding.device) + 0.5) / w
        grid = 2 * torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).to(embedding.dtype) - 1
        angles = 2 * math.pi * grid @ self.frequencies.to(embedding.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1).expand(len(embedding), -1, -1, -1)
