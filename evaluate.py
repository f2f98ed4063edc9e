"""How good a checkpoint is: its samples against real images, and the bound on its likelihood.

python evaluate.py --ckpt latest
python evaluate.py --ckpt latest --num 1000 --only scores
python evaluate.py --ckpt latest --samplers ddpm:50,ddim:20,dpmpp:10
"""

import re
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before the imports that take seconds
    sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves it out
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback of an import

import torch
from torch import Tensor
from tqdm import tqdm

from config import ConfigError, Parser, flag
from data import ImageSet, deaths_of_workers, load_splits
from diffusion import SAMPLERS, Sampler, generate
from evaluation import likelihood
from evaluation.features import LabeledImages, load_or_train
from evaluation.memorization import memorization
from evaluation.scores import score_all
from evaluation.tables import Row
from sample import CommonArgs, add_flags, choices, common, parse, share_of_images
from training.trained import TrainedModel, open_checkpoint
from utils import runs
from utils.devices import pick_device, tune
from utils.distributed import Ranks, joined
from utils.files import check_writable
from utils.images import to_uint8
from utils.process import exit_code

SECTIONS = ("scores", "memory", "held-out", "bits")
MAX_REAL = 60_000  # real images in memory
MIN_TEST = 1_000  # test images of the memorization baseline, at least


@dataclass(frozen=True)
class Args(CommonArgs):
    """The checked command line."""

    samplers: dict[str, Sampler]  # by "name:steps"; the checkpoint's own, or the typed one, first
    only: tuple[str, ...]  # of SECTIONS
    all_terms: bool
    folder: Path  # of metrics.json and nearest_pairs.png


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and the real images it is compared with."""

    model: TrainedModel
    args: Args
    train_set: ImageSet
    train: LabeledImages
    test: LabeledImages


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed, 2: bad input, 128 + N: stopped by signal N."""
    return exit_code(
        "evaluate.py", lambda: run(parse_args(argv)), "interrupted; metrics.json is unchanged"
    )


def run(args: Args) -> int:
    """Run on one device, or as one rank of a torchrun job."""
    device = pick_device(args.device)
    tune(device)
    with deaths_of_workers(), joined(device) as ranks:
        evaluate(args, device, ranks)
    return 0


def evaluate(args: Args, device: torch.device, ranks: Ranks) -> None:
    """Compute the selected metrics, print them, write metrics.json.

    Each rank draws its share of the samples; rank 0 does everything else.
    """
    if ranks.first:
        check_output(args.folder)
    opened, machine = args.opened, runs.environment(device)
    fingerprint = opened.content.get("data", {}).get("fingerprint")
    train_set, test_set = load_splits(**asdict(opened.config.data), fingerprint=fingerprint)
    model = opened.model(device)
    train, test = (LabeledImages.of(part.to(device), MAX_REAL) for part in (train_set, test_set))
    e = Evaluation(model, args, train_set, train, test)
    print(f"{model.path}: step {model.step}; data: {train_set.source}", flush=True)
    needed = "bits" in args.only or model.config.sample.variance == "optimal"
    if needed and model.diffusion.x0_error is None:
        likelihood.measure_x0_errors(model, train, model.config.sample.clip)
    from_samples = {"scores", "memory"} & set(args.only)
    has_features = train_set.num_classes > 1
    if ranks.first and from_samples and has_features and not extractor_path(e).exists():
        check_output(extractor_path(e).parent)
    samples = sample_all(e, ranks) if from_samples and has_features else {}
    if not ranks.first:
        return

    found: dict[str, Any] = {"checkpoint": str(model.path), "step": model.step}
    found |= {"num": args.num, "seed": args.seed, "sample": asdict(model.config.sample)}
    args.folder.mkdir(parents=True, exist_ok=True)
    if samples:
        found |= compare(e, samples)
    elif from_samples:
        print(f"no scores, no memorization: {train_set.name} has no classes to learn features from")
    if "held-out" in args.only:
        found["held_out"] = likelihood.held_out(model, test, model.config.diffusion.loss)
    if "bits" in args.only:
        first = next(iter(args.samplers.values()))
        found["bits_per_dim"] = likelihood.bits_per_dim(model, first, train, test, args.all_terms)
    found["environment"] = machine
    runs.write_json(args.folder / "metrics.json", found)
    print(f"\n{args.folder / 'metrics.json'} (overwritten)")


def check_output(folder: Path) -> None:
    """ConfigError where nothing can be written; called before anything is computed."""
    try:
        check_writable(folder)
    except OSError as e:
        raise ConfigError(f"cannot write to {folder}: {e.strerror}: choose another --out") from e


def sample_all(e: Evaluation, ranks: Ranks) -> dict[str, tuple[LabeledImages, Row]]:
    """The samples of every sampler with their labels, and what they cost."""
    num, conditional = e.args.num, e.model.num_classes > 0
    y = proportional_labels(e.train.labels, num) if conditional else None
    samples = {}
    for name, sampler in e.args.samplers.items():
        print(f"drawing {num} images: {name}", flush=True)
        x, cost = timed_samples(e.model, e.args, sampler, y, ranks)
        labels = torch.zeros(len(x), dtype=torch.int64) if y is None else y[: len(x)]
        samples[name] = LabeledImages(x, labels).to(e.train.images.device), cost
    return samples


