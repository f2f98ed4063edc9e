"""All settings of a run as frozen dataclasses, and the command line made from them.

One section per package. All but TrainConfig hold exactly the keyword arguments of what they
configure, so that a checkpoint which stores ``asdict(config)`` can rebuild all of it.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, get_args, get_origin, get_type_hints

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out

from utils.errors import InputError


class ConfigError(InputError):
    """An invalid setting; one line: what was wrong and what to do."""


@dataclass(frozen=True)
class Spelling:
    """How the values of an option are typed, where not as numbers or words; show inverts parse.

    parse raises ArgumentTypeError.
    """

    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    metavar: str


def parse_size(text: str) -> tuple[int, int]:
    """``64`` or ``64x96`` as (height, width) in pixels."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"takes 64 or 64x96 (height x width), got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def show_size(size: tuple[int, int]) -> str:
    """The inverse of parse_size."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def parse_channels(text: str) -> int:
    """``auto`` is 0."""
    if text not in ("auto", "1", "3", "4"):
        raise argparse.ArgumentTypeError(f"takes auto, 1, 3 or 4, got {text!r}")
    return 0 if text == "auto" else int(text)


SIZE = Spelling(parse_size, show_size, "HxW")


def parse_auto(text: str) -> int:
    """``auto`` is 0."""
    return 0 if text == "auto" else parse_count(text, "auto")


def parse_all(text: str) -> int:
    """``all`` is 0."""
    return 0 if text == "all" else parse_count(text, "all")


def parse_count(text: str, word: str) -> int:
    """A number from 1 on; the word is what else is taken."""
    if not re.fullmatch(r"\d{1,18}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"takes {word} or a number from 1 on, got {text!r}")
    return int(text)


CHANNELS = Spelling(parse_channels, lambda n: str(n or "auto"), "auto|1|3|4")
AUTO = Spelling(parse_auto, lambda n: str(n or "auto"), "auto|N")
ALL = Spelling(parse_all, lambda n: str(n or "all"), "all|N")
NAMES = Spelling(lambda text: tuple(text.split(",")) if text else (), ",".join, "NAME,...")


LARGEST = 10**9  # whole number of a setting that has no range of its own


def option(
    default: Any,
    help: str,
    least: float = -math.inf,
    most: float = math.inf,
    samplers: tuple[str, ...] = (),
    spelling: Spelling | None = None,
) -> Any:
    """A field whose help is both its comment and its --help line, with the range it accepts.

    samplers: those that the option belongs to; none: all. A whole number without ``most`` has
    LARGEST.
    """
    if isinstance(default, int) and most == math.inf:
        most = LARGEST
    metadata = {"help": help, "least": least, "most": most}
    return field(default=default, metadata=metadata | {"samplers": samplers, "spelling": spelling})


# Choices stand as Literal types beside their fields; a test compares them with the registries.


@dataclass(frozen=True)
class DataConfig:
    """Keyword arguments of data.DataOptions, which also takes the model's image_channels."""

    dataset: Literal[
        "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "flowers102", "folder", "digits"
    ] = option("mnist", "data set; folder: your own images at --data-root; digits: drawn by code")
    data_root: str = option(
        "datasets", "folder that holds, or receives, the images; folder: also a .zip, .npz or .npy"
    )
    image_size: tuple[int, int] = option(
        (0, 0),
        "pixels, 64 or 64x96 (height x width); 0: the data set's own",
        0,
        4096,
        spelling=SIZE,
    )
    fit: Literal["crop", "pad", "stretch"] = option(
        "crop", "own images: how they are brought to --image-size"
    )
    background: str = option("white", "own images: the colour under what is transparent")
    classes: tuple[str, ...] = option(
        (), "train on these classes alone, like 3,8 or cat,dog; none: on all", spelling=NAMES
    )
    skip_damaged: bool = option(False, "own images: leave out files that cannot be read")


