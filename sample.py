"""Sample from a checkpoint: Algorithm 2 of Ho et al. (2020), or a faster sampler.

python sample.py --ckpt latest
python sample.py --ckpt latest --classes 7 --num 16 --save grid,gif
python sample.py --ckpt latest --sampler dpmpp --steps 10

From Python: ``load("latest").sample(classes=[7] * 16)``; see docs/python.md.
"""

import math
import operator
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import Config, ConfigError, Parser, SampleConfig, check_range, flag
from diffusion import DiffusionModel, Sampler, generate
from models import PowerEMA
from training.state import build
from utils import checkpoint, images, runs
from utils.devices import pick_device, tune
from utils.distributed import Ranks, joined
from utils.files import whole_file
from utils.process import exit_code
from utils.seeding import image_noise

RUN_ROOT = Path("Logs_Checkpoints")
FORMATS = ("grid", "png", "gif", "npz")
FRAMES = 100  # of an animation, at most
NUM = 100  # images


# From Python.


@dataclass(frozen=True, repr=False)
class TrainedModel(DiffusionModel):
    """The EMA weights of a checkpoint with their process and configuration; see ``load``."""

    config: Config
    path: Path
    step: int  # of training

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
        classes: Sequence[int] | None = None,
        *,
        seed: int = 0,
        start: int | None = None,
        x: Tensor | None = None,
        batch_size: int = 100,
        **settings: Any,
    ) -> Tensor:
        """Sample x_0 (num, C, H, W) in [-1, 1], on the CPU: the images that sample.py draws.

        num, batch_size: 1 ... 10^7. classes: labels, repeated cyclically up to num; default: all.
        settings override fields of config.SampleConfig (steps, sampler, guidance, ...); the others
        come from the checkpoint. x (num, C, H, W) float: a noisy image at t = start (default T)
        to begin with, instead of noise at T. Raises ConfigError for invalid values.
        """
        if unknown := settings.keys() - {f.name for f in fields(SampleConfig)}:
            raise ConfigError(f"unknown sampling setting: {', '.join(sorted(unknown))}")
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        if start is not None and x is None:
            raise ConfigError("start needs x, a noisy image at t = start: model.noise(x_0, start)")
        if num is None:
            num = len(x) if x is not None else len(classes) if classes is not None else NUM
        for name, value in {"num": num, "batch_size": batch_size}.items():
            check_range(name, integer(name, value), 1, 10**7)
        check_range("seed", integer("seed", seed), 0, 2**63 - 1)
        if x is not None:
            x = self.images("x", x, num)
        if start is not None and "steps" not in settings:  # as train.py caps the default
            trained = self.timesteps("start", start, 1)[0].item() - self.first_timestep + 1
            settings["steps"] = max(1, min(self.config.sample.steps, trained))
        config = self.config.override(**settings)
        config.check()
        config.check_sampling(settings)
        check_x0_error(config, self.path, self.config.sample.clip, self.diffusion.x0_error)
        labels = repeat_labels(classes, num, self.num_classes)
        sampler, options = Sampler(**asdict(config.sample)), {"start": start, "x": x}
        try:
            (x_0,) = generate(
                self, sampler, range(num), labels, seed=seed, batch_size=batch_size, **options
            )
        except ValueError as e:  # a start or steps that the process does not have
            raise ConfigError(str(e)) from e
        return x_0

    @torch.no_grad()
    def denoise(self, x_t: Tensor, t: Tensor | int, classes: Sequence[int] | None = None) -> Tensor:
        """x̂_0 (N, C, H, W), the estimate of x_0 in x_t (N, C, H, W).

        t in 1 ... T: an int or (N,) int. classes: labels, repeated cyclically up to N; None:
        unconditional. Clamped to [-1, 1] if config.sample.clip. Raises ConfigError.
        """
        x = self.images("x_t", x_t, len(x_t)).to(self.device)
        t = self.timesteps("t", t, len(x))
        labels = None if classes is None else repeat_labels(classes, len(x), self.num_classes)
        labels = labels if labels is None else labels.to(self.device)
        x_0 = self.diffusion.predict_x0(self.network(x, t, labels), x, t)
        return (x_0.clamp(-1, 1) if self.config.sample.clip else x_0).to(x_t.device)

    def noise(self, x_0: Tensor, t: Tensor | int, seed: int = 0) -> Tensor:
        """x_t ~ q(x_t | x_0) (Eq. 4), (N, C, H, W); t in 1 ... T: an int or (N,) int.

        The noise is keyed by the seed; it is never that from which ``sample`` starts. Raises
        ConfigError.
        """
        x = self.images("x_0", x_0, len(x_0)).to(self.device)
        t = self.timesteps("t", t, len(x))
        noise = image_noise(seed, range(len(x)), self.image_shape, self.device, "q_sample")()
        return self.diffusion.q_sample(x, t, noise).to(x_0.device)

    @property
    def first_timestep(self) -> int:
        return self.diffusion.first_timestep

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
    """The model of a checkpoint file, a version folder, or ``latest`` under the run root.

    device: auto, cpu, cuda or cuda:N. Raises CheckpointError, ConfigError, DeviceError: all are
    InputError.
    """
    chosen = pick_device(str(device))
    tune(chosen)
    return open_checkpoint(where, run_root, {}).model(chosen)


