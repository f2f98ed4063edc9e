"""A process that draws many images with DDIM of diffusers into an .npz, as one would write it.

scheduler  our network and DDIMScheduler, in the loop of cold_diffusers.py
pipeline   DDIMPipeline, with a UNet2DModel of the same widths; it takes no classes

Both keep the batches in a list, and write them at the end.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from models import UNet

SIDE, BATCH = 28, 100


def main(argv: list[str]) -> None:
    """KIND NETWORK NUM STEPS FILE; NETWORK: torch.save of its keyword arguments and weights."""
    kind, network, num, steps, file = argv
    draw, make = {"scheduler": (scheduled, UNet), "pipeline": (piped, UNet2DModel)}[kind]
    stored = torch.load(network, weights_only=True)
    model = make(**stored["arguments"])
    model.load_state_dict(stored["weights"])
    model = model.eval().to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(
        1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    parts = []
    for first in range(0, int(num), BATCH):
        x = draw(model, scheduler, min(BATCH, int(num) - first), int(steps))
        parts.append((255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    np.savez_compressed(file, arr_0=np.concatenate(parts))


@torch.no_grad()
def scheduled(model: UNet, scheduler: DDIMScheduler, count: int, steps: int) -> torch.Tensor:
    """(count, 1, SIDE, SIDE) in [0, 1], of all classes in turn."""
    scheduler.set_timesteps(steps)
    x, y = torch.randn(count, 1, SIDE, SIDE), torch.arange(count) % 10
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(count), y), t, x).prev_sample
    return x.clamp(-1, 1) / 2 + 0.5


def piped(model: UNet2DModel, scheduler: DDIMScheduler, count: int, steps: int) -> torch.Tensor:
    """The same of a network that has the image in patches of 2 x 2."""
    pipeline = DDIMPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=count, num_inference_steps=steps, output_type="np").images
    return F.pixel_shuffle(torch.from_numpy(drawn).permute(0, 3, 1, 2), 2)
