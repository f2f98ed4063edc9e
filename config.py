"""Every choice a run can make, as frozen dataclasses, and the command line made from them.

One section per package; a section's fields are exactly the keyword arguments of what it
configures, so that a checkpoint which stores ``asdict(config)`` can rebuild all of it.
"""

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn, Self, get_args, get_origin, get_type_hints


class ConfigError(Exception):
    """A setting that cannot work; one line: what was wrong and what to do."""


def option(
    default: Any, help: str, least: float = -math.inf, most: float = math.inf, typed: bool = True
) -> Any:
    """A field whose help is both its comment and its --help line, with the range it accepts.

    typed: whether it has a flag; what follows from the data has none.
    """
    metadata = {"help": help, "least": least, "most": most, "typed": typed}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """Keyword arguments of data.load."""

    dataset: str = option("mnist", "what to learn")
    data_root: str = option("datasets", "folder that holds, or receives, the images")
    image_size: int = option(0, "side in pixels, small ones are padded; 0: the set's", 0, 4096)


@dataclass(frozen=True)
class ModelConfig:
    """Keyword arguments of models.UNet."""

    image_channels: int = option(1, "as the data set has", 1, 4, typed=False)
    base_channels: int = option(32, "channels of the finest level", 4, 4096)
    channel_multipliers: tuple[int, ...] = option((1, 2), "width of levels / base channels", 1, 64)
    blocks_per_level: int = option(1, "residual blocks of a level down, one more up", 1, 12)
    attention_levels: tuple[int, ...] = option((1,), "with attention, or none; 0: finest", 0)
    heads: int = option(4, "attention heads", 1, 4096)
    emb_channels: int = option(128, "width of the time and class embedding", 1, 2**16)
    patch_size: int = option(2, "pixel-unshuffle before the first level; 1: none", 1, 64)
    norm: str = option("layer", "normalization: layer (fast on CPU) or group (the original's)")
    dropout: float = option(0.0, "dropout inside residual blocks", 0, 0.99)
    num_classes: int = option(-1, "classes to condition on; 0: none, -1: all there are", -1, 10**5)


@dataclass(frozen=True)
class DiffusionConfig:
    """Keyword arguments of diffusion.make_alphas (the first three) and GaussianDiffusion."""

    schedule: str = option("cosine", "noise schedule; manual takes --alphas")
    timesteps: int = option(1000, "T, the number of diffusion steps", 2, 10**5)
    alphas: tuple[float, ...] = option((), "alpha_1 ... alpha_T by hand, or @FILE of one a line", 0)
    prediction: str = option("v", "what the network predicts: the clean image, the noise, or v")
    precondition: bool = option(True, "x0: read it as a x_t + b F; --no-precondition: F itself")
    loss: str = option("simple", "weight on t: the bound's (kl), none (simple), or min-snr")
    first_timestep: int = option(1, "smallest t that is trained and sampled; 2: let x_1 = x_0", 1)

    @property
    def most_steps(self) -> int:
        """Steps of the slowest sampler: one for every t that is trained."""
        return self.timesteps - self.first_timestep + 1


@dataclass(frozen=True)
class TrainConfig:
    """How train.py optimizes."""

    epochs: int = option(30, "passes over the training set; 0: as --max-steps/-minutes allow", 0)
    batch_size: int = option(32, "images per step", 1)
    optimizer: str = option("muon", "muon: Muon on convolutions at 10 x lr, AdamW on the rest")
    lr: float = option(7e-4, "peak learning rate", 1e-12, 1e3)
    warmup_steps: int = option(100, "steps in which the learning rate rises", 0)
    decay: str = option("linear", "how the learning rate falls over the whole run")
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW", 0, 1e3)
    grad_clip: float = option(1.0, "largest norm of the gradient", 1e-12)
    ema_power: float = option(13.0, "exponent of the power-function average of the weights", 0, 1e6)
    ema_decay: float = option(0.9999, "upper bound of the average's decay; 0: no averaging", 0, 1)
    label_drop: float = option(0.1, "share of the labels dropped, for guidance", 0, 1)
    precision: str = option("auto", "bf16 autocast, or fp32 (on CUDA TF32); auto: by hardware")
    seed: int = option(0, "of weights, order, t and noise", 0, 2**63 - 1)
    max_steps: int = option(0, "end after this many steps, learning rate and all; 0: no limit", 0)
    max_minutes: float = option(0.0, "fit the run into about these minutes; 0: no limit", 0, 1e6)
    grad_accum: int = option(1, "passes in which a step takes its batch, to save memory", 1)
    checkpoint_activations: bool = option(False, "compute the blocks twice, to save memory")
    compile: str = option("auto", "torch.compile; auto: on CUDA, for a run long enough to pay")
    save_minutes: float = option(5.0, "minutes between checkpoints within an epoch", 0, 1e6)


