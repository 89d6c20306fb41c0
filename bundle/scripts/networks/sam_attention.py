from __future__ import annotations

import torch
import torch.nn.functional as F
from scripts.networks.fused import attend_rows, linear, onednn_applies
from scripts.networks.tiny_vit import from_windows, to_windows
from torch import Tensor, nn

__all__ = ["FusedBlock", "attend", "position_table"]


def work_bytes(x: Tensor) -> int:
    """
    Size of intermediate tensors to stay below on the device of ``x``.

    On a CPU such pieces stay in cache, and in memory that malloc reuses: from 32 MiB on, glibc maps fresh pages for
    every tensor, whose first touch costs more than the arithmetic on them. A GPU wants enough work to be filled.
    """
    mebibyte = 1024 * 1024
    return 16 * mebibyte if x.device.type == "cpu" else 1024 * mebibyte


def position_table(rel_pos: Tensor, size: int) -> Tensor:
    """
    Position vectors of all (query, key) pairs along one axis.

    Args:
        rel_pos: learned vectors (2 * trained size - 1, C), by offset; interpolated when the size differs.
        size: length of the axis, in tokens.

    Returns:
        (size, size, C): entry [q, k] is the vector of offset q - k.
    """
    length = 2 * size - 1
    if rel_pos.shape[0] != length:
        rel_pos = F.interpolate(rel_pos.t().unsqueeze(0), size=length, mode="linear")[0].t()
    place = torch.arange(size, device=rel_pos.device)
    return rel_pos[place[:, None] - place + size - 1]


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, bias_bytes: int) -> Tensor:
    """
    Attention over an H x W grid with decomposed relative positions, without the whole (H W) x (H W) bias.

    softmax(q k / sqrt(C) + q rows + q columns) v. The bias is laid out for some queries at a time, and each part goes
    through torch's fused attention, or, where they apply, through oneDNN's products. Decomposition: Li et al., MViTv2,
    arXiv:2112.01526, eq. 4.

    Args:
        q, k, v: (maps, H * W, C), a map being one head of one image or window.
        rows, columns: position tables (H, H, C) and (W, W, C).
        bias_bytes: the bias is cut to this size, or to one line of the grid.

    Returns:
        (maps, H * W, C).
    """
    n, c = q.shape[1], q.shape[2]
    h, w = rows.shape[0], columns.shape[0]
    grid = q.view(-1, h, w, c)
    by_row = torch.einsum("mhwc,hkc->mhwk", grid, rows).contiguous().unsqueeze(4)
    by_column = torch.einsum("mhwc,wkc->mhwk", grid, columns).contiguous().unsqueeze(3)

    line_bytes = 4 * w * n
    if not torch.jit.is_scripting():
        if line_bytes * h > bias_bytes and onednn_applies(q, k):
            return _attend_map_by_map(q, k, v, by_row, by_column, max(1, bias_bytes // (2 * line_bytes)))
    # as many grid lines as fit, and as many maps when whole ones fit
    lines = min(h, max(1, bias_bytes // line_bytes))
    maps = max(1, bias_bytes // (line_bytes * h))
    parts: list[Tensor] = []
    for i in range(0, q.shape[0], maps):
        done: list[Tensor] = []
        for j in range(0, h, lines):
            bias = by_row[i : i + maps, j : j + lines] + by_column[i : i + maps, j : j + lines]
            bias = bias.flatten(3).flatten(1, 2).unsqueeze(0)
            queries = q[i : i + maps, j * w : (j + lines) * w].unsqueeze(0)
            keys, values = k[i : i + maps].unsqueeze(0), v[i : i + maps].unsqueeze(0)
            done.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)[0])
        parts.append(torch.cat(done, dim=1))
    return torch.cat(parts)


@torch.jit.unused
def _attend_map_by_map(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor, lines: int) -> Tensor:
    """As :func:`attend`, one map and ``lines`` lines of its grid at a time."""
    h, w, n = by_row.shape[1], by_row.shape[2], q.shape[1]
    k, v_transposed, result = k.contiguous(), v.transpose(1, 2).contiguous(), torch.empty_like(q)
    for i in range(q.shape[0]):
        for j in range(0, h, lines):
            bias = by_row[i, j : j + lines] + by_column[i, j : j + lines]
            rows = slice(j * w, (j + lines) * w)
            result[i, rows] = attend_rows(q[i, rows], k[i], v_transposed[i], bias.view(-1, n))
    return result


class FusedAttention(nn.Module):
    """
    The attention of one of segment-anything's ViT blocks: the same parameters and result, in less time and memory.

    Args:
        attention: segment-anything's ``Attention`` with relative positions; its parameters are taken over.
        window: side of the attention windows in tokens, 0 for the whole grid.
    """

    def __init__(self, attention: nn.Module, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = attention.num_heads, window
        self.qkv, self.proj = attention.qkv, attention.proj
        self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) to tokens of the same shape."""
        h, w, c = x.shape[1], x.shape[2], x.shape[3]
        qkv = linear(x, self.qkv.weight, self.qkv.bias)
        if self.window > 0:
            # upstream fills with zeros before the projection, of which the bias is left
            qkv, rows, columns = to_windows(qkv, self.qkv.bias, self.window), self.window, self.window
        else:
            qkv, rows, columns = qkv.flatten(1, 2), h, w
        # (3, images or windows times heads, tokens, channels of a head)
        qkv = qkv.view(-1, rows * columns, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).flatten(1, 2)
        tables = position_table(self.rel_pos_h, rows), position_table(self.rel_pos_w, columns)
        x = attend(qkv[0], qkv[1], qkv[2], tables[0], tables[1], work_bytes(x))
        x = x.view(-1, self.num_heads, rows * columns, c // self.num_heads).transpose(1, 2).flatten(2)
        x = from_windows(x, self.window, h, w) if self.window > 0 else x.view(-1, h, w, c)
        return linear(x, self.proj.weight, self.proj.bias)


class FusedBlock(nn.Module):
    """
    One of segment-anything's ViT ``Block`` s with :class:`FusedAttention`; tokens (B, H, W, C) in and out.

    What does not look beyond a strip of the grid, the perceptron and the attention inside windows, is computed strip
    by strip, see :func:`work_bytes`.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = FusedAttention(block.attn, block.window_size)

    def forward(self, x: Tensor) -> Tensor:
        widest = 4 * x.shape[0] * x.shape[2] * self.mlp.lin1.out_features  # bytes of a line inside the perceptron
        lines = max(1, work_bytes(x) // widest)
        if self.attn.window > 0:
            lines = max(1, lines // self.attn.window) * self.attn.window
            return torch.cat([self.transform(self.mix(strip)) for strip in x.split(lines, dim=1)], dim=1)
        return torch.cat([self.transform(strip) for strip in self.mix(x).split(lines, dim=1)], dim=1)

    def mix(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x))

    def transform(self, x: Tensor) -> Tensor:
        hidden = linear(self.norm2(x), self.mlp.lin1.weight, self.mlp.lin1.bias, gelu=True)
        return x + linear(hidden, self.mlp.lin2.weight, self.mlp.lin2.bias)
