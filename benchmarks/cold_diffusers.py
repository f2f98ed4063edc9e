"""A process that does nothing but draw 64 images with diffusers: timed from its start to its file.

python cold_diffusers.py NETWORK SAMPLER STEPS DEVICE PICTURE

NETWORK: torch.save of the keyword arguments and weights of our U-Net. Imports what it needs alone.
"""

import sys

import diffusers
import torch
from PIL import Image

from models import UNet

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
}
IMAGES = 64


@torch.no_grad()
def draw(
    model: torch.nn.Module, sampler: str, steps: int, device: torch.device, side: int
) -> torch.Tensor:
    """(64, 1, side, side) in [-1, 1]: the loop of diffusers' DDPMPipeline."""
    kind = getattr(diffusers, SCHEDULERS[sampler])
    scheduler = kind(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    x = torch.randn(IMAGES, 1, side, side, device=device)
    y = torch.arange(IMAGES, device=device) % 10
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = model(x, t.expand(IMAGES).to(device), y)
        x = scheduler.step(output, t, x).prev_sample
    return x.clamp(-1, 1)


def main(network: str, sampler: str, steps: str, device: str, picture: str) -> None:
    """Load, draw, save as one picture of 8 x 8."""
    stored = torch.load(network, weights_only=True)
    model = UNet(**stored["arguments"])
    model.load_state_dict(stored["weights"])
    model = model.eval().to(device, memory_format=torch.channels_last)
    x = draw(model, sampler, int(steps), torch.device(device), 28)
    pixels = ((x[:, 0] + 1) * 127.5).round().to(torch.uint8).cpu()
    grid = pixels.reshape(8, 8, 28, 28).transpose(1, 2).reshape(8 * 28, 8 * 28)
    Image.fromarray(grid.numpy()).save(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