@dataclass(frozen=True)
class OpenCheckpoint:
    """A verified checkpoint, and its configuration with the command line's overrides."""

    path: Path
    content: dict[str, Any]
    config: Config

    @property
    def x0_error(self) -> Tensor | None:
        """The network's errors of x_0, for --variance optimal; None unless measured with --clip."""
        same = self.config.sample.clip == self.content["config"]["sample"]["clip"]
        return self.content.get("x0_error") if same else None

    def model(self, device: torch.device) -> TrainedModel:
        """The EMA network and the process. Raises ConfigError, CheckpointError."""
        c = self.config
        network, diffusion = build(c)
        ema = PowerEMA(network, c.train.ema_power, c.train.ema_decay)
        checkpoint.check_fits(self.path, "ema", self.content["ema"], ema.state_dict())
        ema.load_state_dict(self.content["ema"])
        diffusion.x0_error = self.x0_error
        return TrainedModel(
            ema.to(device, memory_format=torch.channels_last),
            diffusion.to(device),
            c.image_shape,
            c.model.num_classes,
            c,
            self.path,
            self.content["step"],
        )


def open_checkpoint(
    where: str | Path, run_root: str | Path, typed: dict[str, Any]
) -> OpenCheckpoint:
    """Load a checkpoint, apply overrides. Raises CheckpointError, ConfigError."""
    path = checkpoint.find(where, Path(run_root))
    content = checkpoint.load(path)
    config = Config.from_dict(content["config"]).override(**typed)
    config.check()
    config.check_sampling(typed)
    return OpenCheckpoint(path, content, config)


def repeat_labels(classes: Sequence[int] | None, num: int, num_classes: int) -> Tensor | None:
    """Labels (num,) int64: ``classes`` repeated cyclically; None: all of them.

    Returns None for an unconditional network. Raises ConfigError for labels outside 0 ... K - 1,
    for more labels than images, and for any beside an unconditional network.
    """
    if num_classes == 0:
        if classes is not None:
            raise ConfigError("--classes has no effect: the network was trained without classes")
        return None
    if classes is None:
        return torch.arange(num) % num_classes
    if isinstance(classes, str) or not isinstance(classes, Sequence | range | Tensor):
        raise ConfigError(f"classes must be a list of labels like [7, 7], got {classes!r}")
    labels = [integer("a class", y) for y in classes]
    if not labels or any(not 0 <= y < num_classes for y in labels):
        raise ConfigError(f"--classes must lie in 0..{num_classes - 1}, got {labels}")
    return torch.tensor(labels)[torch.arange(num) % len(labels)]


def integer(name: str, value: Any) -> int:
    """The value as an int. ConfigError for any other type, bool included."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"{name} must be an integer, got {value!r}") from e


def check_x0_error(config: Config, path: Path, clip: bool, x0_error: Tensor | None) -> None:
    """ConfigError if --variance optimal lacks the network's errors of x_0, measured with --clip."""
    sample = config.sample
    if sample.variance == "optimal" and (x0_error is None or sample.clip != clip):
        raise ConfigError(
            f"{path} lacks the network's errors of x_0 for this --clip, from which --variance "
            "optimal is computed: only the checkpoint of a run's last step has them, for the run's "
            "own --clip; use --variance posterior (evaluate.py measures them itself)"
        )


