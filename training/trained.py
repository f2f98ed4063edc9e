"""A trained model, from a checkpoint: what ``sample.load`` returns, and its parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from config import Config, ConfigError, SampleConfig, check_range
from data.class_names import match_classes
from diffusion import DiffusionModel, Sampler, generate
from models import PowerEMA
from training import edits
from training.build import build, check_sampling, restore_value_prior
from training.checks import check_classes, checked, count, integer
from utils import checkpoint, exported
from utils.checkpoint import CheckpointError
from utils.devices import pick_device, tune
from utils.seeding import image_noise

RUN_ROOT = Path("Logs_Checkpoints")
NUM = 100  # samples by default
Draw = Callable[..., list[Tensor]]  # called as diffusion.generate is


@dataclass(frozen=True, repr=False)
class TrainedModel(DiffusionModel):
    """The EMA weights of a checkpoint with their process and configuration; see ``load``."""

    config: Config
    path: Path
    step: int  # of training
    class_names: tuple[str, ...]  # of the labels 0 ... K - 1; none for an unconditional network

    @property
    def device(self) -> torch.device:
        return self.diffusion.device

    @property
    def classes(self) -> tuple[int, ...]:
        """The class labels 0 ... K - 1; empty for an unconditional network."""
        return tuple(range(self.num_classes))

    def sample(
        self,
        num: int | None = None,
        classes: Sequence[int | str] | None = None,
        *,
        seed: int = 0,
        start: int | None = None,
        x: Tensor | None = None,
        batch_size: int = 100,
        **settings: Any,
    ) -> Tensor:
        """Sample x_0 (num, C, H, W) in [-1, 1], on the CPU: the images that sample.py draws.

        num, batch_size: 1 ... 10^7; num is by default the number of x, else of classes, else 100.
        classes: labels or class names, repeated cyclically up to num; default: all. settings
        override fields of config.SampleConfig (steps, sampler, guidance, ...); the others come from
        the checkpoint. x (num, C, H, W) float: a noisy image at t = start (default T) to begin
        with, instead of noise at T. Raises ConfigError for invalid values.
        """
        if start is not None and x is None:
            raise ConfigError("start needs x, a noisy image at t = start: model.noise(x_0, start)")
        check_classes(classes)
        if num is None:
            num = len(x) if x is not None else len(classes) if classes is not None else NUM
        count("num", num)
        if x is not None:
            x = self.images("x", x, num)
        if start is not None:
            start = self.timesteps("start", start, 1).item()
        sampler = self.sampler(settings, start=start)
        labels = repeat_labels(classes, num, self.class_names)
        return self.draw(sampler, num, labels, seed, batch_size, start=start, x=x)

    def sampler(
        self,
        settings: Mapping[str, Any],
        defaults: Mapping[str, Any] = MappingProxyType({}),
        start: int | None = None,
    ) -> Sampler:
        """Of the settings, fields of SampleConfig; the others are the defaults, or the model's.

        Steps that are not among the settings are at most those there are from start (default T).
        Raises ConfigError for invalid settings.
        """
        if unknown := settings.keys() - {f.name for f in fields(SampleConfig)}:
            raise ConfigError(f"unknown sampling setting: {', '.join(sorted(unknown))}")
        typed = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        config = self.config.override(**{**defaults, **typed})
        if "steps" not in typed:  # as train.py caps the default
            most = self.diffusion.count_trained(start or self.diffusion.timesteps)
            config = config.override(steps=max(1, min(config.sample.steps, most)))
        config.check()
        config.check_sampling(typed)
        check_x0_error(config, self.path, self.config.sample.clip, self.x0_error)
        return Sampler(**asdict(config.sample))

    def draw(
        self,
        sampler: Sampler,
        num: int,
        labels: Tensor | None,
        seed: int,
        batch_size: int,
        by: Draw = generate,
        of: DiffusionModel | None = None,
        **options: Any,
    ) -> Tensor:
        """The last states (num, C, H, W) of the sampler's process, from another model if given.

        by: ``generate``, or what also shows or keeps the states. Raises ConfigError.
        """
        count("batch_size", batch_size)
        check_range("seed", integer("seed", seed), 0, 2**63 - 1)
        options |= {"seed": seed, "batch_size": batch_size}
        drawing = partial(by, of or self, sampler, range(num), labels, **options)
        return checked(drawing)[-1]  # a start or steps that the process does not have

    @torch.no_grad()
    def denoise(
        self, x_t: Tensor, t: Tensor | int, classes: Sequence[int | str] | None = None
    ) -> Tensor:
        """x̂_0 (N, C, H, W), the estimate of x_0 in x_t (N, C, H, W).

        t in 1 ... T: an int or (N,) int. classes: labels or class names, repeated cyclically up
        to N; None: unconditional. Clamped to [-1, 1] if config.sample.clip. Raises ConfigError.
        """
        x = self.images("x_t", x_t, len(x_t)).to(self.device)
        t = self.timesteps("t", t, len(x))
        labels = self.labels(classes, len(x))
        labels = labels if labels is None else labels.to(self.device)
        network, clip = self.network, self.config.sample.clip
        x_0 = self.diffusion.denoise(lambda x, t: network(x, t, labels), x, t, clip)
        return x_0.to(x_t.device)

    def noise(self, x_0: Tensor, t: Tensor | int, seed: int = 0) -> Tensor:
        """x_t ~ q(x_t | x_0) (Eq. 4), (N, C, H, W); t in 1 ... T: an int or (N,) int.

        The noise is keyed by the seed; it is never that from which ``sample`` starts. Raises
        ConfigError.
        """
        x = self.images("x_0", x_0, len(x_0)).to(self.device)
        t = self.timesteps("t", t, len(x))
        noise = image_noise(seed, range(len(x)), self.image_shape, self.device, "q_sample")()
        return self.diffusion.q_sample(x, t, noise).to(x_0.device)

    def labels(self, classes: Sequence[int | str] | None, num: int) -> Tensor | None:
        """Labels or class names, repeated cyclically up to num; None: unconditional."""
        check_classes(classes)
        return None if classes is None else repeat_labels(classes, num, self.class_names)

    # The verbs of edit.py.
    vary = edits.vary
    reconstruct = edits.reconstruct
    interpolate = edits.interpolate
    inpaint = edits.inpaint
    add_noise = edits.add_noise
    remove_noise = edits.remove_noise
    classify = edits.classify

    def images(self, name: str, x: Tensor, num: int) -> Tensor:
        """x as float32 (num, C, H, W). ConfigError for another shape or type, or no image."""
        shape = (num, *self.image_shape)
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape != shape or not num:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ConfigError(f"{name} must be a float tensor {shape}, got {found}")
        return x.float()

    def timesteps(self, name: str, t: Tensor | int, num: int) -> Tensor:
        """t as (num,) int64 on the device. ConfigError outside 1 ... T."""
        t = torch.as_tensor(t, device=self.device)
        if t.is_floating_point() or t.dtype == torch.bool or t.shape not in ((), (num,)):
            raise ConfigError(f"{name} must be one integer or {num} of them, got {t.tolist()}")
        if not ((t >= 1) & (t <= self.diffusion.timesteps)).all():
            raise ConfigError(f"{name} must lie in 1..{self.diffusion.timesteps}, got {t.tolist()}")
        return t.long().expand(num)

    def __repr__(self) -> str:
        return f"TrainedModel({self.path}, step {self.step}, {self.image_shape}, {self.device})"


def load(
    where: str | Path = "latest", run_root: str | Path = RUN_ROOT, device: str = "auto"
) -> TrainedModel:
    """The model of a checkpoint, a version folder, a run's name, ``latest``, or an exported folder.

    run_root: where names are looked up. device: auto, cpu, cuda, cuda:N or mps. Raises
    CheckpointError, RunNameError, ConfigError, DeviceError: all are InputError.
    """
    chosen = pick_device(str(device))
    tune(chosen)
    return open_checkpoint(where, run_root, {}).model(chosen)


@dataclass(frozen=True)
class OpenCheckpoint:
    """A verified checkpoint or exported model, its configuration with the typed overrides."""

    path: Path
    content: dict[str, Any]  # without network and optimizer; "ema" until model() takes it out
    config: Config

    @property
    def x0_error(self) -> Tensor | None:
        """The network's errors of x_0, for --variance optimal; None unless measured with --clip."""
        same = self.config.sample.clip == self.content["config"]["sample"]["clip"]
        return self.content.get("x0_error") if same else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the network's labels; checkpoints of earlier releases have numbers alone."""
        numbers = map(str, range(self.config.model.num_classes))
        names = self.content.get("data", {}).get("class_names") or numbers
        return tuple(names) if self.config.model.num_classes else ()

    def model(self, device: torch.device) -> TrainedModel:
        """The EMA network and the process, once: the weights are taken out of the content.

        Raises ConfigError, CheckpointError.
        """
        c, weights = self.config, self.content.pop("ema")
        network, diffusion = build(c)
        restore_value_prior(self.path, self.content, diffusion)
        ema = PowerEMA(network, c.train.ema_power, c.train.ema_decay)
        checkpoint.check_fits(self.path, "ema", weights, ema.state_dict())
        ema.load_state_dict(weights)
        return TrainedModel(
            ema.to(device, memory_format=torch.channels_last),
            diffusion.to(device),
            c.image_shape,
            c.model.num_classes,
            self.x0_error,
            c,
            self.path,
            self.content["step"],
            self.class_names,
        )


