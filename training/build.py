"""The network and the diffusion process of a configuration."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from config import Config, ConfigError
from diffusion import GaussianDiffusion, Sampler, make_diffusion
from models import UNet, check_size
from utils import checkpoint
from utils.seeding import mix

MOST_GAIN = 1e3  # of errors of eps at T without clipping; linear has 160, cosine 2e4


def build(config: Config, device: str = "cpu") -> tuple[UNet, GaussianDiffusion]:
    """The initialized network and the process. ConfigError for a combination that cannot be."""
    try:
        diffusion = make_diffusion(**asdict(config.diffusion))
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(mix(config.train.seed, "weights"))
            outputs = 2 if config.diffusion.learn_variance else 1
            model = UNet(**asdict(config.model), outputs=outputs)
        check_size(config.data.image_size, model.size_multiple)
        check_clipping(config, diffusion)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return model.to(memory_format=torch.channels_last), diffusion


def check_sampling(config: Config, typed: Collection[str]) -> None:
    """ConfigError for settings of sampling that cannot be, and for typed ones without effect."""
    config.check_sampling(typed)
    s = config.sample
    if s.restart or s.churn:  # whether they have an effect depends on the process
        try:
            Sampler(**asdict(s)).grid(make_diffusion(**asdict(config.diffusion)))
        except ValueError as e:
            raise ConfigError(str(e)) from e


def check_clipping(config: Config, diffusion: GaussianDiffusion) -> None:
    """ValueError where x_0 is computed from eps, not clipped, and errors of eps are amplified."""
    gain = (diffusion.sigma[-1] / diffusion.signal[-1]).item()
    if config.diffusion.prediction == "eps" and not config.sample.clip and gain > MOST_GAIN:
        raise ValueError(
            f"--no-clip: at T this schedule multiplies the network's errors of eps by {gain:.2g}; "
            "sample with --clip, or train with --prediction v or a schedule that ends earlier"
        )


def restore_value_prior(path: Path, ckpt: Mapping[str, Any], diffusion: GaussianDiffusion) -> None:
    """Tell a process of discrete pixels what its run counted. CheckpointError if there is none."""
    if (own := diffusion.stored_value_prior) is not None:
        found = {"value_prior": ckpt.get("value_prior")}
        checkpoint.check_fits(path, "process", found, {"value_prior": own})
        diffusion.value_prior.copy_(found["value_prior"])
