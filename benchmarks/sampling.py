"""Sampling: our samplers and diffusers' schedulers on one network, at their usual steps."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import cold_diffusers, measure
from benchmarks.baselines import Task, sampling_model
from benchmarks.cold_diffusers import IMAGES
from diffusion import DiffusionModel, Sampler, generate
from models import UNet
from utils import checkpoint

STEPS = {"ddpm": 10, "ddim": 20, "dpmpp": 10}


def our_images(model: DiffusionModel, name: str) -> Tensor:
    """64 images as sample.py draws them."""
    labels = torch.arange(IMAGES) % model.num_classes
    (x_0,) = generate(model, Sampler(name, STEPS[name]), range(IMAGES), labels)
    return x_0


def grids(task: Task) -> dict[str, Callable[[], Tensor]]:
    """Every way to 64 images, ready to be drawn."""
    model, side = sampling_model(task), task.config.data.image_size[0]
    ways: dict[str, Callable[[], Tensor]] = {}
    for name, steps in STEPS.items():
        ways[f"ours {name}"] = lambda name=name: our_images(model, name)
        ways[f"diffusers {name}"] = lambda name=name, steps=steps: cold_diffusers.draw(
            model.network, name, steps, task.device, side
        )
    return ways


def from_typing(where: Path, device: str, data: list[str]) -> dict[str, Callable[[], object]]:
    """The same as whole processes, from typing to the picture on the disk.

    The network is that of a run of two steps: how good it is does not change the time.
    """
    flags = ["--device", device]
    train = [sys.executable, str(measure.ROOT / "train.py"), *flags, *data, "--max-steps", "2"]
    measure.output(train, where)
    state = checkpoint.load(checkpoint.find("latest", where / "Logs_Checkpoints"))
    model = UNet(**state["config"]["model"])
    model.load_state_dict(state["model"])
    network = {"arguments": state["config"]["model"], "weights": model.state_dict()}
    torch.save(network, where / "network.pt")
    draw = [sys.executable, str(measure.ROOT / "sample.py"), "--ckpt", "latest", *flags]
    draw += ["--num", str(IMAGES), "--overwrite", "--guidance", "1"]  # as the others
    theirs = [sys.executable, str(Path(cold_diffusers.__file__)), "network.pt"]
    ways: dict[str, Callable[[], object]] = {}
    for name, steps in STEPS.items():
        ours = [*draw, "--sampler", name, "--steps", str(steps)]
        other = [*theirs, name, str(steps), device, f"{name}.png"]
        ways[f"ours {name}"] = lambda ours=ours: measure.output(ours, where)
        ways[f"diffusers {name}"] = lambda other=other: measure.output(other, where)
    return ways