@dataclass(frozen=True)
class SampleConfig:
    """How train.py draws its previews and sample.py its images."""

    sampler: str = option("ddpm", "reverse process")
    steps: int = option(12, "steps of the sampler; guided ones take two evaluations", 1)
    variance: str = option("posterior", "sigma^2 of ddpm: posterior, beta, or the bound's optimal")
    eta: float = option(0.0, "noise of ddim; 0: deterministic, 1: ancestral", 0, 1)
    clip: bool = option(True, "clip the predicted clean image to [-1, 1]")
    guidance: float = option(1.2, "classifier-free guidance; 1: conditional, no guidance", 0, 1e3)
    guidance_interval: tuple[float, ...] = option((0.3, 0.8), "from and to which t / T", 0, 1)


@dataclass(frozen=True)
class Config:
    """A complete run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    @classmethod
    def from_dict(cls, sections: Mapping[str, Mapping[str, Any]]) -> Self:
        """Inverse of dataclasses.asdict. Raises ConfigError for fields this release lacks."""
        try:
            return cls(
                **{name: kind(**sections[name]) for name, kind in get_type_hints(cls).items()}
            )
        except (TypeError, KeyError) as e:
            raise ConfigError(f"the stored configuration does not fit this program: {e}") from e

    def override(self, **values: Any) -> Self:
        """A copy with the named fields, of whichever section owns them, replaced."""
        sections = {}
        for name in get_type_hints(type(self)):
            section = getattr(self, name)
            own = {f.name: values.pop(f.name) for f in fields(section) if f.name in values}
            sections[name] = replace(section, **own)
        if values:
            raise ConfigError(f"no section has a field named {', '.join(sorted(values))}")
        return replace(self, **sections)

    def check(self, choices: Mapping[str, Collection[str]]) -> None:
        """ConfigError for the first value of a wrong type, outside its range, or no choice."""
        for name in get_type_hints(type(self)):
            section = getattr(self, name)
            types = get_type_hints(type(section))
            for f in fields(section):
                value = getattr(section, f.name)
                if not is_of(value, types[f.name]):
                    raise ConfigError(f"{flag(f.name)} must not be {value!r}")
                check_range(flag(f.name), value, **bounds(f.metadata))
                if value not in choices.get(f.name, [value]):
                    known = ", ".join(sorted(choices[f.name]))
                    raise ConfigError(f"{flag(f.name)} must be one of {known}, got {value!r}")

    def check_sampling(self, typed: Collection[str], own_options: Collection[str]) -> None:
        """ConfigError for too many steps, and for typed options the sampler does not have."""
        s = self.sample
        check_range("--steps", s.steps, 1, self.diffusion.most_steps)
        for name in ("eta", "variance"):
            if name in typed and name not in own_options:
                raise ConfigError(f"{flag(name)} has no effect on --sampler {s.sampler}")
        if "guidance" in typed and self.model.num_classes == 0:
            raise ConfigError("--guidance has no effect on a network without classes")
        if self.train.label_drop == 0 and s.guidance != 1 and self.model.num_classes:
            raise ConfigError("--label-drop 0 needs --guidance 1: no label, no guidance is learnt")
        if "guidance_interval" in typed and s.guidance == 1:
            raise ConfigError("--guidance-interval has no effect on --guidance 1")
        if len(s.guidance_interval) != 2 or s.guidance_interval[0] > s.guidance_interval[1]:
            raise ConfigError("--guidance-interval takes two numbers, from and to, like 0.2 0.8")

    @property
    def guided_times(self) -> tuple[float, float]:
        """The t from and to which guidance applies."""
        T, (first, last) = self.diffusion.timesteps, self.sample.guidance_interval
        return first * T, last * T


def is_of(value: Any, kind: Any) -> bool:
    """Whether a stored value is what a field of this type holds; a bool is no number."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(is_of(item, get_args(kind)[0]) for item in value)
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def bounds(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The range of a field, as check_range takes it."""
    return {"least": metadata["least"], "most": metadata["most"]}


def check_range(name: str, value: Any, least: float, most: float) -> None:
    """ConfigError unless every number in the value is finite and within least ... most."""
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, str | bool):
            continue
        if not (math.isfinite(number) and least <= number <= most):
            limit = f"at least {least:g}" if most == math.inf else f"in {least:g} ... {most:g}"
            raise ConfigError(f"{name} must be {limit}, got {number}")


# What a row gives was measured with `python train.py --preset NAME`; see the README for hardware.
PRESETS: dict[str, Config] = {
    # 0.76 M parameters; with --max-minutes 5: 3,736 steps, held-out loss 0.1070; scores in README.
    "mnist": Config(),
    # The original's network, process and optimizer; 57.8 M parameters.
    "original": Config().override(
        image_size=32,
        base_channels=64,
        channel_multipliers=(1, 2, 4, 8),
        blocks_per_level=2,
        attention_levels=(2,),
        patch_size=1,
        norm="group",
        dropout=0.1,
        num_classes=0,
        schedule="linear",
        prediction="x0",
        precondition=False,
        loss="kl",
        first_timestep=2,
        batch_size=128,
        optimizer="adamw",
        lr=2e-4,
        decay="constant",
        weight_decay=0.01,
        ema_decay=0.999,
        steps=50,
    ),
    # The widths of Ho et al. (2020), App. B, with heads and classes.
    "cifar10": Config().override(
        dataset="cifar10",
        image_channels=3,
        base_channels=128,
        channel_multipliers=(1, 2, 2, 2),
        blocks_per_level=2,
        attention_levels=(1,),
        emb_channels=512,
        patch_size=1,
        norm="group",
        dropout=0.1,
        epochs=500,
        batch_size=128,
        optimizer="adamw",
        lr=2e-4,
        warmup_steps=5000,
        steps=50,
        guidance=1.0,
    ),
    # Seconds on a laptop, no files needed: does everything once, learns little.
    "smoke": Config().override(
        dataset="digits",
        base_channels=8,
        attention_levels=(1,),
        emb_channels=16,
        timesteps=50,
        epochs=1,
        max_steps=30,
        lr=2e-3,
        warmup_steps=5,
        steps=5,
    ),
}


class Parser(argparse.ArgumentParser):
    """One line and exit code 2 for bad input; no abbreviations; @FILE reads arguments."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            fromfile_prefix_chars="@",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def add_options(
    parser: argparse.ArgumentParser,
    sections: Sequence[object],
    choices: Mapping[str, Collection[str]],
) -> None:
    """One flag per field; --help shows the sections' values; untyped flags leave no trace."""
    for section in sections:
        group = parser.add_argument_group(type(section).__name__.removesuffix("Config").lower())
        types = get_type_hints(type(section))
        for f in (f for f in fields(section) if f.metadata["typed"]):
            default = getattr(section, f.name)
            group.add_argument(
                flag(f.name),
                default=argparse.SUPPRESS,
                help=f"{f.metadata['help']} [{default}]".replace("%", "%%"),
                **argument(types[f.name], choices.get(f.name)),
            )


def argument(kind: Any, choices: Collection[str] | None) -> dict[str, Any]:
    """The argparse keywords for a field of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return {"type": get_args(kind)[0], "nargs": "*", "action": StoreTuple, "metavar": "N"}
    if choices:
        return {"choices": sorted(choices)}
    return {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}


class StoreTuple(argparse.Action):
    """Several values as a tuple, which is what the dataclass holds."""

    def __call__(self, _parser, namespace, values, _option=None) -> None:
        setattr(namespace, self.dest, tuple(values))
