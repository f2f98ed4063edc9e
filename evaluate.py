"""How good a checkpoint is: its samples against real images, and the bound on its likelihood.

python evaluate.py --ckpt latest
python evaluate.py --ckpt latest --num 1000 --only scores
python evaluate.py --ckpt latest --samplers ddpm:50,ddim:20,dpmpp:10
python evaluate.py --compare my-first my-second
"""

import os
import signal
import sys

if __name__ == "__main__":  # before all other imports, which take seconds
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback of an import
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config, ConfigError, Parser, flag, typed_path
from data import ImageSet
from diffusion import SAMPLERS, Sampler, generate_with_progress
from evaluation import likelihood
from evaluation.compare import compare_runs, folder_name, read_runs
from evaluation.features import (
    MAX_REAL,
    FeatureExtractor,
    Features,
    LabeledImages,
    cache_path,
    labels_or_zeros,
    load_or_train,
)
from evaluation.floor import proportional_labels
from evaluation.memorization import memorization
from evaluation.metrics_file import Section, write_sections
from evaluation.report import write_report
from evaluation.run_folder import RunFolder
from evaluation.scores import score_all
from evaluation.tables import Row
from evaluation.tasks import task_of
from sample import (
    CKPT,
    CommonArgs,
    add_flags,
    choices,
    cost_of,
    describe_sampling,
    parse,
    share_of_images,
)
from training.build import check_sampling
from training.run_data import load_run_data
from training.setup import CLASSIFIERS
from training.trained import OpenCheckpoint, TrainedModel, open_checkpoint
from utils import runs
from utils.devices import pick_device, tune
from utils.distributed import Ranks, joined
from utils.files import check_writable
from utils.images import to_uint8
from utils.process import exit_code
from utils.pytree import digest

SECTIONS = ("scores", "memory", "held-out", "bits")
REPORT = "report"  # alone: nothing is measured
MIN_TEST = 1_000  # test images of the memorization baseline, at least


@dataclass(frozen=True)
class Args(CommonArgs):
    """The command line as it was typed, and what follows from it."""

    compare: list[str] | None  # runs: then nothing is evaluated
    data_root: str | None
    skip_damaged: bool
    out: Path | None
    samplers: str
    only: str
    all_terms: bool
    inception: Path | None  # file of the weights
    report: bool

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """Those of SECTIONS to measure; none for the report alone."""
        chosen = choices("only", self.only, (*SECTIONS, REPORT))
        return tuple(section for section in chosen if section != REPORT)

    @property
    def reports(self) -> bool:
        """Whether the run's report.html is written."""
        return self.report or REPORT in self.only.split(",")

    @cached_property
    def opened(self) -> OpenCheckpoint:
        """The checkpoint with the typed settings. Raises CheckpointError, ConfigError."""
        data = {"data_root": self.data_root, "skip_damaged": self.skip_damaged or None}
        typed = {name: value for name, value in data.items() if value is not None}
        return open_checkpoint(self.ckpt, self.run_root, self.settings | typed)

    @cached_property
    def samplers_by_name(self) -> dict[str, Sampler]:
        """By "name:steps"; the checkpoint's own, or the typed one, first."""
        config = self.opened.config
        first = Sampler(**asdict(config.sample))
        specs = filter(None, self.samplers.split(","))
        more = {spec: sampler_of(spec, config) for spec in specs}
        return {f"{first.sampler}:{first.steps}": first} | more

    @property
    def folder(self) -> Path:
        """Of metrics.json and nearest_pairs.png."""
        return self.out or runs.logs_of(self.opened.path)

    @cached_property
    def compared(self) -> dict[str, RunFolder]:
        """The runs of --compare. Raises InputError."""
        return read_runs([runs.find_logs(word, self.run_root) for word in self.compare])

    @property
    def comparison_folder(self) -> Path:
        """Where the comparison is written."""
        return self.out or self.run_root / "comparisons" / folder_name(self.compared)


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and the real images it is compared with."""

    model: TrainedModel
    args: Args
    train_set: ImageSet
    train: LabeledImages
    test: LabeledImages
    inception: Callable[[Tensor], Tensor] | None  # uint8 images -> features


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed, 2: bad input, 128 + N: stopped by signal N."""
    return exit_code(
        "evaluate.py", lambda: run(parse_args(argv)), "interrupted; metrics.json is unchanged"
    )


def run(args: Args) -> int:
    """Compare runs, write a report alone, or evaluate: on one device or as a rank of torchrun."""
    if args.compare:
        compare_runs(args.compared, args.comparison_folder)
    elif not args.sections:
        print(write_report(args.folder))
    else:
        device = pick_device(args.device)
        tune(device)
        with joined(device) as ranks:
            evaluate(args, device, ranks)
    return 0


