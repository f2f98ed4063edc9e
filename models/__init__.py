"""Networks; they know nothing of diffusion, data or configuration."""

from models.blocks import NORMS
from models.classifier import Classifier
from models.ema import PowerEMA
from models.unet import UNet, check_size

__all__ = ["NORMS", "Classifier", "PowerEMA", "UNet", "check_size"]
