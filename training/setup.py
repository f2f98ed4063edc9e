"""From the command line to configuration and data: what train.py does before its first step."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from config import FROM_DATA, PRESETS, Config, ConfigError, Parser, flag, presets, shown, typed_path
from data import (
    DataNotFound,
    DataOptions,
    ImageSet,
    Loading,
    holds_images,
    load_splits,
)
from models import check_size
from models.summary import layers, text
from training.build import build, check_sampling
from training.pretrained import Pretrained, find_pretrained
from training.resume import SCHEDULE, Resumed, changed_settings, find_checkpoint
from training.screen import folded
from training.state import TrainState
from utils.devices import DEVICES, main_memory
from utils.distributed import Ranks
from utils.run_names import check_name

CACHE, CLASSIFIERS = "cache", "classifiers"  # under the run root: decoded images, extractors
MOST_SIGNAL = 0.01  # alpha_bar_T above which a warning is printed; that of VDM is 0.0067
COPIES = 4  # of the weights: themselves, gradient, EMA and momentum


@dataclass(frozen=True)
class Flags:
    """The flags of this invocation alone, as typed."""

    preset: str | None
    resume: str | None
    name: str | None  # of the run; in Args that of a resumed one, where it has a name
    run_root: Path
    device: str
    dry_run: bool
    prove_resume: bool
    replay: int | None


@dataclass(frozen=True)
class Args(Flags):
    """The checked command line: its flags, the configuration, and the files that it names."""

    config: Config
    resumed: Resumed | None
    pretrained: Pretrained | None
    may_substitute: bool  # `digits` where MNIST is absent and --dataset was not typed
    argv: list[str]


def parse_args(argv: list[str] | None, description: str) -> Args:
    """The preset, or the resumed run's configuration, with the typed flags on top; checked."""
    parser = own_flags(description)
    shown_preset = PRESETS.get(parser.wants_help(argv, "--preset"), PRESETS["mnist"])
    own, typed = parser.parse(argv, list(vars(shown_preset).values()))
    flags = Flags(**own)
    check_exclusive(flags, typed)

    resumed = find_checkpoint(flags.resume, flags.run_root)
    preset = PRESETS[flags.preset or "mnist"]
    stored = Config.from_dict(resumed.ckpt["config"]) if resumed else preset
    config = amend(stored, typed, resumed is not None)
    check(config, typed)
    if not resumed and "dataset" not in typed:
        check_meant(config)
    name = run_name(flags.name, resumed)
    check_replay(flags.replay, resumed)
    pretrained = find_pretrained(typed.get("init_from"), flags.run_root)
    return Args(
        **asdict(replace(flags, name=name)),
        config=config.override(init_from=str(pretrained.path)) if pretrained else config,
        resumed=resumed and changed_from(resumed, stored, config),
        pretrained=pretrained,
        may_substitute=not resumed and stored.data.dataset == "mnist" and "dataset" not in typed,
        argv=sys.argv[1:] if argv is None else argv,
    )


def own_flags(description: str) -> Parser:
    """The flags of ``Flags``; those of the configuration are added by Parser.parse."""
    parser = Parser(prog="train.py", description=f"{description}\n{presets()}")
    parser.add_argument("--preset", choices=PRESETS, help="settings to start from [mnist]")
    parser.add_argument(
        "--resume",
        metavar="PATH",
        help="checkpoint, version folder, name, latest; auto: latest intact, or start",
    )
    parser.add_argument("--name", help="name of the run, by which --ckpt and tables know it")
    parser.add_argument(
        "--run-root",
        type=typed_path,
        default="Logs_Checkpoints",
        help="folder of all runs' logs and checkpoints [%(default)s]",
    )
    parser.add_argument("--device", default="auto", help=f"{DEVICES} [auto]")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, layers, data, and what the run would take; exit",
    )
    parser.add_argument(
        "--prove-resume",
        action="store_true",
        help="train twice, once killed and resumed; compare the bits; exit",
    )
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="with --resume: recompute this step, print it; exit",
    )
    return parser


