"""Sample from a checkpoint: Algorithm 2 of Ho et al. (2020), or a faster sampler.

python sample.py --ckpt latest
python sample.py --ckpt latest --classes 7 --num 16 --save grid,gif
python sample.py --ckpt latest --sampler dpmpp --steps 10
python sample.py --ckpt latest --num 50000 --save npz  # interrupted, the same command goes on
python sample.py --ckpt latest --export my-model  # for others: safetensors, JSON, a program

From Python: ``load("latest").sample(classes=[7] * 16)``; see docs/python.md.
"""

import os
import signal
import sys

if __name__ == "__main__":  # before all other imports, which take seconds
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback of an import
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import Config, ConfigError, Parser, SampleConfig, check_range, flag, typed_path
from data.class_names import match_classes
from diffusion import DiffusionModel, Sampler, evenly_spaced, generate, generate_with_progress
from evaluation.model_card import NAME, PICTURE, model_card
from evaluation.run_folder import RunFolder
from models.summary import size
from training.export import LOADER, check_folder, description, exported_files, without_paths
from training.trained import (
    NUM,
    RUN_ROOT,
    OpenCheckpoint,
    TrainedModel,
    check_x0_error,
    load,
    open_checkpoint,
    repeat_labels,
)
from training.unfinished import SHOWN, Unfinished
from utils import images, runs
from utils.devices import DEVICES, pick_device, tune
from utils.distributed import Ranks, joined
from utils.errors import InputError
from utils.files import check_writable, whole_file, write_together
from utils.npz import write_npz
from utils.process import command, exit_code
from utils.progress import Progress
from utils.pytree import digest

__all__ = ["TrainedModel", "load"]

FORMATS = ("grid", "png", "gif", "npz")
CKPT = "checkpoint file, version folder, number or name of a run, or latest"  # help of the flag
FRAMES = 100  # of an animation, at most


@dataclass(frozen=True)
class CommonArgs:
    """The flags that scripts share: the checkpoint, and how many samples to draw."""

    ckpt: str
    run_root: Path
    num: int
    seed: int
    batch_size: int
    device: str
    settings: dict[str, Any]  # those of SampleConfig that were typed

    @cached_property
    def opened(self) -> OpenCheckpoint:
        """The checkpoint with the typed settings. Raises CheckpointError, ConfigError."""
        return open_checkpoint(self.ckpt, self.run_root, self.settings)


@dataclass(frozen=True)
class DrawingArgs(CommonArgs):
    """The flags of sample.py and edit.py: of which classes, and which files to write."""

    classes: str | None
    save: str
    out: Path | None
    overwrite: bool