def open_checkpoint(
    where: str | Path, run_root: str | Path, typed: dict[str, Any]
) -> OpenCheckpoint:
    """Load a checkpoint or exported model, apply overrides. Raises CheckpointError, ConfigError."""
    path = checkpoint.find(where, Path(run_root))
    content = exported.load(path, checkpoint.SAMPLING)
    for part in checkpoint.TRAINING:  # most of its memory
        content.pop(part, None)
    config = Config.from_dict(content["config"]).override(**typed)
    config.check()
    check_sampling(config, typed)
    if path.name == checkpoint.EXPORTED:  # nothing says that this program made it
        check_exported(path, content, config)
    return OpenCheckpoint(path, content, config)


def check_exported(path: Path, content: Mapping[str, Any], config: Config) -> None:
    """CheckpointError unless the tensors fit the configuration, for which nothing is allocated.

    The weights get the order that they have in a checkpoint: the same weights, the same digest.
    """
    m, weights = config.model, content["ema"]
    if len(m.channel_multipliers) * m.blocks_per_level > len(weights):  # and takes minutes to build
        raise CheckpointError(f"{path} does not fit its configuration: it has too few weights")
    network, diffusion = build(config, "meta")
    expected = PowerEMA(network, 0, 0).state_dict()
    checkpoint.check_fits(path, "ema", weights, expected)
    content["ema"] = {name: weights[name] for name in expected}
    if (error := content["x0_error"]) is not None:
        like = torch.zeros_like(diffusion.alpha_bar)
        checkpoint.check_fits(path, "process", {"x0_error": error}, {"x0_error": like})
    names = len(content.get("data", {}).get("class_names", []))
    if names != m.num_classes or 0 in config.image_shape:
        raise CheckpointError(f"{path} does not fit its configuration: {names} class names")


