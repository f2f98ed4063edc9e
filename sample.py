"""Draw images from a checkpoint: Algorithm 2 of Ho et al. (2020), or a faster sampler.

python sample.py --ckpt latest
python sample.py --ckpt latest --classes 7 --num 16 --save grid,gif
python sample.py --ckpt latest --sampler dpmpp --steps 10
"""

import math
import re
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, ConfigError, Parser
from diffusion import GaussianDiffusion
from draw import (
    add_flags,
    build,
    exit_code,
    known_errors,
    open_checkpoint,
    own_images,
    parse_flags,
    states,
)
from utils import images, runs
from utils.devices import pick_device
from utils.distributed import Ranks, joined
from utils.files import whole_file

KINDS = ("grid", "png", "gif", "npz")
FRAMES = 100  # of an animation, at most
NUM = 100  # images


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: drawn, 1: failed to write, 2: bad input, 130: interrupted."""

    def work() -> None:
        config, flags, state = parse(argv)
        device = pick_device(flags.device)
        with joined(device) as ranks:
            for path in sample(config, flags, state, device, ranks):
                print(path)

    return exit_code("sample.py", work)


def sample(
    config: Config,
    flags: Namespace,
    state: dict[str, Any],
    device: torch.device,
    ranks: Ranks,
) -> list[Path]:
    """Build what the checkpoint describes, draw, write; the files written.

    Each rank draws its part of the images, and the first one writes them all.
    """
    own = own_images(flags.num, ranks)
    y = class_labels(flags, config.model.num_classes)
    folder = flags.out or default_folder(flags, config, state["step"])
    model, diffusion = build(config, flags.ckpt, state, device)
    check_absent(folder, flags)
    if ranks.first:
        try_folder(folder)

    batches = []
    with tqdm(total=len(own) * config.sample.steps, unit="step", disable=ranks.no_bar) as bar:
        for indices in own.split(flags.batch_size):
            batches.append(draw(model, diffusion, config, flags, indices, y, bar))
    frames = [ranks.gather(torch.cat(parts)) for parts in zip(*batches, strict=True)]
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        write(frames, y, folder, flags.save)
    return outputs(folder, flags)


def draw(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    config: Config,
    flags: Namespace,
    indices: Tensor,
    y: Tensor | None,
    bar: tqdm,
) -> list[Tensor]:
    """x_T ... x_0 of these images, or x_0 alone where no film is wanted."""
    wanted, kept = kept_states(config.sample.steps, "gif" in flags.save), []
    for n, x in enumerate(states(model, diffusion, config, flags.seed, indices, y)):
        bar.update(len(x) if n else 0)
        if n in wanted:
            kept.append(x.cpu())
    return kept


def kept_states(steps: int, film: bool) -> set[int]:
    """Which of the states 0 (x_T) ... steps (x_0) to keep."""
    if not film:
        return {steps}
    return set(torch.linspace(0, steps, min(steps + 1, FRAMES)).round().int().tolist())


def write(frames: list[Tensor], y: Tensor | None, folder: Path, kinds: list[str]) -> None:
    """The images (N, C, H, W) in [-1, 1], the last of the frames, in each of the kinds."""
    x_0 = frames[-1]
    columns = 10 if len(x_0) % 10 == 0 else math.ceil(math.sqrt(len(x_0)))
    if "grid" in kinds:
        images.save_png(images.grid(x_0, columns), folder / "grid.png")
    if "png" in kinds:
        for i, x in enumerate(images.to_uint8(x_0)):
            images.save_png(x, folder / f"{i:05d}.png")
    if "gif" in kinds:
        images.save_gif([images.grid(x, columns) for x in frames], folder / "reverse_process.gif")
    if "npz" in kinds:
        arrays = {"arr_0": images.to_uint8(x_0).permute(0, 2, 3, 1).numpy()}  # N, H, W, C
        if y is not None:
            arrays["arr_1"] = y.numpy()
        with whole_file(folder / "samples.npz") as file:
            np.savez_compressed(file, **arrays)


def check_absent(folder: Path, flags: Namespace) -> None:
    """Before anything is drawn. ConfigError where files are in the way."""
    try:
        for path in outputs(folder, flags):
            if path.exists() and not flags.overwrite:
                raise ConfigError(f"{path} exists: choose another --out, or --overwrite")
    except OSError as e:
        raise ConfigError(f"cannot write to --out {folder}: {e.strerror}") from e


def try_folder(folder: Path) -> None:
    """Before anything is drawn. ConfigError where the folder cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as e:
        raise ConfigError(f"cannot write to --out {folder}: {e.strerror}") from e


