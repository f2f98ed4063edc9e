"""Classifier-free guidance: the conditional and the unconditional network, extrapolated."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.tensors import LabeledModel, Model, expand


def guided(
    model: LabeledModel,
    labels: Tensor | None,
    null_label: int,
    scale: float = 1.0,
    times: tuple[float, float] = (0.0, math.inf),
) -> Model:
    """Classifier-free guidance (Ho & Salimans 2022): uncond + scale * (cond - uncond).

    labels (B,); None: the unconditional network. null_label: the one that means "no class". Applies
    only at times[0] <= t <= times[1] (Kynkäänniemi et al. 2024): outside, and at scale 1, it is the
    conditional network at one evaluation instead of two. A learned variance, in the channels behind
    those of x, stays the conditional network's.
    """
    if labels is None or scale == 1:
        return lambda x, t: model(x, t, labels)
    return Guided(model, labels, null_label, scale, times)


@dataclass(frozen=True)
class Guided:
    """What ``guided`` returns, a Model; ``at`` spares samplers from reading t from the device."""

    model: LabeledModel
    labels: Tensor
    null_label: int
    scale: float
    times: tuple[float, float]

    def at(self, t: int) -> Model:
        """The network to evaluate at this t for all images: with guidance or without."""
        if self.times[0] <= t <= self.times[1]:
            return self.both
        return lambda x, t: self.model(x, t, self.labels)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """At any t (B,): whether guidance applies to some image is read from the device."""
        inside = (self.times[0] <= t) & (t <= self.times[1])
        return self.both(x, t) if inside.any() else self.model(x, t, self.labels)

    def both(self, x: Tensor, t: Tensor) -> Tensor:
        """The conditional and the unconditional network, in one batch."""
        inside = (self.times[0] <= t) & (t <= self.times[1])
        labels = torch.cat([torch.full_like(self.labels, self.null_label), self.labels])
        outputs = self.model(x.repeat(2, 1, 1, 1), t.repeat(2), labels).to(x.dtype)
        (uncond, cond), channels = outputs.chunk(2), x.shape[1]
        scale = expand(torch.where(inside, self.scale, 1.0), x)
        means = torch.lerp(uncond[:, :channels], cond[:, :channels], scale)
        return torch.cat([means, cond[:, channels:]], dim=1)


def at(model: Model, t: int) -> Model:
    """The network to evaluate at t: whether it is guided is decided here, on the host."""
    return model.at(t) if isinstance(model, Guided) else model