def repeat_labels(
    classes: Sequence[int | str] | None, num: int, class_names: Sequence[str]
) -> Tensor | None:
    """Labels (num,) int64: ``classes`` (labels or names) repeated cyclically; None: all of them.

    Returns None for an unconditional network, which has no class names. Raises InputError for
    unknown classes, for more labels than images, and for any beside an unconditional network.
    """
    num_classes = len(class_names)
    if num_classes == 0:
        if classes is not None:
            raise ConfigError("--classes has no effect: the network was trained without classes")
        return None
    if classes is None:
        return torch.arange(num) % num_classes
    check_classes(classes)
    labels = []
    for y in classes:
        labels += match_classes([y], class_names) if isinstance(y, str) else [integer("a class", y)]
    if not labels or any(not 0 <= y < num_classes for y in labels):
        raise ConfigError(f"--classes must lie in 0..{num_classes - 1}, got {labels}")
    if len(labels) > num:
        raise ConfigError(f"{len(labels)} classes do not fit into {num} images: raise --num")
    return torch.tensor(labels)[torch.arange(num) % len(labels)]


def check_x0_error(config: Config, path: Path, clip: bool, x0_error: Tensor | None) -> None:
    """ConfigError if --variance optimal lacks the network's errors of x_0, measured with --clip."""
    sample = config.sample
    if sample.variance == "optimal" and (x0_error is None or sample.clip != clip):
        raise ConfigError(
            f"{path} lacks the network's errors of x_0 for this --clip, from which --variance "
            "optimal is computed: only the checkpoint of a run's last step has them, for the run's "
            "own --clip; use --variance posterior (evaluate.py measures them itself)"
        )
