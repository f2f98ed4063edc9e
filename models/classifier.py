"""The classifier whose features evaluate.py uses: small, and trained in a minute."""

from torch import Tensor, nn

from models.blocks import ChannelLayerNorm

WIDTHS = (32, 64, 128)  # channels at a half, a quarter and an eighth of the side


class Classifier(nn.Module):
    """A convolutional network for images of any size: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, image_channels: int, num_classes: int) -> None:
        super().__init__()
        stages, channels = [], image_channels
        for width in WIDTHS:
            stages += [unit(channels, width, stride=2), unit(width, width, stride=1)]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """The input of the last layer, (B, 128): global average pooling of the last stage."""
        return self.stages(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> logits (B, num_classes)."""
        return self.head(self.features(x))


def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Convolution, normalization, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, ChannelLayerNorm(out_channels), nn.ReLU())
