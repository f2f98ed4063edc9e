"""Draw images from a checkpoint: Algorithm 2 of Ho et al. (2020), or a faster sampler.

python sample.py --ckpt latest
python sample.py --ckpt latest --classes 7 --num 16 --save grid,gif
python sample.py --ckpt latest --sampler dpmpp --steps 10
"""

import math
import re
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, ConfigError, Parser, add_options, check_range, flag
from diffusion import (
    SAMPLERS,
    VARIANCES,
    GaussianDiffusion,
    guided,
    make_diffusion,
    make_sampler,
    options_of,
)
from models import UNet
from utils import checkpoint, images, runs
from utils.checkpoint import CheckpointError
from utils.devices import DeviceError, pick_device
from utils.files import whole_file
from utils.optim import average
from utils.seeding import image_noise

BAD_INPUT = (ConfigError, CheckpointError, DeviceError)
CHOICES = {"sampler": SAMPLERS, "variance": VARIANCES}
KINDS = ("grid", "png", "gif", "npz")
FRAMES = 100  # of an animation, at most


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: drawn, 1: failed to write, 2: bad input, 130: interrupted."""
    try:
        for path in sample(*parse(argv)):
            print(path)
    except BAD_INPUT as e:
        print(f"sample.py: error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"sample.py: cannot write {e.filename}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sample.py: interrupted, nothing half-written", file=sys.stderr)
        return 130
    return 0


def sample(config: Config, flags: Namespace, state: dict[str, Any]) -> list[Path]:
    """Build what the checkpoint describes, draw, write; the files written."""
    device = pick_device(flags.device)
    y = class_labels(flags, config.model.num_classes)
    folder = flags.out or default_folder(flags, config, state["step"])
    for path in outputs(folder, flags):
        if path.exists() and not flags.overwrite:
            raise ConfigError(f"{path} exists: choose another --out, or --overwrite")
    model, diffusion = build(config, flags.ckpt, state, device)

    batches = []
    with tqdm(total=flags.num * config.sample.steps, unit="step", disable=None) as bar:
        for indices in torch.arange(flags.num).split(flags.batch_size):
            batches.append(draw(model, diffusion, config, flags, indices, y, bar))
    frames = [torch.cat(parts) for parts in zip(*batches, strict=True)]
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
    """The reverse process of these images: x_T ... x_0, or x_0 alone where no film is wanted.

    Image i depends on (seed, i) and its class only, whatever batch it is drawn in.
    """
    c = config.sample
    shape = (config.model.image_channels, config.data.image_size, config.data.image_size)
    randn = image_noise(flags.seed, indices.tolist(), shape, diffusion.device)
    labels = y if y is None else y[indices].to(diffusion.device)
    denoiser = guided(model, labels, config.model.num_classes, c.guidance)
    wanted = kept_states(c.steps, "gif" in flags.save)
    x_T = randn()
    kept = [x_T.cpu()] if 0 in wanted else []
    sampler = make_sampler(**asdict(c))
    for n, x in enumerate(sampler(denoiser, diffusion, x_T, c.steps, randn), start=1):
        bar.update(len(x))
        if n in wanted:
            kept.append(x.cpu())
    return kept


def kept_states(steps: int, film: bool) -> set[int]:
    """Which of the states 0 (x_T) ... steps (x_0) to keep."""
    if not film:
        return {steps}
    return set(torch.linspace(0, steps, min(steps + 1, FRAMES)).round().int().tolist())


def build(
    config: Config, path: Path, state: dict[str, Any], device: torch.device
) -> tuple[nn.Module, GaussianDiffusion]:
    """The averaged network and the process, as the checkpoint describes them."""
    model = average(UNet(**asdict(config.model)), config.train.ema_power, config.train.ema_decay)
    checkpoint.check_fits(path, "ema", state["ema"], model.state_dict())
    model.load_state_dict(state["ema"])
    diffusion = make_diffusion(**asdict(config.diffusion)).to(device)
    return model.to(device, memory_format=torch.channels_last), diffusion


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
    """Beside the run's logs; named by what the images depend on."""
    c = config.sample
    parts = [f"samples_step{step}", f"{c.sampler}{c.steps}", f"seed{flags.seed}"]
    if flags.classes:
        parts.append(f"classes{flags.classes}")
    if c.guidance != 1:
        parts.append(f"guidance{c.guidance:g}")
    return runs.run_of(flags.ckpt).logs / "_".join(parts)


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
    defaults = Config().sample
    parser = Parser(prog="sample.py", description=__doc__)
    parser.add_argument("--ckpt", required=True, help="checkpoint file, version folder, or latest")
    parser.add_argument(
        "--run-root", type=Path, default="Logs_Checkpoints", help="of latest [%(default)s]"
    )
    parser.add_argument("--num", type=int, default=100, help="images to draw [%(default)s]")
    parser.add_argument("--classes", help="7, 0-9 or 3,1,4, repeated up to --num [all in turn]")
    parser.add_argument("--seed", type=int, default=0, help="of the noise [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=100, help="at a time [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--out", type=Path, help="folder to write to [beside the run's logs]")
    parser.add_argument("--save", default="grid", help="any of grid,png,gif,npz [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    names = {action.dest for action in parser._actions} - {"help"}
    add_options(parser, [defaults], CHOICES)
    typed = vars(parser.parse_args(argv))
    flags = Namespace(**{name: typed.pop(name) for name in names})

    for name, least, most in (("num", 1, 10**7), ("batch_size", 1, 10**7), ("seed", 0, 2**63 - 1)):
        check_range(flag(name), getattr(flags, name), least, most)
    flags.save = flags.save.split(",")
    if unknown := [kind for kind in flags.save if kind not in KINDS]:
        raise ConfigError(f"--save takes any of {','.join(KINDS)}, got {unknown[0]!r}")
    flags.ckpt = checkpoint.find(flags.ckpt, flags.run_root)
    state = checkpoint.load(flags.ckpt)
    stored = Config.from_dict(state["config"])
    config = stored.override(**typed)
    config.check()
    config.check_sampling(typed, options_of(config.sample.sampler))
    return config, flags, state


if __name__ == "__main__":
    sys.exit(main())