@dataclass(frozen=True)
class Args(DrawingArgs):
    """The command line as it was typed, and what follows from it."""

    export: Path | None  # a folder: then the model is written, not its samples alone

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Those of FORMATS to write."""
        return choices("save", self.save, FORMATS)

    @cached_property
    def labels(self) -> Tensor | None:
        """Of the images, (num,); None for an unconditional network."""
        names = self.opened.class_names
        return repeat_labels(parse_classes(self.classes, names), self.num, names)

    @cached_property
    def folder(self) -> Path:
        """--out, or a folder in the run's logs."""
        return self.out or default_folder(self)

    @property
    def titles(self) -> list[str]:
        """The class of every image that is shown; empty for an unconditional network."""
        labels = [] if self.labels is None else self.labels[:SHOWN].tolist()
        return [self.opened.class_names[label] for label in labels]

    def outputs(self) -> Iterator[Path]:
        """Every file that will be written."""
        names: dict[str, Iterable[str]] = {
            "grid": ["grid.png"],
            "png": (f"{i:05d}.png" for i in range(self.num)),
            "gif": ["reverse_process.gif"],
            "npz": ["samples.npz"],
        }
        return (self.folder / name for kind in self.formats for name in names[kind])

    def identity(self, device: torch.device) -> dict[str, Any]:
        """What the bytes of the output depend on; called before the weights are taken out."""
        drawn = {"checkpoint": digest(self.opened.content)[:16], "num": self.num, "seed": self.seed}
        drawn |= {"classes": self.classes, "save": self.save, "batch_size": self.batch_size}
        where = {"device": device.type, "torch": str(torch.__version__)}
        return drawn | asdict(self.opened.config.sample) | where


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed to write, 2: bad input, 128 + N: stopped by signal N."""
    return exit_code("sample.py", lambda: run(parse_args(argv)), "interrupted")


def run(args: Args) -> int:
    """Run on one device, or as one rank of a torchrun job."""
    device = pick_device(args.device)
    tune(device)
    with joined(device) as ranks:
        if not args.export:
            sample_images(args, device, ranks)
            print("\n".join(written(args.outputs())))
        elif ranks.first:
            export_model(args, device)
    return 0


def sample_images(args: Args, device: torch.device, ranks: Ranks) -> None:
    """Sample on all ranks, each its share of a batch after the other; rank 0 writes them."""
    check_range("--num", args.num, ranks.world, math.inf)
    identity = args.identity(device)
    model = args.opened.model(device)
    sampler = Sampler(**asdict(model.config.sample))
    grid = sampler.grid(model.diffusion)
    keep = evenly_spaced(grid, FRAMES) if "gif" in args.formats else {len(grid) - 1}
    files = Unfinished.to_be(args.folder, args.formats, model.image_shape, len(keep), identity)
    find_unfinished(files, args, ranks)
    (files.done,) = ranks.highest(files.done)  # that of rank 0, where the others have no such disk
    print("\n".join(first_lines(args, model, sampler, files)), flush=True)

    parts = batches(files.done, args.num, args.batch_size * ranks.world)
    total = sum(len(ranks.share(n)) for n in parts) * cost_of(model, sampler)[1]
    progress = Progress("sampling", total, "network evaluations", silent=ranks.silent)
    options = {"seed": args.seed, "batch_size": args.batch_size, "progress": progress.update}
    with ranks.alone(files.growing()), progress:
        for n in parts:
            own, frames = ranks.share(n), keep if n[0] < SHOWN else ()
            labels = None if args.labels is None else args.labels[own]
            states = generate(model, sampler, own, labels, keep=frames, **options)
            states = [ranks.gather(images.to_uint8(x)) for x in states]
            if ranks.first:
                files.add(states)
        if ranks.first:
            write(files, args)


def batches(first: int, num: int, size: int) -> list[Tensor]:
    """The images first ... num - 1 in batches; as without an interruption at ``first``.

    How a convolution rounds may depend on the batch, so an image must always be in the same one.
    """
    return [torch.arange(i, min(i + size, num)) for i in range(first, num, size)]


def export_model(args: Args, device: torch.device) -> None:
    """Write the model to the folder of --export, with samples of it and a model card.

    Only the samples are drawn on the device.
    """
    check_folder(args.export, args.overwrite)
    model = args.opened.model(torch.device("cpu"))
    sampler = Sampler(**asdict(model.config.sample))
    print(f"{describe_sampling(model, sampler)}; exported to {args.export}", flush=True)
    about, run = description(model, args.opened.content), RunFolder.of(runs.logs_of(model.path))
    files = exported_files(model, about)
    weights = digest(model.network.state_dict())
    card = model_card(without_paths(model.config), about, size(model.network), weights, run)
    files[NAME] = card.encode()

    parts = {"network": model.network.to(device), "diffusion": model.diffusion.to(device)}
    (x_0,) = generate_with_progress(
        "sampling",
        replace(model, **parts),
        sampler,
        range(args.num),
        args.labels,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    files[PICTURE] = images.png(images.grid(x_0, titles=args.titles))
    write_together(args.export, files)
    print("\n".join(str(args.export / name) for name in files))
    here, elsewhere = command("sample.py", "--ckpt", args.export), (args.export / LOADER).resolve()
    print(f"to draw with it: {here}\nwithout this repository: {command(str(elsewhere))}")


def share_of_images(num: int, ranks: Ranks) -> Tensor:
    """Which of the images 0 ... num - 1 this rank draws. ConfigError if that would be none."""
    check_range("--num", num, ranks.world, math.inf)
    return ranks.share(torch.arange(num))


def first_lines(
    args: Args, model: TrainedModel, sampler: Sampler, files: Unfinished
) -> Iterator[str]:
    """What is about to be drawn; what is there already; what is shown, if it is not all."""
    yield f"{describe_sampling(model, sampler)}; {args.num:,} images, seed {args.seed}"
    if files.done:
        yield f"{files.progress}, from an interrupted run"
    shown = [name for name in ("grid", "gif") if name in args.formats]
    if shown and args.num > SHOWN:
        yield f"{' and '.join(shown)}: of the first {SHOWN:,} images"


def write(files: Unfinished, args: Args) -> None:
    """What is made of all images together, in each of the formats."""
    titles, folder = args.titles, args.folder
    if "grid" in args.formats:
        picture = images.grid(images.normalize(files.shown()), titles=titles)
        images.save_png(picture, folder / "grid.png")
    if "gif" in args.formats:
        frames = [images.grid(images.normalize(x), titles=titles) for x in files.film()]
        with whole_file(folder / "reverse_process.gif") as file:
            file.write(images.gif(frames))
    if "npz" in args.formats:
        labels = {} if args.labels is None else {"arr_1": args.labels.numpy()}
        with whole_file(folder / "samples.npz") as file:
            write_npz(file, (args.num, *files.images.shape), files.images.chunks(), labels)


def save_numbered(x_0: Tensor, folder: Path) -> None:
    """Images (N, C, H, W) in [-1, 1] as 00000.png and so on."""
    for i, x in enumerate(images.to_uint8(x_0)):
        images.save_png(x, folder / f"{i:05d}.png")


def save_arrays(x_0: Tensor, more: Mapping[str, np.ndarray], path: Path) -> None:
    """Images (N, C, H, W) in [-1, 1] as arr_0, uint8 (N, H, W, C), with further arrays."""
    with whole_file(path) as file:
        pixels = images.to_uint8(x_0).permute(0, 2, 3, 1).numpy()
        np.savez_compressed(file, arr_0=pixels, **more)


def find_unfinished(files: Unfinished, args: Args, ranks: Ranks) -> None:
    """Find what an interrupted run left, else ``check_outputs``; called before sampling."""
    try:
        found = files.find(args.overwrite)
    except OSError as e:
        raise ConfigError(f"cannot write to --out {args.folder}: {e.strerror}") from e
    if not found:
        check_outputs(args.outputs(), args.folder, args.overwrite, ranks)


def check_outputs(paths: Iterable[Path], folder: Path, overwrite: bool, ranks: Ranks) -> None:
    """ConfigError if an output exists or the folder is not writable; called before sampling."""
    try:
        for path in paths:
            if path.exists() and not overwrite:
                raise ConfigError(f"{path} exists: choose another --out, or --overwrite")
        if ranks.first:
            check_writable(folder)
    except OSError as e:
        raise ConfigError(f"cannot write to --out {folder}: {e.strerror}") from e


def default_folder(args: Args) -> Path:
    """A folder in the run's logs, named by the sampling settings that are not the default."""
    c = args.opened.config.sample
    own = [f"num{args.num}"] if args.num != NUM else []
    return named_folder(args, "samples", [f"{c.sampler}{c.steps}", f"seed{args.seed}", *own])


