"""Real images changed with a trained model: the methods of TrainedModel that edit.py has as verbs.

Images are float tensors (N, C, H, W) in [-1, 1], results as well, on the CPU. ``classes``: labels
or class names, repeated cyclically; None: unconditional. ``settings`` are the fields of
config.SampleConfig, by default the checkpoint's, but for what DEFAULTS has. ``draw``: as
diffusion.generate, or what also shows the states. All raise ConfigError for invalid values.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from config import ConfigError
from diffusion import DiffusionModel, Sampler, classify_images, generate
from diffusion.editing import (
    Blend,
    Inpainting,
    Inversion,
    Repaint,
    is_deterministic,
    noise_level,
    slerp,
    start_of,
)
from diffusion.generate import ignore
from training.checks import checked, count
from utils.seeding import image_noise

if TYPE_CHECKING:  # which imports this module
    from training.trained import TrainedModel

Draw = Callable[..., list[Tensor]]
Classes = Sequence[int | str] | None
# Settings of a verb that differ from the checkpoint's. Inversion goes along the ODE, and guidance
# would multiply its error.
INVERTIBLE = {"sampler": "ddim", "steps": 100, "eta": 0.0, "guidance": 1.0}
INVERTIBLE |= {"restart": 0, "churn": 0.0}
DEFAULTS = MappingProxyType(
    {
        "vary": {},
        "reconstruct": INVERTIBLE,
        "interpolate": INVERTIBLE,
        "inpaint": {"steps": 50, "spacing": "log-snr", "restart": 0, "churn": 0.0},
        "denoise": {},
    }
)


def vary(
    self: "TrainedModel",
    x_0: Tensor,
    strength: float = 0.6,
    classes: Classes = None,
    *,
    num: int = 1,
    seed: int = 0,
    batch_size: int = 100,
    draw: Draw = generate,
    **settings: Any,
) -> Tensor:
    """New images near given ones (SDEdit, Meng et al. 2022): noised to t = strength T, and back.

    Each of the N images num times in a row: (N num, C, H, W). strength in (0, 1]: the higher, the
    more is changed.
    """
    x = self.images("x_0", x_0, len(x_0)).repeat_interleave(count("num", num), dim=0)
    start = checked(start_of, self.diffusion, strength)
    sampler = self.sampler(settings, DEFAULTS["vary"], start)
    labels = self.labels(classes, len(x))
    options = {"start": start, "x": self.noise(x, start, seed)}
    return self.draw(sampler, len(x), labels, seed, batch_size, draw, **options)


def reconstruct(
    self: "TrainedModel",
    x_0: Tensor,
    classes: Classes = None,
    *,
    batch_size: int = 100,
    draw: Draw = generate,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """The images that inversion and sampling lead back to, and the x_T in between; see ``invert``.

    Steps are by default 100, of ddim, without guidance.
    """
    x_0 = self.images("x_0", x_0, len(x_0))
    sampler = invertible(self, settings, "reconstruct")
    labels = self.labels(classes, len(x_0))
    x_T = inverted(self, x_0, sampler, labels, batch_size, draw)
    return self.draw(sampler, len(x_0), labels, 0, batch_size, draw, x=x_T), x_T


def interpolate(
    self: "TrainedModel",
    a: Tensor | None,
    b: Tensor | None,
    num: int = 9,
    classes: Classes = None,
    *,
    seed: int = 0,
    batch_size: int = 100,
    draw: Draw = generate,
    **settings: Any,
) -> Tensor:
    """num images from a to b, (num, C, H, W): slerp of the x_T that they are inverted to.

    a, b (1, C, H, W); None: of the x_T from which ``sample`` draws image 0 or 1 with this seed.
    classes: that of a and that of b, or one for both; between two of them see ``Blend``. Settings
    as of ``reconstruct``.
    """
    count("num", num, least=2)
    sampler = invertible(self, settings, "interpolate")
    ends = self.labels(classes, 2)
    x_T = image_noise(seed, range(2), self.image_shape, torch.device("cpu"))()
    for i, image in enumerate((a, b)):
        if image is not None:
            x_0 = self.images("ab"[i], image, 1)
            own = None if ends is None else ends[i : i + 1]
            x_T[i] = inverted(self, x_0, sampler, own, batch_size, draw)[0]
    weights = torch.linspace(0, 1, num)
    labels, of = None, None
    if ends is not None:
        labels, of = torch.arange(num), Blend(*basis_of(self), *ends.expand(num, 2).T, weights)
    x = slerp(*x_T, weights)
    return self.draw(sampler, num, labels, seed, batch_size, draw, of, x=x)


def inpaint(
    self: "TrainedModel",
    x_0: Tensor,
    mask: Tensor,
    classes: Classes = None,
    *,
    num: int = 1,
    jump: int = 5,
    resample: int = 10,
    seed: int = 0,
    batch_size: int = 100,
    draw: Draw = generate,
    **settings: Any,
) -> Tensor:
    """Each of the N images num times in a row, (N num, C, H, W), anew where mask is True.

    RePaint (Lugmayr et al. 2022). mask bool (H, W) or (N, 1, H, W); all else stays x_0 exactly.
    jump, resample: how many steps are repeated together, and how often each is taken; resample = 1:
    without. Steps are by default 50, even in log-SNR.
    """
    x_0 = self.images("x_0", x_0, len(x_0))
    shape = (len(x_0), 1, *self.image_shape[1:])
    if mask.dtype != torch.bool or mask.shape not in (shape, shape[2:]):
        found = f"{mask.dtype} {tuple(mask.shape)}"
        raise ConfigError(f"mask must be bool {shape[2:]} or {shape}, got {found}")
    sampler = self.sampler(settings, DEFAULTS["inpaint"])
    repaint = Repaint(**vars(sampler), jump=jump, resample=resample)
    times = count("num", num)
    parts = (x_0, mask.expand(shape))
    rows = (part.cpu().repeat_interleave(times, dim=0) for part in parts)
    of, total = Inpainting(*basis_of(self), *rows), len(x_0) * times
    return self.draw(repaint, total, self.labels(classes, total), seed, batch_size, draw, of)


def remove_noise(
    self: "TrainedModel",
    y: Tensor,
    sigma: float,
    classes: Classes = None,
    *,
    seed: int = 0,
    batch_size: int = 100,
    draw: Draw = generate,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """The clean images in y = x_0 + sigma noise, (N, C, H, W): E[x_0 | y], and drawn given y.

    y is x_t / sqrt(alpha_bar_t) at the t of this sigma; its pixels may lie outside of [-1, 1]. The
    first is one network evaluation and has the least squared error, the second has the detail.
    """
    y = self.images("y", y, len(y))
    t = checked(noise_level, self.diffusion, sigma)
    sampler = self.sampler(settings, DEFAULTS["denoise"], t)
    labels = self.labels(classes, len(y))
    x_t = self.diffusion.scales(t, y)[0].to(y.device) * y
    (estimate, drawn) = (
        self.draw(own, len(y), labels, seed, batch_size, draw, start=t, x=x_t)
        for own in (one_step(sampler), sampler)
    )
    return estimate, drawn


def add_noise(self: "TrainedModel", x_0: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """x_0 + sigma noise, (N, C, H, W), for ``remove_noise``; that of image i is of (seed, i)."""
    x_0 = self.images("x_0", x_0, len(x_0))
    noise = image_noise(seed, range(len(x_0)), self.image_shape, torch.device("cpu"), "add noise")
    return x_0 + sigma * noise().to(x_0.device)


def classify(
    self: "TrainedModel",
    x_0: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 100,
    progress: Callable[[int], object] = ignore,
) -> tuple[Tensor, Tensor]:
    """Labels (N,) of the classes with the lowest bound, and the bounds (N, K); see classify_images.

    The bounds are in nats, without what all classes share. Raises ConfigError for a network
    without classes.
    """
    if not self.num_classes:
        raise ConfigError("the network was trained without classes")
    count("batch_size", batch_size)
    x_0, clip = self.images("x_0", x_0, len(x_0)), self.config.sample.clip
    options = {"seed": seed, "batch_size": batch_size, "clip": clip, "progress": progress}
    bounds = classify_images(self, x_0, **options)
    return bounds.argmin(1), bounds


def basis_of(model: "TrainedModel") -> tuple[Any, ...]:
    """The fields of its DiffusionModel."""
    return tuple(getattr(model, f.name) for f in fields(DiffusionModel))


def invertible(model: "TrainedModel", settings: dict[str, Any], verb: str) -> Sampler:
    """The sampler of a verb that inverts images. ConfigError where x_T does not decide x_0."""
    sampler = model.sampler(settings, DEFAULTS[verb])
    if not is_deterministic(sampler):
        raise ConfigError(
            f"{verb} needs a sampler that draws no noise: ddim, heun, dpmpp or unipc, with --eta "
            "0, without --restart and --churn"
        )
    return sampler


def inverted(
    model: "TrainedModel",
    x_0: Tensor,
    sampler: Sampler,
    labels: Tensor | None,
    batch_size: int,
    draw: Draw,
) -> Tensor:
    """x_T of x_0 (N, C, H, W)."""
    return model.draw(Inversion(**vars(sampler)), len(x_0), labels, 0, batch_size, draw, x=x_0)


def one_step(sampler: Sampler) -> Sampler:
    """From x_t to the estimate of x_0, at once."""
    return Sampler("ddim", 1, clip=sampler.clip)