def outputs(folder: Path, flags: Namespace) -> list[Path]:
    """Every file that will be written."""
    names = {
        "grid": ["grid.png"],
        "png": [f"{i:05d}.png" for i in range(flags.num)],
        "gif": ["reverse_process.gif"],
        "npz": ["samples.npz"],
    }
    return [folder / name for kind in flags.save for name in names[kind]]


def default_folder(flags: Namespace, config: Config, step: int) -> Path:
    """Beside the run's logs; named by what the images depend on, where that is not the default."""
    c = config.sample
    parts = [f"samples_step{step}", f"{c.sampler}{c.steps}", f"seed{flags.seed}"]
    if flags.num != NUM:
        parts.append(f"num{flags.num}")
    if flags.classes:
        parts.append(f"classes{flags.classes}")
    for f in fields(c):
        if f.name not in ("sampler", "steps") and (value := getattr(c, f.name)) != f.default:
            words = map(str, value) if isinstance(value, tuple) else [str(value)]
            parts.append(f.name + "-".join(words))
    return runs.logs_of(flags.ckpt) / "_".join(parts)


def class_labels(flags: Namespace, num_classes: int) -> Tensor | None:
    """--classes as (N,) int64, repeated up to --num; all in turn by default, None without classes.

    Takes ``7``, ``0-9``, ``3,1,4``, ``1,5-7``.
    """
    if num_classes == 0:
        if flags.classes:
            raise ConfigError("--classes has no effect: the network was trained without classes")
        return None
    classes = []
    for part in (flags.classes or f"0-{num_classes - 1}").split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if not match:
            raise ConfigError(f"--classes takes 7, 0-9 or 3,1,4, got {flags.classes!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < num_classes:
            raise ConfigError(f"--classes must lie in 0..{num_classes - 1}, got {part}")
        classes += range(first, last + 1)
    return torch.tensor(classes)[torch.arange(flags.num) % len(classes)]


def parse(argv: list[str] | None) -> tuple[Config, Namespace, dict[str, Any]]:
    """The checkpoint's configuration amended by the typed flags, the flags, the checkpoint."""
    parser = Parser(prog="sample.py", description=__doc__)
    add_flags(parser, num=NUM)
    parser.add_argument("--classes", help="7, 0-9 or 3,1,4, repeated up to --num [all in turn]")
    parser.add_argument("--out", type=Path, help="folder to write to [beside the run's logs]")
    parser.add_argument("--save", default="grid", help="any of grid,png,gif,npz [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    flags, typed = parse_flags(parser, argv)
    flags.save = flags.save.split(",")
    if unknown := [kind for kind in flags.save if kind not in KINDS]:
        raise ConfigError(f"--save takes any of {','.join(KINDS)}, got {unknown[0]!r}")
    config, state = open_checkpoint(flags, typed)
    if config.sample.variance == "optimal" and known_errors(config, state) is None:
        raise ConfigError(
            f"{flags.ckpt} lacks the network's errors for this --clip, from which --variance "
            "optimal is made: they are measured at an epoch's end; train on, or use posterior"
        )
    return config, flags, state


if __name__ == "__main__":
    sys.exit(main())