def check_exclusive(flags: Flags, typed: Mapping[str, Any]) -> None:
    """ConfigError for flags that exclude each other."""
    if flags.preset and flags.resume:
        raise ConfigError("--preset and --resume exclude each other: a run keeps its configuration")
    if flags.resume and "init_from" in typed:
        raise ConfigError("--init-from and --resume exclude each other: a run keeps its weights")


def changed_from(resumed: Resumed, stored: Config, config: Config) -> Resumed:
    """With what differs from the stored configuration. ConfigError for what must not."""
    changes = changed_settings(resumed.path, stored, config)
    reschedule = any(getattr(config.train, n) != getattr(stored.train, n) for n in SCHEDULE)
    return replace(resumed, changes=tuple(changes), reschedule=reschedule)


def amend(config: Config, typed: dict[str, Any], resuming: bool) -> Config:
    """The configuration with the typed flags, and what follows from them."""
    if resuming:  # what the data set filled in stays
        typed = {name: value for name, value in typed.items() if FROM_DATA.get(name) != value}
    if typed.keys() & {"max_steps", "max_minutes"} and "epochs" not in typed:
        typed = {**typed, "epochs": 0}
    if "alphas" in typed:
        typed = {"schedule": "manual", "timesteps": len(typed["alphas"]), **typed}
    config = config.override(**typed)
    if "steps" in typed:
        return config
    return config.override(steps=min(config.sample.steps, config.diffusion.most_steps))


def check(config: Config, typed: dict[str, Any]) -> None:
    """ConfigError for values out of range, and for flags that would have no effect."""
    config.check()
    check_sampling(config, typed)
    c = config.train
    if not (c.epochs or c.max_steps or c.max_minutes):
        raise ConfigError("--epochs 0 needs --max-steps or --max-minutes")
    if "precondition" in typed and config.diffusion.prediction != "x0":
        raise ConfigError("--precondition has no effect on --prediction eps and v")
    d = config.diffusion
    if typed.get("discrete_pixels") and d.prediction != "x0":
        raise ConfigError("--discrete-pixels has no effect on --prediction eps and v")
    if "log_snr" in typed and d.schedule != "log-snr":
        raise ConfigError(f"--log-snr has no effect on --schedule {d.schedule}: use log-snr")
    if "label_drop" in typed and config.model.num_classes == 0:
        raise ConfigError("--label-drop has no effect on a network without classes")
    if "score_images" in typed and not c.score_every:
        raise ConfigError("--score-images has no effect without --score-every")
    if "ema_power" in typed and not c.ema_decay:
        raise ConfigError("--ema-power has no effect on --ema-decay 0, which keeps no average")
    m = config.model  # with the least that the data may fill in
    known = config.override(
        num_classes=max(0, m.num_classes), image_channels=max(1, m.image_channels)
    )
    model, diffusion = build(known, "meta")  # shapes without memory
    if (left := diffusion.alpha_bar[-1].item()) > MOST_SIGNAL:
        print(
            f"warning: alpha_bar_T = {left:.3g} leaves the image visible in x_T, but sampling "
            "starts from noise alone: use smaller alphas, more of them, or --zero-terminal",
            file=sys.stderr,
        )
    parameters = sum(p.numel() for p in model.parameters())
    if 4 * COPIES * parameters > main_memory():
        raise ConfigError(
            f"{parameters:,} parameters do not fit into memory: use a smaller network"
        )


def check_meant(config: Config) -> None:
    """ConfigError for a data root of someone's own images, where no data set was named."""
    data = config.data
    if data.dataset != "folder" and holds_images(data.data_root):
        raise ConfigError(
            f"{data.data_root} does not hold {data.dataset}: to train on the images in it, type "
            "--dataset folder"
        )


