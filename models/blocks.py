"""Building blocks of the U-Net.

Shapes: x is (B, C, H, W) in channels_last memory, emb is (B, E), D = C / heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8  # of group normalization
TIME_SCALE = 7.0  # unit variance of the time embedding at initialization
LABEL_STD = 0.3  # of the class embedding at initialization: smaller than the time's


class TimeEmbedding(nn.Module):
    """Sinusoids of t (Vaswani et al. 2017, Sec. 3.5), then a two-layer MLP.

    Computed from t, not from a table: independent of T. ``channels`` must be even and at least 4.
    """

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.mlp = nn.Sequential(
            nn.Linear(channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, E)."""
        i = torch.arange(self.half, device=t.device)
        angles = t[:, None] * torch.exp(-math.log(10_000) * i / (self.half - 1))
        return TIME_SCALE * self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


def label_embedding(classes: int, emb_channels: int) -> nn.Embedding:
    """Class embedding, (classes,) int64 -> (classes, E)."""
    embedding = nn.Embedding(classes, emb_channels)
    nn.init.normal_(embedding.weight, std=LABEL_STD)
    return embedding


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalization over the channels of each pixel.

    In channels_last memory those lie next to each other, so that on a CPU a training step takes
    less time than with group normalization.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018) with the number of groups fixed."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)


NORMS: dict[str, type[nn.Module]] = {"layer": ChannelLayerNorm, "group": GroupNorm}


class SelfAttention(nn.Module):
    """Multi-head self-attention over the H * W positions, with a residual connection."""

    def __init__(self, channels: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm = NORMS[norm](channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # (B, H, W, 3C), a view
        qkv = qkv.reshape(B, H * W, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H*W, D)
        h = attend(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        return x + self.out(h.permute(0, 3, 1, 2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, Eq. 1); (B, heads, N, D) each."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    # Written out on a CPU: in bfloat16 the fused kernel's backward pass is several times slower.
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm * (1 + scale) + shift, SiLU, dropout, conv; then maybe attention.

    Scale and shift come from the embedding (Dhariwal & Nichol 2021, Sec. 3; "AdaGN").
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        heads: int,
        dropout: float,
        norm: str,
    ) -> None:
        """``heads`` = 0: no attention."""
        super().__init__()
        self.norm1 = NORMS[norm](in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, 2 * out_channels)
        self.norm2 = NORMS[norm](out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = SelfAttention(out_channels, heads, norm) if heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, C_in, H, W), (B, E) -> (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(h)))
        return self.attention(self.skip(x) + h)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def downsample(channels: int) -> nn.Module:
    """Half the height and width: a convolution of stride two."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def zero_init(module: nn.Module) -> nn.Module:
    """Zero-initialize the end of a residual branch, so that the block starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
