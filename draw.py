"""From a checkpoint to images: what sample.py and evaluate.py have in common."""

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, ConfigError, Parser, add_options, check_range, flag
from data import DataError, ReadError, deaths_of_workers
from diffusion import (
    NAMES,
    GaussianDiffusion,
    guided,
    make_diffusion,
    make_sampler,
    options_of,
)
from models import NORMS, UNet
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.devices import DeviceError, tune
from utils.distributed import ALONE, RankError, Ranks
from utils.images import to_uint8
from utils.optim import PowerAverage
from utils.seeding import image_noise

CHOICES = {**NAMES, "norm": NORMS}
BAD_INPUT = (ConfigError, DataError, CheckpointError, DeviceError)


def exit_code(program: str, work: Callable[[], None]) -> int:
    """Do it. Exit code 0: done, 1: failed on the way, 2: bad input, 130: interrupted."""
    try:
        with deaths_of_workers():
            work()
    except BAD_INPUT as e:
        print(f"{program}: error: {e}", file=sys.stderr)
        return 2
    except (RankError, ReadError) as e:
        print(f"{program}: stopped: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"{program}: cannot write {e.filename}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted, nothing half-written", file=sys.stderr)
        return 130
    return 0


def add_flags(parser: Parser, num: int) -> None:
    """The flags of both scripts, without those of SampleConfig."""
    parser.add_argument("--ckpt", required=True, help="checkpoint file, version folder, or latest")
    parser.add_argument(
        "--run-root", type=Path, default="Logs_Checkpoints", help="of latest [%(default)s]"
    )
    parser.add_argument("--num", type=int, default=num, help="images to draw [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the noise [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=100, help="at a time [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")


def parse_flags(parser: Parser, argv: list[str] | None) -> tuple[Namespace, dict[str, Any]]:
    """The script's own flags, and those that amend the configuration, where typed."""
    names = {action.dest for action in parser._actions} - {"help"}
    add_options(parser, [Config().sample], CHOICES)
    typed = vars(parser.parse_args(argv))
    flags = Namespace(**{name: typed.pop(name) for name in names})
    for name, least, most in (("num", 1, 10**7), ("batch_size", 1, 10**7), ("seed", 0, 2**63 - 1)):
        check_range(flag(name), getattr(flags, name), least, most)
    return flags, typed


def open_checkpoint(flags: Namespace, typed: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The checkpoint's configuration amended by the typed flags, and the checkpoint.

    Sets flags.ckpt to its path.
    """
    flags.ckpt = checkpoint.find(flags.ckpt, flags.run_root)
    state = checkpoint.load(flags.ckpt)
    config = Config.from_dict(state["config"]).override(**typed)
    config.check(CHOICES)
    config.check_sampling(typed, options_of(config.sample.sampler))
    return config, state


def build(
    config: Config, path: Path, state: dict[str, Any], device: torch.device
) -> tuple[nn.Module, GaussianDiffusion]:
    """The averaged network and the process, as the checkpoint describes them."""
    model = PowerAverage(
        UNet(**asdict(config.model)), config.train.ema_power, config.train.ema_decay
    )
    checkpoint.check_fits(path, "ema", state["ema"], model.state_dict())
    model.load_state_dict(state["ema"])
    diffusion = make_diffusion(**asdict(config.diffusion))
    diffusion.x0_error = known_errors(config, state)
    tune(device)
    return model.to(device, memory_format=torch.channels_last), diffusion.to(device)


def known_errors(config: Config, state: dict[str, Any]) -> Tensor | None:
    """The network's errors, which --variance optimal is made from.

    None where they were never measured, or for the other choice of --clip.
    """
    same = config.sample.clip == state["config"]["sample"]["clip"]
    return state.get("x0_error") if same else None


def states(
    model: Callable[..., Tensor],
    diffusion: GaussianDiffusion,
    config: Config,
    seed: int,
    indices: Tensor,
    y: Tensor | None,
) -> Iterator[Tensor]:
    """The reverse process of the images with these indices: x_T, ..., x_0, each (B, C, H, W).

    y: the classes of all images, (N,), or None. Image i depends on (seed, i) and its class only,
    whatever batch it is drawn in.
    """
    c = config.sample
    shape = (config.model.image_channels, config.data.image_size, config.data.image_size)
    randn = image_noise(seed, indices.tolist(), shape, diffusion.device)
    labels = y if y is None else y[indices].to(diffusion.device)
    denoiser = guided(model, labels, config.model.num_classes, c.guidance, config.guided_times)
    x_T = randn()
    yield x_T
    yield from make_sampler(**asdict(c))(denoiser, diffusion, x_T, c.steps, randn)


def own_images(num: int, ranks: Ranks) -> Tensor:
    """Which of the images 0 ... num - 1 this rank draws. ConfigError if that would be none."""
    check_range("--num", num, ranks.world, math.inf)
    return ranks.part(torch.arange(num))


def draw_samples(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    config: Config,
    flags: Namespace,
    y: Tensor | None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, dict[str, float]]:
    """flags.num images as files would hold them, uint8 (N, C, H, W), and what they cost.

    The cost: steps, network evaluations, and seconds per 1000 images. Each rank draws its part, and
    the first one gets them all.
    """
    drawn, c, started, rows = [], config.sample, time.monotonic(), 0
    own = own_images(flags.num, ranks)

    def counted(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        nonlocal rows
        rows += len(x)
        return model(x, t, y)

    with tqdm(total=len(own) * c.steps, desc="samples", unit="step", disable=ranks.no_bar) as bar:
        for indices in own.split(flags.batch_size):
            for n, x in enumerate(states(counted, diffusion, config, flags.seed, indices, y)):
                bar.update(len(x) if n else 0)
            drawn.append(to_uint8(x))
    samples = ranks.gather(torch.cat(drawn))
    seconds = (time.monotonic() - started) * 1000 / flags.num
    return samples, {"steps": c.steps, "calls": rows // len(own), "s/1000": seconds}


def asked_classes(labels: Tensor, n: int) -> Tensor:
    """n classes in the proportions of these labels, rising: (n,)."""
    at = (torch.arange(n, device=labels.device) + 0.5) * len(labels) / n
    return labels.sort().values[at.long()]