def timed_samples(
    model: TrainedModel, args: Args, sampler: Sampler, y: Tensor | None, ranks: Ranks
) -> tuple[Tensor, Row]:
    """args.num samples as uint8 (N, C, H, W), and what they cost.

    The cost: steps, network evaluations, and seconds per 1000 images. Each rank draws its share;
    the first one gets them all.
    """
    own, evaluations, started = share_of_images(args.num, ranks), 0, time.monotonic()

    def counted(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        nonlocal evaluations
        evaluations += len(x)
        return model.network(x, t, y)

    counting, labels = replace(model, network=counted), None if y is None else y[own.to(y.device)]
    options = {"seed": args.seed, "batch_size": args.batch_size}
    total = len(own) * sampler.steps
    with tqdm(total=total, desc="samples", unit="step", disable=ranks.no_bar) as bar:
        (x_0,) = generate(counting, sampler, own, labels, **options, progress=bar.update)
    samples = ranks.gather(to_uint8(x_0))
    seconds = (time.monotonic() - started) * 1000 / args.num
    return samples, {"steps": sampler.steps, "nfe": evaluations // len(own), "s/1000": seconds}


def proportional_labels(labels: Tensor, n: int) -> Tensor:
    """n labels (n,) with the class proportions of ``labels``, sorted."""
    at = (torch.arange(n, device=labels.device) + 0.5) * len(labels) / n
    return labels.sort().values[at.long()]


def compare(e: Evaluation, samples: dict[str, tuple[LabeledImages, Row]]) -> dict[str, Any]:
    """The scores of samples beside those of real images, and memorization."""
    extractor = load_or_train(e.train, e.test, e.train_set.num_classes, extractor_path(e))
    accuracy = f"{100 * extractor.accuracy:.2f} %"
    print(f"classifier: {accuracy} of the test set; {extractor.source}", flush=True)
    train, test = (extractor.extract(images) for images in (e.train, e.test))
    features = {name: extractor.extract(images) for name, (images, _) in samples.items()}
    found: dict[str, Any] = {"classifier_accuracy": extractor.accuracy}
    if "scores" in e.args.only:
        costs = {name: cost for name, (_, cost) in samples.items()}
        classes = e.train_set.num_classes
        found |= score_all(features, costs, train, test, classes, e.model.num_classes > 0)
    if "memory" in e.args.only:
        baseline = test[: max(e.args.num, MIN_TEST)]
        first = next(iter(features.values()))
        pairs = e.args.folder / "nearest_pairs.png"
        found["memorization"] = memorization(first, train, baseline, pairs)
    return found


def extractor_path(e: Evaluation) -> Path:
    """Where the feature extractor is cached: under the run root, by the content of the images.

    With --out it is stored there, where the run root has none.
    """
    own, logs = e.args.folder, runs.logs_of(e.model.path)
    root = logs.parent.parent if runs.is_in_run(e.model.path) else logs
    size, images = e.model.config.data.image_size, e.train_set
    name = Path("classifiers", f"{images.name}_{size}_{images.fingerprint[:16]}.pt")
    return root / name if own == logs or (root / name).exists() else own / name


def parse_args(argv: list[str] | None) -> Args:
    """The command line, checked against the checkpoint it names."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add_flags(parser, num=5000)
    parser.add_argument("--data-root", help="folder of the images [as in training]")
    parser.add_argument("--out", type=Path, help="folder to write to [the run's logs]")
    parser.add_argument("--samplers", default="", help="additional samplers: ddpm:50,dpmpp:10")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="any of %(default)s [all of them]"
    )
    parser.add_argument(
        "--all-terms",
        action="store_true",
        help="evaluate every KL term of every image [an importance sample]",
    )
    own, typed = parse(parser, argv)
    only = choices("only", own["only"], SECTIONS)
    for name, part in (("samplers", "scores"), ("all_terms", "bits")):
        if own[name] and part not in only:
            raise ConfigError(f"{flag(name)} has no effect on --only {','.join(only)}")
    if own["data_root"] is not None:
        typed["data_root"] = own["data_root"]
    opened = open_checkpoint(own["ckpt"], own["run_root"], typed)
    sampler = Sampler(**asdict(opened.config.sample))
    samplers = {f"{sampler.sampler}:{sampler.steps}": sampler}
    for spec in filter(None, own["samplers"].split(",")):
        name, _, steps = spec.partition(":")
        if name not in SAMPLERS or not re.fullmatch(r"[0-9]{1,6}", steps):
            raise ConfigError(f"--samplers takes ddpm:50,ddim:20 and the like, got {spec!r}")
        config = opened.config.override(sampler=name, steps=int(steps))
        config.check_sampling(())
        samplers[spec] = Sampler(**asdict(config.sample))
    return Args(
        **common(opened, own),
        samplers=samplers,
        only=only,
        all_terms=own["all_terms"],
        folder=own["out"] or runs.logs_of(opened.path),
    )


if __name__ == "__main__":
    sys.exit(main())
