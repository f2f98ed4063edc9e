"""Networks; they know nothing of diffusion, data or configuration."""

from models.blocks import NORMS
from models.unet import UNet, check_size

__all__ = ["NORMS", "UNet", "check_size"]
