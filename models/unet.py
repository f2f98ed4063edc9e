"""The denoising network: a U-Net with multi-head self-attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.blocks import (
    NORMS,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    downsample,
    label_embedding,
    zero_init,
)


class Level(nn.Module):
    """Residual blocks at one resolution, and the layer to the next resolution."""

    def __init__(self, blocks: Sequence[nn.Module], resample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample


class UNet(nn.Module):
    """Ho et al. (2020), App. B: levels of residual blocks down, two in the middle, levels up.

    ``patch_size`` p > 1 trades p x p pixels for channels before the first level (pixel-unshuffle)
    and back behind the last. ``attention_levels`` count from 0, the finest; the bottleneck always
    attends. ``num_classes`` K > 0 adds a class embedding whose entry K means "no class".
    ``outputs`` are the channels of the output per channel of the image. An untrained network
    outputs 0. With ``checkpoint_activations`` set, training stores only
    the input of each block and recomputes the rest in the backward pass: less memory, more time,
    the same bits. Raises ValueError where sizes do not fit together.
    """

    def __init__(
        self,
        image_channels: int,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks_per_level: int,
        attention_levels: Sequence[int],
        heads: int,
        emb_channels: int,
        patch_size: int,
        norm: str,
        dropout: float,
        num_classes: int,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        widths = [base_channels * m for m in channel_multipliers]
        check_widths([base_channels, *widths], attention_levels, heads, norm)
        self.num_classes, self.patch_size = num_classes, patch_size
        self.checkpoint_activations = False
        self.size_multiple = patch_size * 2 ** (len(widths) - 1)
        patch_channels = image_channels * patch_size**2

        def block(inputs: int, outputs: int, attends: bool) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, emb_channels, heads * attends, dropout, norm)

        self.time = TimeEmbedding(base_channels, emb_channels)
        self.label = label_embedding(num_classes + 1, emb_channels) if num_classes else None
        self.stem = nn.Conv2d(patch_channels, base_channels, 3, padding=1)

        # Skips are the input of each level and the output of each of its blocks.
        self.down, channels, skips = nn.ModuleList(), base_channels, []
        for i, width in enumerate(widths):
            inputs = [channels] + [width] * (blocks_per_level - 1)
            blocks = [block(c, width, i in attention_levels) for c in inputs]
            skips += [channels] + [width] * blocks_per_level
            last = i == len(widths) - 1
            self.down.append(Level(blocks, nn.Identity() if last else downsample(width)))
            channels = width

        self.middle = nn.ModuleList(block(channels, channels, attends) for attends in (True, False))

        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            inputs = [channels] + [width] * blocks_per_level
            blocks = [block(c + skips.pop(), width, i in attention_levels) for c in inputs]
            self.up.append(Level(blocks, Upsample(width) if i > 0 else nn.Identity()))
            channels = width

        self.norm = NORMS[norm](channels)
        self.head = zero_init(nn.Conv2d(channels, outputs * patch_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), t (B,), class y (B,) in 0..K -> (B, outputs C, H, W); y None: no class."""
        check_size(x.shape[-2:], self.size_multiple)
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(torch.full_like(t, self.num_classes) if y is None else y)
        h = F.pixel_unshuffle(x, self.patch_size)  # (B, C p p, H/p, W/p)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))

        skips = []
        for level in self.down:
            skips.append(h)
            for block in level.blocks:
                h = self.run(block, h, emb)
                skips.append(h)
            h = level.resample(h)

        for block in self.middle:
            h = self.run(block, h, emb)

        for level in self.up:
            for block in level.blocks:
                h = self.run(block, torch.cat([h, skips.pop()], dim=1), emb)
            h = level.resample(h)

        # In float32 also under autocast: at small t the bound weights errors of x_0 by thousands.
        with torch.autocast(h.device.type, enabled=False):
            h = self.head(F.silu(self.norm(h.float())))
        return F.pixel_shuffle(h, self.patch_size)  # (B, outputs C, H, W)

    def run(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        """The output of a block, with or without activation checkpointing."""
        if self.checkpoint_activations and self.training:
            return checkpoint(block, h, emb, use_reentrant=False)
        return block(h, emb)

    def matrices(self) -> list[nn.Parameter]:
        """The convolutions between hidden activations, for a matrix optimizer such as Muon.

        Without the first and last layer, the embeddings, biases and normalizations.
        """
        hidden = nn.ModuleList([self.down, self.middle, self.up])
        return [p for p in hidden.parameters() if p.ndim == 4]


def check_size(size: Sequence[int], multiple: int) -> None:
    """ValueError unless height and width are multiples of the total downsampling."""
    if any(side % multiple for side in size):
        up = " x ".join(str(-(-side // multiple) * multiple) for side in size)
        raise ValueError(
            f"images of {size[0]} x {size[1]} cannot be halved down to the coarsest level: "
            f"each side must be a multiple of {multiple}; pad to {up} or use fewer levels"
        )


def check_widths(
    widths: Sequence[int], attention_levels: Sequence[int], heads: int, norm: str
) -> None:
    """ValueError unless heads, groups and the time embedding divide the widths."""
    levels = len(widths) - 1
    if not levels:
        raise ValueError("channel multipliers must name at least one level")
    if any(not 0 <= level < levels for level in attention_levels):
        raise ValueError(f"attention levels {list(attention_levels)} must lie in 0..{levels - 1}")
    if widths[0] % 2 or widths[0] < 4:
        raise ValueError(f"base channels must be even and at least 4, got {widths[0]}")
    for divisor, what in ((heads, "heads"), (8 if norm == "group" else 1, "normalization groups")):
        if any(width % divisor for width in widths):
            raise ValueError(
                f"{divisor} {what} do not divide widths {list(widths)}: "
                f"use base channels that are a multiple of {divisor}"
            )