# From the command line.


@dataclass(frozen=True)
class CommonArgs:
    """Arguments of sample.py and evaluate.py: the checkpoint, and how many samples to draw."""

    opened: OpenCheckpoint
    num: int
    seed: int
    batch_size: int
    device: str


@dataclass(frozen=True)
class Args(CommonArgs):
    """The checked command line."""

    labels: Tensor | None  # (num,)
    formats: tuple[str, ...]  # of FORMATS
    folder: Path
    overwrite: bool

    @property
    def outputs(self) -> list[Path]:
        """Every file that will be written."""
        names = {
            "grid": ["grid.png"],
            "png": [f"{i:05d}.png" for i in range(self.num)],
            "gif": ["reverse_process.gif"],
            "npz": ["samples.npz"],
        }
        return [self.folder / name for kind in self.formats for name in names[kind]]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed to write, 2: bad input, 130: interrupted."""
    return exit_code("sample.py", lambda: run(parse_args(argv)), "interrupted")


def run(args: Args) -> int:
    """Run on one device, or as one rank of a torchrun job."""
    device = pick_device(args.device)
    tune(device)
    with joined(device) as ranks:
        sample_images(args, device, ranks)
        for path in args.outputs:
            print(path)
    return 0


def sample_images(args: Args, device: torch.device, ranks: Ranks) -> None:
    """Sample on all ranks; rank 0 gathers and writes."""
    own = share_of_images(args.num, ranks)
    model = args.opened.model(device)
    sampler = Sampler(**asdict(model.config.sample))
    check_outputs(args, ranks)

    labels = None if args.labels is None else args.labels[own]
    options = {"seed": args.seed, "batch_size": args.batch_size}
    keep = kept_states(sampler.steps, "gif" in args.formats)
    with tqdm(total=len(own) * sampler.steps, unit="step", disable=ranks.no_bar) as bar:
        states = generate(model, sampler, own, labels, **options, keep=keep, progress=bar.update)
    frames = [ranks.gather(x) for x in states]
    if ranks.first:
        args.folder.mkdir(parents=True, exist_ok=True)
        write(frames, args)


def share_of_images(num: int, ranks: Ranks) -> Tensor:
    """Which of the images 0 ... num - 1 this rank draws. ConfigError if that would be none."""
    check_range("--num", num, ranks.world, math.inf)
    return ranks.part(torch.arange(num))


def kept_states(steps: int, animate: bool) -> set[int]:
    """Which of the states 0 (x_T) ... steps (x_0) to keep: the last, or all frames."""
    if not animate:
        return {steps}
    return set(torch.linspace(0, steps, min(steps + 1, FRAMES)).round().int().tolist())


def write(frames: list[Tensor], args: Args) -> None:
    """The images (N, C, H, W) in [-1, 1], the last of the frames, in each of the formats."""
    x_0, folder = frames[-1], args.folder
    columns = 10 if len(x_0) % 10 == 0 else math.ceil(math.sqrt(len(x_0)))
    if "grid" in args.formats:
        images.save_png(images.grid(x_0, columns), folder / "grid.png")
    if "png" in args.formats:
        for i, x in enumerate(images.to_uint8(x_0)):
            images.save_png(x, folder / f"{i:05d}.png")
    if "gif" in args.formats:
        images.save_gif([images.grid(x, columns) for x in frames], folder / "reverse_process.gif")
    if "npz" in args.formats:
        arrays = {"arr_0": images.to_uint8(x_0).permute(0, 2, 3, 1).numpy()}  # N, H, W, C
        if args.labels is not None:
            arrays["arr_1"] = args.labels.numpy()
        with whole_file(folder / "samples.npz") as file:
            np.savez_compressed(file, **arrays)


def check_outputs(args: Args, ranks: Ranks) -> None:
    """ConfigError if an output exists or the folder is not writable; called before sampling."""
    try:
        for path in args.outputs:
            if path.exists() and not args.overwrite:
                raise ConfigError(f"{path} exists: choose another --out, or --overwrite")
        if ranks.first:
            args.folder.mkdir(parents=True, exist_ok=True)
            if not any(args.folder.iterdir()):
                args.folder.rmdir()
    except OSError as e:
        raise ConfigError(f"cannot write to --out {args.folder}: {e.strerror}") from e


def default_folder(opened: OpenCheckpoint, own: dict[str, Any]) -> Path:
    """A folder in the run's logs, named by the sampling settings that are not the default."""
    c = opened.config.sample
    step = opened.content["step"]
    parts = [f"samples_step{step}", f"{c.sampler}{c.steps}", f"seed{own['seed']}"]
    if own["num"] != NUM:
        parts.append(f"num{own['num']}")
    if own["classes"] is not None:
        parts.append(f"classes{own['classes']}")
    for f in fields(c):
        if f.name not in ("sampler", "steps") and (value := getattr(c, f.name)) != f.default:
            words = map(str, value) if isinstance(value, tuple) else [str(value)]
            parts.append(f.name + "-".join(words))
    return runs.logs_of(opened.path) / "_".join(parts)