@dataclass(frozen=True)
class ModelConfig:
    """Keyword arguments of models.UNet."""

    image_channels: Literal[0, 1, 3, 4] = option(
        0, "auto: 1 if all images are grey, else 3; 4: keep transparency", spelling=CHANNELS
    )
    base_channels: int = option(32, "channels of the finest level", 4, 4096)
    channel_multipliers: tuple[int, ...] = option(
        (1, 2), "channels of each level, finest first, as multiples of the base channels", 1, 64
    )
    blocks_per_level: int = option(1, "residual blocks per level (one more in the decoder)", 1, 12)
    attention_levels: tuple[int, ...] = option(
        (1,), "levels with self-attention, 0 is the finest; the bottleneck always has it", 0
    )
    heads: int = option(4, "attention heads", 1, 4096)
    emb_channels: int = option(128, "width of the time and class embedding", 1, 2**16)
    patch_size: int = option(2, "pixel-unshuffle before the first level; 1: none", 1, 64)
    norm: Literal["layer", "group"] = option(
        "layer", "normalization: layer (over channels, fast on a CPU) or group (Ho et al.)"
    )
    dropout: float = option(0.0, "dropout probability inside residual blocks", 0, 0.99)
    num_classes: int = option(
        -1, "classes to condition on; 0: unconditional, -1: all of the data set", -1, 10**5
    )

    @property
    def size_multiple(self) -> int:
        """Height and width of the images must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class DiffusionConfig:
    """Keyword arguments of diffusion.make_diffusion."""

    schedule: Literal["cosine", "linear", "sigmoid", "log-snr", "manual"] = option(
        "cosine", "noise schedule; log-snr takes --log-snr, manual --alphas"
    )
    timesteps: int = option(1000, "T, the number of diffusion steps", 2, 10**5)
    alphas: tuple[float, ...] = option(
        (), "alpha_1 ... alpha_T by hand, or @FILE with one per line", 0
    )
    prediction: Literal["v", "eps", "x0"] = option(
        "v", "parameterization of the network's output: v, the noise, or the clean image"
    )
    precondition: bool = option(
        True,
        "x0: the output F gives x_0 = sqrt(alpha_bar) x_t + sqrt(1 - alpha_bar) F (Karras et al. "
        "2022); --no-precondition: x_0 = F",
    )
    loss: Literal["simple", "kl", "min-snr"] = option(
        "simple", "weighting over t: none (simple), the variational bound's (kl), or min-SNR"
    )
    first_timestep: int = option(1, "smallest t that is trained and sampled; 2: let x_1 = x_0", 1)
    log_snr: tuple[float, ...] = option(
        (13.3, -5.0), "schedule log-snr: its first and last log signal-to-noise ratio", -50, 50
    )
    zero_terminal: bool = option(
        False, "shift and scale the schedule to alpha_bar_T = 0: x_T is noise alone"
    )
    discrete_pixels: bool = option(
        False, "x0: estimate x_0 as the posterior mean over the 256 values of a pixel"
    )
    learn_variance: bool = option(
        False, "the network also predicts the variance of the reverse process, of every pixel"
    )

    @property
    def most_steps(self) -> int:
        """Steps of the longest reverse process: one for every t that is trained."""
        return self.timesteps - self.first_timestep + 1


@dataclass(frozen=True)
class TrainConfig:
    """How train.py optimizes."""

    epochs: int = option(
        30, "epochs, of one pass or more; 0: limited by --max-steps or --max-minutes", 0
    )
    min_epoch_images: int = option(
        9600,
        "least images of an epoch: over a small training set it takes several passes",
        1,
        10**8,
    )
    batch_size: int = option(32, "images per step, over all ranks", 1, 10**7)
    flip: bool = option(False, "mirror every image, left to right, in half of its passes")
    init_from: str = option(
        "",
        "EMA weights to start from: checkpoint, version folder, name, latest; what fits is taken",
    )
    optimizer: Literal["muon", "adamw"] = option(
        "muon", "muon: Muon at 10 x lr on convolutions, AdamW on the rest; or adamw on everything"
    )
    lr: float = option(7e-4, "peak learning rate", 1e-12, 1e3)
    warmup_steps: int = option(
        100, "steps of linear warm-up of the learning rate, at most a tenth of the run", 0
    )
    decay: Literal["linear", "cosine", "constant"] = option(
        "linear", "learning-rate decay over the whole run"
    )
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW", 0, 1e3)
    grad_clip: float = option(1.0, "largest norm of the gradient", 1e-12)
    ema_power: float = option(13.0, "exponent of the power-function EMA of the weights", 0, 1e6)
    ema_decay: float = option(0.9999, "upper bound of the EMA's decay; 0: no EMA", 0, 1)
    importance_sampling: bool = option(
        False,
        "draw t in proportion to the running root mean square of its loss (Nichol & Dhariwal 2021, "
        "Eq. 18)",
    )
    label_drop: float = option(
        0.1, "probability of label dropout, for classifier-free guidance", 0, 1
    )
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "bf16 autocast, or fp32 (on CUDA TF32); auto: by hardware"
    )
    seed: int = option(0, "random seed of weights, order, t and noise", 0, 2**63 - 1)
    max_steps: int = option(0, "steps of the run and of its learning-rate schedule; 0: no limit", 0)
    max_minutes: float = option(
        0.0, "minutes from the first step on, to which the schedule is fitted; 0: no limit", 0, 1e6
    )
    grad_accum: int = option(1, "micro-batches per step (gradient accumulation)", 1, 10**7)
    checkpoint_activations: bool = option(
        False, "recompute activations in the backward pass, to save memory"
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "torch.compile; auto: on CUDA, for runs long enough to amortize it"
    )
    deterministic: bool = option(
        False, "kernels that give the same bits every time, as exact resume on CUDA needs; slower"
    )
    eval_every: int = option(
        0,
        "steps between validations, and one at the end; auto: for about 3 % of the time",
        0,
        spelling=AUTO,
    )
    score_every: int = option(
        0, "steps between scores of samples (Fréchet distance, precision, ...); 0: none", 0
    )
    score_images: int = option(1000, "samples that are scored", 16, 10**6)
    save_minutes: float = option(5.0, "minutes between checkpoints, at most", 0, 1e6)
    keep: int = option(2, "newest checkpoints to keep, beside the best", 0, spelling=ALL)
    keep_ema: bool = option(False, "also keep the EMA weights of every validation, a small file")


@dataclass(frozen=True)
class SampleConfig:
    """Keyword arguments of diffusion.Sampler: the previews of train.py, the images of sample.py."""

    sampler: Literal["ddpm", "ddim", "heun", "dpmpp", "unipc"] = option(
        "ddpm", "ancestral sampling, DDIM, Heun's method (EDM), DPM-Solver++(2M), or UniPC"
    )
    steps: int = option(
        12,
        "sampling steps; a guided step takes two network evaluations, one of heun twice as many",
        1,
    )
    spacing: Literal["t", "log-snr", "karras"] = option(
        "t", "timesteps of the steps: even in t, in log-SNR, or in sigma^(1/7) (Karras et al. 2022)"
    )
    variance: Literal["posterior", "beta", "optimal", "learned"] = option(
        "posterior",
        "sigma^2 of ddpm: posterior, beta, optimal for the bound, or the network's own (learned)",
        samplers=("ddpm",),
    )
    eta: float = option(
        0.0,
        "stochasticity of ddim and dpmpp; 0: deterministic, 1: ancestral, or the reverse SDE",
        0,
        1,
        samplers=("ddim", "dpmpp"),
    )
    order: int = option(2, "order of unipc, 2 or 3", 2, 3, samplers=("unipc",))
    churn: float = option(
        0.0, "S_churn of heun: noise added before every step (EDM)", 0, 1e3, samplers=("heun",)
    )
    restart: int = option(
        0, "restart sampling: how often to add noise and repeat the steps of an interval", 0, 1000
    )
    restart_interval: tuple[float, ...] = option(
        (0.1, 0.4), "range of t / T, two fractions, that is repeated by --restart", 0, 1
    )
    clip: bool = option(True, "clip the predicted clean image to [-1, 1]")
    guidance: float = option(1.2, "classifier-free guidance scale; 1: no guidance", 0, 1e3)
    guidance_interval: tuple[float, ...] = option(
        (0.3, 0.8), "range of t / T, two fractions, in which guidance applies", 0, 1
    )


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
        """Inverse of dataclasses.asdict, also of earlier releases. ConfigError for other fields."""
        sections = {name: dict(section) for name, section in sections.items()}
        try:
            if isinstance(side := sections["data"]["image_size"], int):
                sections["data"]["image_size"] = (side, side)
            sections["train"] = BEFORE | sections["train"]
            return cls(
                **{name: kind(**sections[name]) for name, kind in get_type_hints(cls).items()}
            )
        except (TypeError, KeyError) as e:
            raise ConfigError(f"the stored configuration does not fit this program: {e}") from e

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), once the data set is known."""
        return self.model.image_channels, *self.data.image_size

    def options(self) -> Iterator[tuple[Field, Any, Any]]:
        """Every field of every section, with its type and its value."""
        for section in vars(self).values():
            yield from options(section)

    def override(self, **values: Any) -> Self:
        """A copy with the named fields, of whichever section owns them, replaced."""
        sections = {}
        for name, section in vars(self).items():
            own = {f.name: values.pop(f.name) for f in fields(section) if f.name in values}
            sections[name] = replace(section, **own)
        if values:
            raise ConfigError(f"no section has a field named {', '.join(sorted(values))}")
        return replace(self, **sections)

    def check(self) -> None:
        """ConfigError for the first value of a wrong type, out of range, or not a choice."""
        for f, kind, value in self.options():
            if get_origin(kind) is Literal:
                if value not in get_args(kind):
                    known = ", ".join(shown(f, choice) for choice in sorted(get_args(kind)))
                    raise ConfigError(f"{flag(f.name)} must be one of {known}, got {value!r}")
                continue
            if not is_of(value, kind):
                raise ConfigError(f"{flag(f.name)} must not be {value!r}")
            check_range(flag(f.name), value, f.metadata["least"], f.metadata["most"])
        if not self.data.data_root:
            raise ConfigError("--data-root must not be empty; type . for this folder")

    def check_sampling(self, typed: Collection[str]) -> None:
        """ConfigError for too many steps, and for typed options the sampler does not have."""
        s = self.sample
        check_range("--steps", s.steps, 1, self.diffusion.most_steps)
        for f in fields(s):
            owners = f.metadata["samplers"]
            if f.name in typed and owners and s.sampler not in owners:
                raise ConfigError(f"{flag(f.name)} has no effect on --sampler {s.sampler}")
        if s.variance == "learned" and not self.diffusion.learn_variance:
            raise ConfigError(
                "--variance learned needs a network that predicts it: train with --learn-variance"
            )
        if "guidance" in typed and self.model.num_classes == 0:
            raise ConfigError("--guidance has no effect on a network without classes")
        if "guidance_interval" in typed and self.model.num_classes == 0:
            raise ConfigError("--guidance-interval has no effect on a network without classes")
        if "clip" in typed and not s.clip and self.diffusion.discrete_pixels:
            raise ConfigError("--no-clip has no effect on --discrete-pixels, which end at -1 and 1")
        if self.train.label_drop == 0 and s.guidance != 1 and self.model.num_classes:
            raise ConfigError(
                "--label-drop 0 needs --guidance 1: without label dropout there is no "
                "unconditional network to guide with"
            )
        if "guidance_interval" in typed and s.guidance == 1:
            raise ConfigError("--guidance-interval has no effect on --guidance 1")
        if len(s.guidance_interval) != 2 or s.guidance_interval[0] > s.guidance_interval[1]:
            raise ConfigError("--guidance-interval takes two numbers, from and to, like 0.2 0.8")
        if "restart_interval" in typed and s.restart == 0:
            raise ConfigError("--restart-interval has no effect on --restart 0")
        if len(s.restart_interval) != 2 or s.restart_interval[0] >= s.restart_interval[1]:
            raise ConfigError("--restart-interval takes two numbers, from and to, like 0.1 0.4")


