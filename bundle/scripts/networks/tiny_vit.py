from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scripts.networks.adapters import Adapter, NoAdapter, adapted_blocks
from scripts.networks.fused import Pointwise, convolution, linear, recorded
from torch import Tensor, nn

__all__ = ["TinyViT", "from_windows", "to_windows"]


def _derive(module: nn.Module, _incompatible_keys: object) -> None:
    """Load hook (a plain function, so that modules stay copyable): derived tensors follow the loaded ones."""
    module.derive()


def to_windows(x: Tensor, filling: Tensor, size: int) -> Tensor:
    """
    Cuts a grid of tokens (B, H, W, C) into windows (B * windows, size * size, C).

    Where ``size`` does not divide H or W, the grid is first extended right and down with the token ``filling`` (C,).
    """
    if not torch.jit.is_scripting():
        if _by_places(x):
            return _gathered_windows(x, filling, size)
    b, h, w, c = x.shape
    down, right = (size - h % size) % size, (size - w % size) % size
    if down + right > 0:
        x = torch.cat([x, filling.expand(b, h, right, c)], dim=2)
        x = torch.cat([x, filling.expand(b, down, w + right, c)], dim=1)
    x = x.view(b, (h + down) // size, size, (w + right) // size, size, c)
    return x.transpose(2, 3).reshape(-1, size * size, c)


def from_windows(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Joins windows (B * windows, size * size, C) to (B, height, width, C), dropping what was filled."""
    if not torch.jit.is_scripting():
        if _by_places(x):
            return _gathered_grid(x, size, height, width)
    rows, columns = (height + size - 1) // size, (width + size - 1) // size
    x = x.reshape(-1, rows, columns, size, size, x.shape[2]).transpose(2, 3)
    return x.reshape(-1, rows * size, columns * size, x.shape[5])[:, :height, :width]


@torch.jit.unused
def _by_places(x: Tensor) -> bool:
    """Whether tokens are to be copied once, each from its place, instead of filled, cut and copied in turn."""
    return x.device.type == "cpu" and not recorded() and not torch.is_grad_enabled()


@torch.jit.unused
def _gathered_windows(x: Tensor, filling: Tensor, size: int) -> Tensor:
    places, filled, _ = _places(x.shape[0], x.shape[1], x.shape[2], size)
    windows = x.flatten(0, 2).index_select(0, places)
    windows[filled] = filling
    return windows.view(-1, size * size, x.shape[3])


@torch.jit.unused
def _gathered_grid(x: Tensor, size: int, height: int, width: int) -> Tensor:
    windows = -(-height // size) * -(-width // size)
    back = _places(x.shape[0] // windows, height, width, size)[2]
    return x.flatten(0, 1).index_select(0, back).view(-1, height, width, x.shape[2])


@functools.lru_cache(maxsize=64)
def _places(b: int, height: int, width: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """
    For windows of a grid of that size: where in the grid each of their tokens comes from, which of them are filled
    (their place is 0), and where in the windows each token of the grid has gone.
    """
    with torch.inference_mode(False), torch.enable_grad():  # the ordinary functions, on numbers
        numbers = torch.arange(b * height * width).view(b, height, width, 1)
        places = to_windows(numbers, torch.tensor([-1]), size).flatten()
        back = from_windows(torch.arange(len(places)).view(-1, size * size, 1), size, height, width).flatten()
    return places.clamp(min=0), (places < 0).nonzero()[:, 0], back


class ConvNorm(nn.Module):
    """
    Convolution and BatchNorm, run as the one convolution they amount to in inference.

    The checkpoint's unfused tensors ``c.*`` and ``bn.*`` are what the state dict holds; the fused ``weight`` and
    ``bias`` are derived from them whenever a state dict is loaded, and are not part of it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.stride, self.padding, self.groups = stride, kernel // 2, groups
        self.register_buffer("weight", torch.empty(0), persistent=False)
        self.register_buffer("bias", torch.empty(0), persistent=False)
        self.derive()
        self.register_load_state_dict_post_hook(_derive)

    @torch.no_grad()
    def derive(self) -> None:
        gain = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        self.weight = (self.c.weight * gain[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        self.bias = self.bn.bias - self.bn.running_mean * gain

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return convolution(x, self.weight, self.bias, self.stride, self.padding, self.groups, gelu)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Two strided convolutions: image (B, 3, H, W) to (B, C, H/4, W/4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.seq = nn.Sequential(ConvNorm(3, half, 3, stride=2), nn.GELU(), ConvNorm(half, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq[2](self.seq[0](x, gelu=True))


class MBConv(nn.Module):
    """Inverted residual: widen, depthwise convolution, narrow."""

    def __init__(self, channels: int, expand: int = 4) -> None:
        super().__init__()
        hidden = channels * expand
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.conv1(x, gelu=True), gelu=True)
        return F.gelu(x + self.conv3(hidden))


class PatchMerging(nn.Module):
    """Passes from one stage to the next: new channel count, and half the resolution where ``stride`` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride=stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x, gelu=True), gelu=True))


class WindowAttention(nn.Module):
    """
    Self-attention inside windows of ``window`` x ``window`` tokens, with a learned bias per head and |offset|.

    Grids that the window does not divide are filled up at the right and bottom with tokens that are zero before the
    norm; the real tokens attend to them, as they did when the checkpoint was trained.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))
        self.register_buffer("bias", torch.empty(0), persistent=False)
        self.derive()
        self.register_load_state_dict_post_hook(_derive)

    @torch.no_grad()
    def derive(self) -> None:
        """Gathers the bias table into the (1, heads, tokens, tokens) that attention adds."""
        cell = torch.arange(self.window**2, device=self.attention_biases.device)
        rows = (cell[:, None] // self.window - cell // self.window).abs()
        columns = (cell[:, None] % self.window - cell % self.window).abs()
        self.bias = self.attention_biases[:, rows * self.window + columns].unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) to tokens of the same shape."""
        h, w, c = x.shape[1], x.shape[2], x.shape[3]
        # a filling token is norm(0) = norm.bias: the same everywhere, so projected once instead of at each place
        projected = linear(self.norm(x), self.qkv.weight, self.qkv.bias)
        qkv = to_windows(projected, self.qkv(self.norm.bias), self.window)
        qkv = qkv.view(-1, qkv.shape[1], self.num_heads, 3, c // self.num_heads).permute(3, 0, 2, 1, 4)
        x = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=self.bias)
        x = from_windows(x.transpose(1, 2).flatten(2), self.window, h, w)
        return linear(x, self.proj.weight, self.proj.bias)


class Mlp(nn.Module):
    """Norm and two-layer perceptron on each token."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.fc2 = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = linear(self.norm(x), self.fc1.weight, self.fc1.bias, gelu=True)
        return linear(x, self.fc2.weight, self.fc2.bias)


class AttentionBlock(nn.Module):
    """Window attention, a depthwise convolution that joins the windows, and a perceptron."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, num_heads, window)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        # (B, C, H, W) in channels-last memory is (B, H, W, C) tokens without a copy, and stays so through the block
        x = x.permute(0, 2, 3, 1)
        x = x + self.attn(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks at one resolution, with what adapts them; gives their output and the input of the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], adapters: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.adapters = nn.ModuleList(adapters)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block, adapter in zip(self.blocks, self.adapters):
            x = adapter(x, block(x))
        return x, self.downsample(x)


class TinyViT(nn.Module):
    """
    MobileSAM's image encoder: TinyViT whose last stage keeps stride 16, and SAM's neck.

    For inference only: BatchNorm is folded and attention biases are gathered when weights are loaded. There is no
    absolute position, so any H and W divisible by 16 will do.

    Sources: Wu et al., TinyViT, arXiv:2207.10666; Zhang et al., Faster Segment Anything, arXiv:2306.14289. Parameter
    names are those of the ``image_encoder`` part of ``mobile_sam.pt`` without its unused classifier
    (``norm_head``, ``head``).

    Args:
        embed_dims: channels of the four stages.
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages; the first stage is convolutional and ignores its entry.
        window_sizes: attention window of the four stages, in tokens; the first entry is ignored likewise.
        out_channels: channels of the neck.
        adapters: which blocks have a trained adapter beside them: "none", "late" (the last two stages), "early" (the
            first two) or "all".

    What comes before the first adapted stage is :meth:`begin`, the rest :meth:`finish`.
    """

    def __init__(
        self,
        *,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_sizes: Sequence[int],
        out_channels: int = 256,
        adapters: str = "none",
    ) -> None:
        super().__init__()
        adapted = adapted_blocks(adapters, [i >= 2 for i in range(len(embed_dims))])
        self.first = adapted.index(True) if any(adapted) else len(adapted)
        self.patch_embed = PatchEmbed(embed_dims[0])
        self.layers = nn.ModuleList()
        for i, (dim, depth, heads, window) in enumerate(zip(embed_dims, depths, num_heads, window_sizes, strict=True)):
            blocks = [MBConv(dim) if i == 0 else AttentionBlock(dim, heads, window) for _ in range(depth)]
            last = i == len(embed_dims) - 1
            # strides 4, 8, 16, 16: MobileSAM does not halve the resolution before its last stage
            downsample = nn.Identity() if last else PatchMerging(dim, embed_dims[i + 1], stride=2 if i < 2 else 1)
            beside = [Adapter(dim) if adapted[i] else NoAdapter() for _ in range(depth)]
            self.layers.append(Stage(blocks, beside, downsample))
        self.neck = nn.Sequential(
            Pointwise(embed_dims[-1], out_channels),
            ChannelNorm(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            ChannelNorm(out_channels),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """
        Args:
            x: normalised image (B, 3, H, W), H and W divisible by 16.

        Returns:
            features fine to coarse: stages 1 and 2 before downsampling, (B, embed_dims[0], H/4, W/4) and
            (B, embed_dims[1], H/8, W/8), and the neck (B, out_channels, H/16, W/16), in channels-last memory.
        """
        return self.finish(self.begin(x))

    def begin(self, x: Tensor) -> list[Tensor]:
        """
        What no adapter changes: of an image as in :meth:`forward`, the features that are done before the first adapted
        stage, then the input of that stage; without any, all features.
        """
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        done: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if i < self.first:
                stage, x = layer(x)
                if i < 2:
                    done.append(stage)
        if self.first == len(self.layers):
            x = self.neck(x)
        done.append(x)
        return done

    def finish(self, begun: list[Tensor]) -> list[Tensor]:
        """The features, from what :meth:`begin` gives."""
        if self.first == len(self.layers):
            return begun
        features, x = begun[:-1], begun[-1].contiguous(memory_format=torch.channels_last)
        for i, layer in enumerate(self.layers):
            if i >= self.first:
                stage, x = layer(x)
                if i < 2:
                    features.append(stage)
        features.append(self.neck(x))
        return features
