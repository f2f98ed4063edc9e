"""Sampling: our samplers and diffusers' schedulers on one network, at their usual steps."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import Task, sampling_network
from diffusion import GaussianDiffusion, guided, last, make_diffusion, make_sampler
from utils import images
from utils.seeding import image_noise

IMAGES = 64  # of a grid
STEPS = {"ddpm": 20, "ddim": 20, "dpmpp": 10}


def our_grid(model: torch.nn.Module, diffusion: GaussianDiffusion, name: str, task: Task) -> Tensor:
    """64 images by sample.py's means."""
    c = task.config
    shape = (1, c.data.image_size, c.data.image_size)
    randn = image_noise(0, range(IMAGES), shape, task.device)
    y = torch.arange(IMAGES, device=task.device) % 10
    options = {"clip": True, "variance": "posterior", "eta": 0.0}
    sampler = make_sampler(name, **options)
    denoiser = guided(model, y, c.model.num_classes)
    return last(sampler(denoiser, diffusion, randn(), STEPS[name], randn))


def their_scheduler(name: str):
    """The scheduler of diffusers that does what our sampler of this name does."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    common = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    return {
        "ddpm": lambda: DDPMScheduler(1000, **common),
        "ddim": lambda: DDIMScheduler(1000, **common),
        "dpmpp": lambda: DPMSolverMultistepScheduler(1000, **common),
    }[name]()


@torch.no_grad()
def their_grid(model: torch.nn.Module, name: str, task: Task) -> Tensor:
    """The same with diffusers' loop, as in its DDPMPipeline."""
    side, scheduler = task.config.data.image_size, their_scheduler(name)
    x = torch.randn(IMAGES, 1, side, side, device=task.device)
    y = torch.arange(IMAGES, device=task.device) % 10
    scheduler.set_timesteps(STEPS[name])
    for t in scheduler.timesteps:
        output = model(x, t.expand(IMAGES).to(task.device), y)
        x = scheduler.step(output, t, x).prev_sample
    return x.clamp(-1, 1)


def grids(task: Task) -> dict[str, Callable[[], Tensor]]:
    """Every way to 64 images, ready to be drawn."""
    model = sampling_network(task)
    diffusion = make_diffusion("cosine", 1000, (), "v", "simple", 1).to(task.device)
    ways: dict[str, Callable[[], Tensor]] = {}
    for name in STEPS:
        ways[f"ours {name}"] = lambda name=name: our_grid(model, diffusion, name, task)
        ways[f"diffusers {name}"] = lambda name=name: their_grid(model, name, task)
    return ways


def draw_with_diffusers(name: str, device: str, path: str) -> None:
    """A process that does nothing but draw and save: what is timed cold."""
    task = Task("mnist", "fp32", torch.device(device))
    images.save_png(images.grid(their_grid(sampling_network(task), name, task), 8), Path(path))


if __name__ == "__main__":
    draw_with_diffusers(*sys.argv[1:])