def evaluate(args: Args, device: torch.device, ranks: Ranks) -> None:
    """Compute the selected metrics, print them, write metrics.json.

    Each rank draws its share of the samples; rank 0 does everything else.
    """
    if ranks.first:
        check_output(args.folder)
    opened = args.opened
    with ranks.first_before_others():
        train_set, test_set = load_run_data(opened, ranks.silent)
    from_samples = {"scores", "memory"} & set(args.sections)
    extractor = extractor_path(args, train_set)
    if ranks.first and from_samples and not extractor.exists():
        check_output(extractor.parent)
    weights = digest(opened.content["ema"])  # before the model takes them out
    model = opened.model(device)
    train, test = (LabeledImages.of(part.to(device), MAX_REAL) for part in (train_set, test_set))
    first = next(iter(args.samplers_by_name.values()))
    drawn = f"{args.num:,} images, seed {args.seed}; data: {train_set.source}"
    print("\n".join([f"{describe_sampling(model, first)}; {drawn}", *train_set.notes]), flush=True)
    needed = "bits" in args.sections or model.config.sample.variance == "optimal"
    if needed and model.x0_error is None:
        x0_error = likelihood.measured_x0_error(model, train, model.config.sample.clip)
        model = replace(model, x0_error=x0_error)
    inception = inception_features(args.inception, train_set, device)
    e = Evaluation(model, args, train_set, train, test, inception)
    of = origin(e, weights)  # of the code that runs, not a later one
    samples = sample_all(e, ranks) if from_samples else {}
    if not ranks.first:
        return

    args.folder.mkdir(parents=True, exist_ok=True)
    found = measure_samples(e, samples) if samples else {}
    if {"held-out", "bits"} & set(args.sections):
        found |= likelihoods(e)
    write_sections(args.folder / "metrics.json", found, of)
    if args.reports:
        print(write_report(args.folder))


def check_output(folder: Path) -> None:
    """ConfigError where nothing can be written; called before anything is computed."""
    try:
        check_writable(folder)
    except OSError as e:
        raise ConfigError(f"cannot write to {folder}: {e.strerror}: choose another --out") from e


def origin(e: Evaluation, weights: str) -> dict[str, Any]:
    """What the sections of this call are of; weights: the hash of the EMA weights."""
    args, model = e.args, e.model
    of = {"checkpoint": str(model.path), "step": model.step, "weights": weights}
    of |= {"num": args.num, "seed": args.seed, "sample": asdict(model.config.sample)}
    return of | {"environment": runs.environment(model.device)}


