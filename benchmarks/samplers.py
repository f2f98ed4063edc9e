"""Every sampler at 5 to 50 network evaluations: distance of its samples beside the floor.

python -m benchmarks.samplers --ckpt latest --data-root datasets    # goes on where it was stopped
python -m benchmarks.samplers --ckpt mine --ckpt latest --num 5000

Of each network and row: the most steps that so many evaluations allow, with the network's own
guidance unless the row says otherwise. The feature extractor is that of evaluate.py, which is
trained where its folder lacks it.
Writes samplers.json, and one picture a network: Fréchet distance against evaluations.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.trials import RESULTS
from config import Parser, check_range, typed_path
from data import Loading, load_splits
from diffusion import GaussianDiffusion, Sampler, generate_with_progress
from evaluation.charts import Chart, Series, save_charts
from evaluation.features import (
    MAX_REAL,
    FeatureExtractor,
    Features,
    LabeledImages,
    cache_path,
    labels_or_zeros,
    load_or_train,
)
from evaluation.floor import Floor, proportional_labels
from evaluation.scores import floor_rows, over_draws, score
from evaluation.tables import Row
from evaluation.tasks import task_of
from training.setup import CLASSIFIERS, data_options
from training.trained import RUN_ROOT, TrainedModel, open_checkpoint
from utils.devices import pick_device, tune
from utils.images import to_uint8
from utils.runs import environment, write_json

CURVES = 7  # of a chart, beside the floor
BUDGETS = (5, 8, 10, 15, 20, 30, 50)  # network evaluations
ROWS: dict[str, dict[str, Any]] = {
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim"},
    "ddim, restart": {"sampler": "ddim", "restart": 1},
    "heun": {"sampler": "heun"},
    "heun, karras": {"sampler": "heun", "spacing": "karras"},
    "heun, karras, churn": {"sampler": "heun", "spacing": "karras", "churn": 5.0},
    "dpmpp": {"sampler": "dpmpp"},
    "dpmpp, log-snr": {"sampler": "dpmpp", "spacing": "log-snr"},
    "dpmpp, karras": {"sampler": "dpmpp", "spacing": "karras"},
    "dpmpp, eta 1": {"sampler": "dpmpp", "eta": 1.0},
    "unipc": {"sampler": "unipc"},
    "unipc, order 3": {"sampler": "unipc", "order": 3},
    "unipc, log-snr": {"sampler": "unipc", "spacing": "log-snr"},
    "ddpm, no guidance": {"sampler": "ddpm", "guidance": 1.0},
    "dpmpp, no guidance": {"sampler": "dpmpp", "guidance": 1.0},
    "unipc, log-snr, no guidance": {"sampler": "unipc", "spacing": "log-snr", "guidance": 1.0},
}


@dataclass(frozen=True)
class Args:
    """The command line."""

    ckpt: list[str]
    run_root: Path
    data_root: str | None
    num: int
    seed: int
    device: str
    budgets: list[int]
    rows: list[str]
    out: Path


@dataclass(frozen=True)
class Subject:
    """A network, the classifier of its images, and what its samples are compared with."""

    model: TrainedModel
    extractor: FeatureExtractor
    floor: Floor
    real: tuple[Features, Features]  # training and test images
    labels: Tensor | None

    @property
    def conditional(self) -> bool:
        return self.labels is not None


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows that are missing; print them all, and draw them."""
    args = parse_args(argv)
    path = args.out / "samplers.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    args.out.mkdir(parents=True, exist_ok=True)
    for where in args.ckpt:
        subject = opened(where, args)
        name = f"{subject.model.path.parent.name}, step {subject.model.step}, {args.num} images"
        own = found.setdefault(name, {"floor": floor_of(subject), "rows": {}})
        own["environment"] = environment(subject.model.device)
        for row in args.rows:
            for budget in args.budgets:
                key = f"{row}: {budget}"
                if key not in own["rows"]:
                    own["rows"][key] = measured(subject, ROWS[row], budget, args)
                    write_json(path, found)
                print(line(key, own["rows"][key]), flush=True)
        picture = args.out / f"samplers_{subject.model.path.parent.name}.png"
        save_charts(charts(name, own), picture)
        print(picture)


def opened(where: str, args: Args) -> Subject:
    """The checkpoint with the images it was trained on."""
    typed = {} if args.data_root is None else {"data_root": args.data_root}
    checkpoint, device = open_checkpoint(where, args.run_root, typed), pick_device(args.device)
    tune(device)
    stored = checkpoint.content.get("data", {})
    options = data_options(checkpoint.config)
    sets = load_splits(options, stored.get("fingerprint"), Loading.of(stored))
    model, task = checkpoint.model(device), task_of(sets[0])
    train, test = (LabeledImages.of(part.to(device), MAX_REAL) for part in sets)
    cached = cache_path(args.run_root / CLASSIFIERS, sets[0], task)
    extractor = load_or_train(train, test, task, cached)
    print(extractor.summary, flush=True)
    real = extractor.extract(train), extractor.extract(test)
    labels = proportional_labels(train.labels, args.num) if model.num_classes else None
    floor = Floor.of(labels_or_zeros(labels, args.num), real, labels is not None)
    return Subject(model, extractor, floor, real, labels)