def run_name(typed: str | None, resumed: Resumed | None) -> str:
    """The typed name, that of the resumed run, or none. RunNameError for one that cannot be."""
    if typed is not None:
        return check_name(typed)
    stored = resumed.ckpt.get("name") if resumed else None
    return check_name(stored) if stored else ""


def check_replay(step: int | None, resumed: Resumed | None) -> None:
    """ConfigError unless the step of --replay lies behind the checkpoint."""
    if step is None:
        return
    if resumed is None:
        raise ConfigError("--replay needs --resume PATH, the checkpoint to start from")
    if step <= resumed.ckpt["step"]:
        raise ConfigError(
            f"--replay must be a step after {resumed.ckpt['step']}, that of {resumed.path}, "
            f"got {step}"
        )


def data_options(config: Config) -> DataOptions:
    """The options of the configuration that concern the images."""
    return DataOptions(**asdict(config.data), image_channels=config.model.image_channels)


def load_data(args: Args, ranks: Ranks) -> tuple[Config, ImageSet, ImageSet]:
    """The configuration with what follows from the data filled in; training and test set."""
    config = args.config
    stored = args.resumed.ckpt.get("data", {}) if args.resumed else {}
    try:
        with ranks.first_before_others():  # which then find the images decoded
            check = partial(check_data, config)
            loading = Loading.of(
                stored,
                cache=args.run_root / CACHE,
                silent=ranks.silent,
                check=check,
                size_multiple=config.model.size_multiple,
            )
            options = data_options(config)
            train_set, test_set = load_splits(options, stored.get("fingerprint"), loading)
    except DataNotFound as e:
        if not args.may_substitute:
            raise
        print(SUBSTITUTE.format(reason=e), file=sys.stderr, flush=True)
        digits = config.override(dataset="digits")
        return load_data(replace(args, config=digits, may_substitute=False), ranks)
    config = config.override(
        image_channels=train_set.image_shape[0],
        image_size=train_set.image_shape[1:],
        num_classes=train_set.num_classes if config.model.num_classes else 0,
    )
    return config, train_set, test_set


def check_data(config: Config, classes: int, size: tuple[int, int]) -> None:
    """ConfigError where the network does not fit images of this many classes and this size."""
    if config.model.num_classes not in (-1, 0, classes):
        raise ConfigError(
            f"--num-classes must be 0 (none) or -1 (all {classes} of {config.data.dataset}), got "
            f"{config.model.num_classes}; --classes chooses some of them"
        )
    try:
        check_size(size, config.model.size_multiple)
    except ValueError as e:
        raise ConfigError(f"{e}; --image-size chooses another size") from e


def data_entry(train_set: ImageSet, test_set: ImageSet) -> dict[str, Any]:
    """The entry ``data`` of a checkpoint: what identifies the images of its run."""
    return {
        "source": train_set.source,
        "fingerprint": train_set.fingerprint,
        "digests": train_set.digests,
        "labels": None if train_set.digests is None else train_set.labels.cpu(),
        "held_out": test_set.digests,
        "class_names": list(train_set.class_names),
        "notes": list(train_set.notes),
    }


SUBSTITUTE = """
!!! MNIST is not here and cannot be downloaded. {reason}
!!! Training goes on with `digits` INSTEAD: digits drawn by this program, which are NOT MNIST.
!!! The run's configuration and checkpoints say so. To insist on MNIST: --dataset mnist
"""


def describe_run(state: TrainState) -> str:
    """What --dry-run prints besides the data: settings, layers, device."""
    options = state.config.options()
    settings = [folded(flag(f.name), shown(f, value), 26) for f, _, value in options]
    rows = layers(state.ema.module, state.config.image_shape)  # the EMA's copy is never compiled
    return "\n".join(
        [
            *settings,
            "",
            text(rows),
            "",
            folded("epoch", str(state.epochs), 26),
            folded("device", str(state.device), 26),
        ]
    )