def inception_features(
    path: Path | None, images: ImageSet, device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """The network of --inception. InputError for another file, or images that it cannot take."""
    if path is None:
        return None
    if (channels := images.image_shape[0]) not in (1, 3):
        raise ConfigError(f"--inception takes grey or RGB images, these have {channels} channels")
    from evaluation import inception  # torchvision takes seconds

    return partial(inception.features, inception.load(path).to(device))


def sample_all(e: Evaluation, ranks: Ranks) -> dict[str, tuple[LabeledImages, Row]]:
    """The samples of every sampler with their labels, and what they cost."""
    num, conditional = e.args.num, e.model.num_classes > 0
    y = proportional_labels(e.train.labels, num) if conditional else None
    samples = {}
    for name, sampler in e.args.samplers_by_name.items():
        print(f"drawing {num} images: {name}", flush=True)
        x, cost = timed_samples(e.model, e.args, sampler, y, ranks)
        labels = labels_or_zeros(y, len(x))[: len(x)]  # a rank behind the first has its share
        samples[name] = LabeledImages(x, labels).to(e.train.images.device), cost
    return samples


def timed_samples(
    model: TrainedModel, args: Args, sampler: Sampler, y: Tensor | None, ranks: Ranks
) -> tuple[Tensor, Row]:
    """args.num samples as uint8 (N, C, H, W), and what they cost.

    The cost: steps, network evaluations, and seconds per 1000 images. Each rank draws its share;
    the first one gets them all.
    """
    own, started = share_of_images(args.num, ranks), time.monotonic()
    (x_0,) = generate_with_progress(
        "sampling",
        model,
        sampler,
        own,
        None if y is None else y[own.to(y.device)],
        seed=args.seed,
        batch_size=args.batch_size,
        silent=ranks.silent,
    )
    samples = ranks.gather(to_uint8(x_0))
    seconds = (time.monotonic() - started) * 1000 / args.num
    steps, evaluations = cost_of(model, sampler)
    return samples, {"steps": steps, "nfe": evaluations, "s/1000": seconds}


def measure_samples(
    e: Evaluation, samples: dict[str, tuple[LabeledImages, Row]]
) -> dict[str, Section]:
    """The scores of samples beside those of real images, and memorization."""
    task = task_of(e.train_set)
    extractor = load_or_train(e.train, e.test, task, extractor_path(e.args, e.train_set))
    print(extractor.summary, flush=True)
    train, test = (extract(e, extractor, images) for images in (e.train, e.test))
    features = {name: extract(e, extractor, images) for name, (images, _) in samples.items()}
    classifier = {"task": task.name, "accuracy": extractor.accuracy}
    found: dict[str, Section] = {}
    if "scores" in e.args.sections:
        costs = {name: cost for name, (_, cost) in samples.items()}
        scores = score_all(features, costs, train, test, e.model.num_classes > 0)
        found["scores"] = {"classifier": classifier} | scores
    if "memory" in e.args.sections:
        baseline = test[: max(e.args.num, MIN_TEST)]
        first = next(iter(features.values()))
        memory = memorization(first, train, baseline, e.args.folder / "nearest_pairs.png")
        found["memorization"] = {"classifier": classifier} | memory
    return found


def extract(e: Evaluation, extractor: FeatureExtractor, images: LabeledImages) -> Features:
    """The features of the classifier and, with --inception, those of that network."""
    found = extractor.extract(images)
    return found if e.inception is None else replace(found, inception=e.inception(images.images))


def extractor_path(args: Args, train_set: ImageSet) -> Path:
    """Where the feature extractor is cached: under the run root, by the content of the images.

    With --out it is stored there, where the run root has none.
    """
    own, ckpt = args.folder, args.opened.path
    logs = runs.logs_of(ckpt)
    root = logs.parent.parent if runs.is_in_run(ckpt) else logs
    path = cache_path(root / CLASSIFIERS, train_set, task_of(train_set))
    return path if own == logs or path.exists() else own / CLASSIFIERS / path.name


def likelihoods(e: Evaluation) -> dict[str, Any]:
    """The held-out loss and the bound of the test images, where there are any."""
    if not len(e.test):
        print(f"no held-out loss, no bits per dimension: {e.train_set.name} has no test images")
        return {}
    found = {}
    if "held-out" in e.args.sections:
        found["held_out"] = likelihood.held_out_loss(e.model, e.test, e.model.config.diffusion.loss)
    if "bits" in e.args.sections:
        first = next(iter(e.args.samplers_by_name.values()))
        found["bits_per_dim"] = likelihood.bits_per_dim(
            e.model, first, e.train, e.test, e.args.all_terms
        )
    return found


def sampler_of(spec: str, config: Config) -> Sampler:
    """The sampler of ``ddim:20`` and the like, other settings as configured. ConfigError."""
    name, _, steps = spec.partition(":")
    if name not in SAMPLERS or not re.fullmatch(r"[0-9]{1,6}", steps):
        raise ConfigError(f"--samplers takes ddpm:50,ddim:20 and the like, got {spec!r}")
    config = config.override(sampler=name, steps=int(steps))
    check_sampling(config, ())
    return Sampler(**asdict(config.sample))


def parse_args(argv: list[str] | None) -> Args:
    """The command line, checked against the checkpoint or the runs it names."""
    own, typed = parse(flags(), argv)
    args = Args(**own, settings=typed)
    if args.compare:
        check_comparison(args)
    else:
        check(args)
    return args


def flags() -> Parser:
    """The script's own flags."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--ckpt", help=CKPT)
    subject.add_argument(
        "--compare",
        nargs="+",
        metavar="RUN",
        help="compare runs, by name, number or path: settings, curves, scores",
    )
    add_flags(parser, num=5000)
    parser.add_argument("--data-root", help="folder of the images [as in training]")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out damaged files")
    parser.add_argument("--out", type=typed_path, help="folder to write to [the run's logs]")
    parser.add_argument("--samplers", default="", help="additional samplers: ddpm:50,dpmpp:10")
    parser.add_argument(
        "--only",
        default=",".join(SECTIONS),
        help="any of %(default)s [all of them]; report: only write report.html",
    )
    parser.add_argument(
        "--all-terms",
        action="store_true",
        help="evaluate every KL term of every image [an importance sample]",
    )
    parser.add_argument(
        "--inception", type=typed_path, help="file of the Inception weights, for the standard FID"
    )
    parser.add_argument("--report", action="store_true", help="then write the run's report.html")
    return parser


def check(args: Args) -> None:
    """InputError for a checkpoint or settings that cannot be, and for flags without effect."""
    only, path = ",".join(args.sections) or REPORT, args.opened.path
    for name, section in (("samplers", "scores"), ("all_terms", "bits"), ("inception", "scores")):
        if getattr(args, name) and section not in args.sections:
            raise ConfigError(f"{flag(name)} has no effect on --only {only}")
    _ = args.samplers_by_name  # refuses those that are not known
    if args.reports and args.out:
        raise ConfigError("--report shows the metrics in the run's folder: leave out --out")
    if args.reports and not runs.is_in_run(path):
        raise ConfigError(f"--report needs the folder of a run, which {path} does not lie in")


def check_comparison(args: Args) -> None:
    """InputError for runs that do not compare, and for flags that have no effect on --compare."""
    parser, own = flags(), {"compare", "run_root", "out", "settings"}
    names = {f.name for f in fields(args)} - own
    idle = {name for name in names if getattr(args, name) != parser.get_default(name)}
    if idle := sorted(idle | args.settings.keys()):
        raise ConfigError(f"{', '.join(map(flag, idle))}: no effect on --compare")
    check_output(args.comparison_folder)


if __name__ == "__main__":
    sys.exit(main())