# Values that the data set fills in.
FROM_DATA = {"num_classes": -1, "image_size": (0, 0), "image_channels": 0}
BEFORE = {"min_epoch_images": 1}  # of runs that were stored before these settings existed


def options(section: object) -> Iterator[tuple[Field, Any, Any]]:
    """Every field of a section, with its type and its value."""
    types = get_type_hints(type(section))
    for f in fields(section):
        yield f, types[f.name], getattr(section, f.name)


def is_of(value: Any, kind: Any) -> bool:
    """Whether a stored value fits a field of this type; a bool is not accepted as a number."""
    if get_origin(kind) is tuple:
        items = get_args(kind)
        right = isinstance(value, tuple) and (items[-1] is ... or len(value) == len(items))
        return right and all(is_of(item, items[0]) for item in value)
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def check_range(name: str, value: Any, least: float, most: float) -> None:
    """ConfigError unless every number in the value is finite and within least ... most."""
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, str | bool):
            continue
        if not (math.isfinite(number) and least <= number <= most):
            limit = f"at least {least:g}" if most == math.inf else f"in {least:g} ... {most:g}"
            raise ConfigError(f"{name} must be {limit}, got {number}")


# A line each, for --help; what comes out of them stands in README.md and docs/quality.md.
ABOUT = {
    "mnist": "0.76 M parameters, for minutes on a CPU; any data set",
    "original": "network, process and objective of Diffusion-Model-Demo, 57.8 M parameters; a GPU",
    "cifar10": "the widths of Ho et al. (2020) for CIFAR-10, with classes; a GPU",
    "likelihood": "the variational bound instead of the look: fewer bits per dimension than xz",
    "smoke": "30 steps on drawn digits: runs every part once; the samples stay noise",
}
PRESETS: dict[str, Config] = {
    "mnist": Config(),
    "original": Config().override(
        image_size=(32, 32),
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
    # App. B of the paper, with attention heads and class conditioning. Never trained.
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
    # VDM's range of SNR; estimates that know a pixel's values make what is certain free.
    "likelihood": Config().override(
        schedule="log-snr",
        prediction="x0",
        discrete_pixels=True,
        loss="kl",
        importance_sampling=True,
        steps=50,
        guidance=1.0,
    ),
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


def differences(config: Config) -> tuple[str, dict[str, str]]:
    """The nearest preset, and the flags that differ from it, as typed.

    Not those that the data set fills in where the preset leaves them to it.
    """
    values = {f.name: shown(f, value) for f, _, value in config.options()}
    found = {}
    for name, preset in PRESETS.items():
        own = {f.name: shown(f, v) for f, _, v in preset.options() if v != FROM_DATA.get(f.name)}
        found[name] = {flag(key): values[key] for key, v in own.items() if values[key] != v}
    nearest = min(found, key=lambda name: len(found[name]))
    return nearest, found[nearest]


def presets() -> str:
    """What the presets are, for --help."""
    width = max(map(len, ABOUT)) + 2
    return "\n".join(["presets:", *(f"  {name:{width}}{line}" for name, line in ABOUT.items())])


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

    def wants_help(self, argv: Sequence[str] | None, name: str) -> str | None:
        """The value of this flag, where --help was typed: what the help shows depends on it."""
        words = list(sys.argv[1:] if argv is None else argv)
        if not {"-h", "--help"}.intersection(words):
            return None
        scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        scan.add_argument(name, dest="value")
        try:
            return scan.parse_known_args(words)[0].value
        except argparse.ArgumentError:
            return None

    def parse(
        self, argv: Sequence[str] | None, sections: Sequence[object], default: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The script's own flags, and the fields of the sections that were typed.

        default: shown in --help for every field, where it is not the section's value.
        """
        own = {action.dest for action in self._actions} - {"help"}
        for section in sections:
            self.add_section(section, default)
        values = vars(self.parse_args(argv))
        return {name: values.pop(name) for name in own}, values

    def add_section(self, section: object, default: str | None = None) -> None:
        """One flag per field; untyped flags leave no trace."""
        group = self.add_argument_group(type(section).__name__.removesuffix("Config").lower())
        for f, kind, value in options(section):
            group.add_argument(
                flag(f.name),
                default=argparse.SUPPRESS,
                help=f"{f.metadata['help']} [{default or shown(f, value)}]".replace("%", "%%"),
                **argument(f, kind),
            )


class StoreTuple(argparse.Action):
    """Several values as a tuple, which is what the dataclass holds."""

    def __call__(self, _parser, namespace, values, _option=None) -> None:
        setattr(namespace, self.dest, tuple(values))


def typed_path(text: str) -> Path:
    """A path that was typed. An empty one, as an unset variable leaves it, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty; type . for this folder")
    return Path(text)


METAVARS = {int: "N", float: "X", str: "TEXT"}


def argument(f: Field, kind: Any) -> dict[str, Any]:
    """The argparse keywords for a field of this type."""
    if spelling := f.metadata["spelling"]:
        return {"type": spelling.parse, "metavar": spelling.metavar}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return {"type": item, "nargs": "*", "action": StoreTuple, "metavar": METAVARS[item]}
    if get_origin(kind) is Literal:
        return {"choices": sorted(get_args(kind))}
    return {"type": kind, "metavar": METAVARS[kind]}


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def shown(f: Field, value: Any) -> str:
    """A value of the field as it is typed behind its flag."""
    if spelling := f.metadata["spelling"]:
        return spelling.show(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "none"


def settings() -> str:
    """docs/settings.md: every setting, what it means, its values in the presets."""
    lines = [SETTINGS_HEAD]
    for name, section in vars(PRESETS["mnist"]).items():
        lines.append(f"\n## {name}\n\n| flag | meaning | {' | '.join(PRESETS)} |")
        lines.append("|---|---|" + "---|" * len(PRESETS))
        for f, kind, _ in options(section):
            values = [shown(f, getattr(vars(preset)[name], f.name)) for preset in PRESETS.values()]
            choices = ""
            if get_origin(kind) is Literal:
                choices = f" ({', '.join(shown(f, choice) for choice in get_args(kind))})"
            lines.append(
                f"| `{flag(f.name)}` | {f.metadata['help']}{choices} | {' | '.join(values)} |"
            )
    return "\n".join(lines)


SETTINGS_HEAD = """# Settings

Made from `config.py` by `python config.py > docs/settings.md`. Each field is a flag of `train.py`;
`sample.py` and `evaluate.py` take those of the last table. Columns are the presets
(`--preset NAME`); a flag on the command line overrides the preset's value."""


if __name__ == "__main__":
    print(settings())