def named_folder(args: DrawingArgs, kind: str, parts: Sequence[str]) -> Path:
    """kind_stepN_..., with the classes and the settings of sampling, in the run's logs."""
    c, words = args.opened.config.sample, [f"{kind}_step{args.opened.content['step']}", *parts]
    if args.classes is not None:
        words.append("classes" + in_a_name(args.classes))
    for f in fields(c):
        if f.name not in ("sampler", "steps") and (value := getattr(c, f.name)) != f.default:
            numbers = map(str, value) if isinstance(value, tuple) else [str(value)]
            words.append(f.name + "-".join(numbers))
    return runs.logs_of(args.opened.path) / "_".join(words)


def in_a_name(text: str) -> str:
    """What was typed, as a part of a file's name."""
    return re.sub(r"[^\w,-]+", "-", text)[:40]


def parse_classes(text: str | None, class_names: Sequence[str]) -> list[int] | None:
    """``7``, ``0-9``, ``3,1,4``, ``cat,dog`` as labels. Raises InputError."""
    if text is None or not class_names:
        return None if text is None else []
    return match_classes(text.split(","), class_names)


def add_flags(parser: Parser, num: int | None, what: str = "images to draw") -> None:
    """The flags of CommonArgs but --ckpt; num: the default of --num, None: no such flag."""
    parser.add_argument(
        "--run-root",
        type=typed_path,
        default=RUN_ROOT,
        help="folder of the runs that names and `latest` refer to [%(default)s]",
    )
    if num is not None:
        parser.add_argument("--num", type=int, default=num, help=f"{what} [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="random seed [%(default)s]")
    parser.add_argument(
        "--batch-size", type=int, default=100, help="images per batch [%(default)s]"
    )
    parser.add_argument("--device", default="auto", help=f"{DEVICES} [auto]")


def add_output_flags(parser: Parser, formats: Sequence[str]) -> None:
    """The flags of DrawingArgs but --classes."""
    parser.add_argument("--out", type=typed_path, help="folder to write to [beside the run's logs]")
    parser.add_argument("--save", default="grid", help=f"any of {','.join(formats)} [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing files")


def parse(
    parser: Parser, argv: list[str] | None, defaults: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The script's own flags, and the typed settings of SampleConfig; numbers in their ranges.

    defaults: settings that stand in for the checkpoint's, for --help.
    """
    where = parser.wants_help(argv, "--ckpt")
    stored = stored_settings(where, parser.wants_help(argv, "--run-root") or RUN_ROOT)
    own, typed = parser.parse(
        argv,
        [replace(stored or Config().sample, **defaults)],
        default=None if stored else "the checkpoint's",
    )
    check_numbers(own)
    return own, typed


def check_numbers(own: Mapping[str, Any]) -> None:
    """ConfigError for a number of the flags of CommonArgs out of its range."""
    for name, least, most in (("num", 1, 10**7), ("batch_size", 1, 10**7), ("seed", 0, 2**63 - 1)):
        if name in own:
            check_range(flag(name), own[name], least, most)


def stored_settings(where: str | None, run_root: str | Path) -> SampleConfig | None:
    """The sampling settings of this checkpoint, which --help shows; None where there is none."""
    try:
        return where and open_checkpoint(where, run_root, {}).config.sample
    except InputError:
        return None


def describe_sampling(model: TrainedModel, sampler: Sampler) -> str:
    """Which checkpoint, sampler, steps, network evaluations and guidance; a line."""
    steps, evaluations = cost_of(model, sampler)
    parts = [sampler.sampler, f"{steps} steps, {evaluations} network evaluations"]
    if model.num_classes and sampler.guidance != 1:
        low, high = sampler.guidance_interval
        parts.append(f"guidance {sampler.guidance:g} for t / T in {low:g} ... {high:g}")
    return f"{model.path}: step {model.step:,}; {', '.join(parts)}"


def cost_of(model: DiffusionModel, sampler: Sampler) -> tuple[int, int]:
    """Steps, restarts included, and network evaluations, for one of this model's images."""
    grid = sampler.grid(model.diffusion)
    costs = model.evaluations(sampler, grid, model.num_classes > 0)
    return sum(cost > 0 for cost in costs), sum(costs)


def written(paths: Iterable[Path]) -> list[str]:
    """The files, a line each; numbered ones as a range."""
    lines, ends, count = [], [], 0
    for path in paths:
        if path.stem.isdigit():
            ends, count = [*ends[:1], path], count + 1
        else:
            lines.append(str(path))
    if count > 2:
        return [*lines, f"{ends[0]} ... {ends[1].name} ({count:,} files)"]
    return [*lines, *map(str, ends)]


def choices(name: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split a list at commas. Raises ConfigError for a name that is not known."""
    words = tuple(text.split(","))
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"{flag(name)} takes any of {','.join(known)}, got {unknown[0]!r}")
    return words


def parse_args(argv: list[str] | None) -> Args:
    """The command line, checked against the checkpoint it names."""
    parser = Parser(prog="sample.py", description=__doc__)
    parser.add_argument("--ckpt", required=True, help=CKPT)
    add_flags(parser, num=NUM)
    parser.add_argument(
        "--classes", help="7, 0-9, 3,1,4 or cat,dog, repeated up to --num [all classes]"
    )
    add_output_flags(parser, FORMATS)
    parser.add_argument(
        "--export",
        type=typed_path,
        metavar="DIR",
        help="write the model: weights, configuration, program, card with --num samples",
    )
    own, typed = parse(parser, argv)
    args = Args(**own, settings=typed)
    for name in ("save", "out"):
        if args.export and own[name] != parser.get_default(name):
            raise ConfigError(f"{flag(name)} has no effect on --export")
    check(args)
    return args


def check(args: Args) -> None:
    """InputError for formats, a checkpoint, settings or classes that cannot be."""
    formats = set(args.formats)  # which raises it
    if args.num > SHOWN and not formats & {"png", "npz"}:
        raise ConfigError(
            f"--save {args.save} shows {SHOWN:,} images at most, of --num {args.num:,}: add png or "
            "npz, which keep all"
        )
    opened = args.opened
    clip = opened.content["config"]["sample"]["clip"]
    check_x0_error(opened.config, opened.path, clip, opened.content.get("x0_error"))
    _ = args.labels


if __name__ == "__main__":
    sys.exit(main())
