"""Validation of the EMA weights at the end of an epoch: held-out loss, samples."""

from dataclasses import asdict

import torch
from torch import Tensor

from data import ImageSet
from diffusion import (
    Denoiser,
    DiffusionModel,
    HeldOut,
    Sampler,
    generate,
    held_out_losses,
    repeated,
    x0_errors,
)
from training.state import TrainState
from utils.devices import autocast
from utils.seeding import permutation

HELD_OUT = 1024  # test images of the held-out loss
ERRORS = 1024  # training images from which the errors of x_0 are measured
PREVIEW = 20  # samples


class Validation:
    """The fixed images on which every epoch is validated."""

    def __init__(self, state: TrainState, train_set: ImageSet, test_set: ImageSet) -> None:
        self.train_set, self.held_out = train_set, None
        self.images = PREVIEW * state.config.sample.steps
        if len(test_set):
            self.held_out = HeldOut.of(*subset(test_set, HELD_OUT), state.diffusion)
            self.images += len(self.held_out.t)

    def run(self, state: TrainState) -> tuple[float | None, list[Tensor]]:
        """The held-out loss, None without test images, and x_T ... x_0 of some samples.

        At the end of the run, or where samples need them now, also the network's errors of x_0.
        """
        sample, diffusion = state.config.sample, state.diffusion
        state.x0_error = None
        if state.finished or sample.variance == "optimal":  # in float32, as sample.py samples
            denoiser = Denoiser(state.ema, diffusion, sample.clip)
            state.x0_error = x0_errors(denoiser, repeated(*subset(self.train_set, ERRORS)))
        with autocast(state.device, state.config.train.precision):
            return self.held_out_loss(state), preview(state)

    def held_out_loss(self, state: TrainState) -> float | None:
        """Of the EMA weights; updates state.best. None without test images."""
        if self.held_out is None:
            return None
        loss = held_out_losses(state.ema, state.diffusion, self.held_out).mean().item()
        if state.best is None or loss < state.best["loss"]:
            state.best = {"step": state.step, "loss": loss}
        return loss


def subset(image_set: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    """Some images and labels; shuffled, as a folder is sorted by class."""
    return next(image_set.batches(permutation(len(image_set), 0, 0)[:count], count))


def preview(state: TrainState) -> list[Tensor]:
    """x_T ... x_0 of PREVIEW samples, from the same noise every time; (PREVIEW, C, H, W) each."""
    config, classes = state.config, state.config.model.num_classes
    shape = config.image_shape
    model = DiffusionModel(state.ema, state.diffusion, shape, classes, state.x0_error)
    sampler, labels = Sampler(**asdict(config.sample)), None
    if classes:
        labels = torch.arange(PREVIEW) % classes
    every = range(sampler.steps + 1)
    return generate(model, sampler, range(PREVIEW), labels, seed=config.train.seed, keep=every)