def floor_of(subject: Subject) -> dict[str, Row]:
    """The mean scores of as many real images."""
    rows = floor_rows(subject.floor, *subject.real)
    return {name: over_draws(torch.mean, own) for name, own in rows.items() if own}


def measured(
    subject: Subject, settings: dict[str, Any], budget: int, args: Args
) -> dict[str, Any] | None:
    """The scores of the samples, steps and evaluations; None where a step would cost more."""
    sampler = affordable(subject, settings, budget)
    if sampler is None:
        return None
    (x_0,) = generate_with_progress(
        "sampling", subject.model, sampler, range(args.num), subject.labels, seed=args.seed
    )
    labels = labels_or_zeros(subject.labels, args.num)
    images = LabeledImages(to_uint8(x_0), labels).to(subject.model.device)
    row = score(subject.extractor.extract(images), subject.floor.reference, subject.conditional)
    evaluations = cost(sampler, subject.model.diffusion, subject.conditional)
    return {"steps": sampler.steps, "nfe": evaluations, "seed": args.seed} | row


def affordable(subject: Subject, settings: dict[str, Any], budget: int) -> Sampler | None:
    """With the most steps that this many network evaluations allow; None if there are none."""
    diffusion, found = subject.model.diffusion, None
    stored = asdict(subject.model.config.sample) | {"variance": "posterior"}
    plain = Sampler(**stored | {"spacing": "t", "eta": 0.0, "churn": 0.0, "restart": 0} | settings)
    for steps in range(1, min(budget, diffusion.count_trained(diffusion.timesteps)) + 1):
        sampler = replace(plain, steps=steps)
        try:
            evaluations = cost(sampler, diffusion, subject.conditional)
        except ValueError:  # too few steps for a restart or churn
            continue
        found = sampler if evaluations <= budget else found
    return found


def cost(sampler: Sampler, diffusion: GaussianDiffusion, labeled: bool) -> int:
    """Network evaluations of an image. ValueErrors of ``sampler.grid``."""
    return sum(sampler.evaluations(diffusion, sampler.grid(diffusion), labeled))


def line(key: str, row: dict[str, Any] | None) -> str:
    """A row of Markdown."""
    if row is None:
        return f"| {key} | |"
    values = (f"{name} {value:.4g}" for name, value in row.items())
    return f"| {key} | {' | '.join(values)} |"


def charts(title: str, found: dict[str, Any]) -> list[list[Chart]]:
    """Of a network: a line of charts for each score, against network evaluations.

    At most CURVES samplers in one chart, as more have no colours of their own, on equal axes.
    """
    rows = {key: row for key, row in found["rows"].items() if row}
    starts = ("fid_", "precision", "recall", "accuracy")
    names = [name for name in next(iter(rows.values()), {}) if name.startswith(starts)]
    ends = sorted({row["nfe"] for row in rows.values()})
    made = []
    for name in names:
        curves: dict[str, list[tuple[float, float]]] = {}
        for key, row in rows.items():
            curves.setdefault(key.rpartition(":")[0], []).append((row["nfe"], row[name]))
        samplers = [Series(own, sorted(dict(points).items())) for own, points in curves.items()]
        floors = [
            Series(real, [(ends[0], own[name]), (ends[-1], own[name])])
            for real, own in found["floor"].items()
            if name in own
        ]
        reach = tuple(value for own in (*samplers, *floors) for _, value in own.points)
        scale = "log" if name.startswith("fid_") else "linear"
        axes = {"x_reach": (ends[0], ends[-1]), "y_reach": reach, "scale": scale}
        parts = [samplers[n : n + CURVES] for n in range(0, len(samplers), CURVES)]
        made.append(
            [
                Chart(f"{name}: {title}", "network evaluations", [*part, *floors], **axes)
                for part in parts
            ]
        )
    return made


def parse_args(argv: Sequence[str] | None) -> Args:
    """The command line."""
    parser = Parser(prog="samplers", description=__doc__)
    parser.add_argument("--ckpt", action="append", required=True, help="may be given several times")
    parser.add_argument("--run-root", type=typed_path, default=RUN_ROOT, help="[%(default)s]")
    parser.add_argument("--data-root", help="folder of the images [as in training]")
    parser.add_argument("--num", type=int, default=5000, help="samples of each row [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--device", default="auto", help="[%(default)s]")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=list(BUDGETS), help="[%(default)s]"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="[all]")
    parser.add_argument("--out", type=typed_path, default=RESULTS, help="folder [%(default)s]")
    own, _ = parser.parse(argv, [])
    check_range("--num", own["num"], 16, 10**6)
    return Args(**own)


if __name__ == "__main__":
    main()