def parse_classes(text: str | None, num_classes: int) -> list[int] | None:
    """``7``, ``0-9``, ``3,1,4``, ``1,5-7`` as labels. Raises ConfigError."""
    if text is None or num_classes == 0:
        return None if text is None else []
    classes = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if not match:
            raise ConfigError(f"--classes takes 7, 0-9 or 3,1,4, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < num_classes:
            raise ConfigError(f"--classes must lie in 0..{num_classes - 1}, got {part}")
        classes += range(first, last + 1)
    return classes


def add_flags(parser: Parser, num: int) -> None:
    """The flags of CommonArgs."""
    parser.add_argument("--ckpt", required=True, help="checkpoint file, version folder, or latest")
    parser.add_argument(
        "--run-root",
        type=Path,
        default=RUN_ROOT,
        help="folder that `latest` refers to [%(default)s]",
    )
    parser.add_argument("--num", type=int, default=num, help="images to draw [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="random seed [%(default)s]")
    parser.add_argument(
        "--batch-size", type=int, default=100, help="images per batch [%(default)s]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")


def parse(parser: Parser, argv: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The script's own flags, and the typed settings of SampleConfig; numbers in their ranges."""
    own, typed = parser.parse(argv, [Config().sample], default="the checkpoint's")
    for name, least, most in (("num", 1, 10**7), ("batch_size", 1, 10**7), ("seed", 0, 2**63 - 1)):
        check_range(flag(name), own[name], least, most)
    return own, typed


def common(opened: OpenCheckpoint, own: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of CommonArgs."""
    names = ("num", "seed", "batch_size", "device")
    return {"opened": opened} | {name: own[name] for name in names}


def choices(name: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split a list at commas. Raises ConfigError for a name that is not known."""
    words = tuple(text.split(","))
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"{flag(name)} takes any of {','.join(known)}, got {unknown[0]!r}")
    return words


def parse_args(argv: list[str] | None) -> Args:
    """The command line, checked against the checkpoint it names."""
    parser = Parser(prog="sample.py", description=__doc__)
    add_flags(parser, num=NUM)
    parser.add_argument("--classes", help="7, 0-9 or 3,1,4, repeated up to --num [all classes]")
    parser.add_argument("--out", type=Path, help="folder to write to [beside the run's logs]")
    parser.add_argument("--save", default="grid", help="any of grid,png,gif,npz [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing files")
    own, typed = parse(parser, argv)
    formats = choices("save", own["save"], FORMATS)
    opened = open_checkpoint(own["ckpt"], own["run_root"], typed)
    clip = opened.content["config"]["sample"]["clip"]
    check_x0_error(opened.config, opened.path, clip, opened.content.get("x0_error"))
    num_classes = opened.config.model.num_classes
    labels = parse_classes(own["classes"], num_classes)
    return Args(
        **common(opened, own),
        labels=repeat_labels(labels, own["num"], num_classes),
        formats=formats,
        folder=own["out"] or default_folder(opened, own),
        overwrite=own["overwrite"],
    )


if __name__ == "__main__":
    sys.exit(main())
