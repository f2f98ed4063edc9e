"""Validation: held-out loss of the averaged and the raw weights, samples from fixed noise."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from config import Config
from data import ImageSet
from diffusion import (
    Denoiser,
    DiffusionModel,
    HeldOut,
    Sampler,
    evenly_spaced,
    generate_with_progress,
    held_out_losses,
    repeated,
    x0_errors,
)
from diffusion.held_out import LEAST
from training.state import TrainState
from training.validation_schedule import POINTS, ROWS, Size, grid_of
from utils.devices import autocast
from utils.progress import Progress
from utils.seeding import permutation

FRAMES = 51  # states of the reverse process that are kept, at most


@dataclass(frozen=True)
class Preview:
    """Which samples a validation draws: in a row those of one class, as far as there are any.

    indices: of their noise, (N,); image i is the same whatever else is drawn.
    """

    indices: tuple[int, ...]
    labels: Tensor | None  # (N,)
    columns: int
    names: tuple[str, ...]  # of each row

    @classmethod
    def of(cls, config: Config, class_names: Sequence[str], size: Size) -> "Preview":
        """The first rows and columns of the whole grid; more than MOST_ROWS classes: some."""
        classes, (rows, columns) = config.model.num_classes, grid_of(config)
        shown, drawn = min(rows, size.rows), min(columns, size.columns)
        indices = tuple(r * columns + c for r in range(shown) for c in range(drawn))
        if not classes:
            return cls(indices, None, drawn, ())
        of_row = [r * classes // rows for r in range(shown)]
        names = tuple(class_names[label] for label in of_row)
        return cls(indices, torch.tensor(of_row).repeat_interleave(drawn), drawn, names)

    @property
    def first_of_each(self) -> list[int]:
        """Positions of one sample of each class, at most ROWS: those of the strip."""
        if self.labels is None:
            return list(range(min(ROWS, len(self.indices))))
        labels = self.labels.tolist()
        rising = sorted(range(len(labels)), key=labels.__getitem__)
        return [next(own) for _, own in groupby(rising, labels.__getitem__)][:ROWS]


@dataclass(frozen=True)
class HeldOutLosses:
    """The losses at held-out points, (N,), in the order of HeldOut.low_discrepancy_order."""

    t: Tensor
    ema: Tensor  # of the EMA weights
    raw: Tensor  # of the weights themselves

    @property
    def by_quartile(self) -> list[float]:
        """Those of the EMA weights, in each quarter of 1 ... T."""
        rising = self.ema[self.t.argsort(stable=True)]
        return [part.mean().item() for part in rising.tensor_split(4)]


class Validation:
    """The fixed images on which a run is validated."""

    def __init__(self, state: TrainState, train_set: ImageSet, test_set: ImageSet) -> None:
        self.train_set, self.points = train_set, None
        if len(test_set):
            images = subset(test_set, POINTS)
            self.points = HeldOut.of(*images, state.diffusion).low_discrepancy_order()

    def measure(self, state: TrainState) -> HeldOutLosses | None:
        """The held-out losses, which update state.best; None without test images.

        At the end of the run, or where samples need them now, also the network's errors of x_0.
        """
        size, sample = self.size(state), state.config.sample
        errors = state.finished or sample.variance == "optimal"
        points = self.points and self.points[: size.points]
        total = (2 * len(points.t) if points else 0) + (size.points if errors else 0)
        state.x0_error, losses = None, None
        with Progress("validating", total, "images", silent=state.ranks.silent) as progress:
            if points:
                with autocast(state.device, state.config.train.precision):
                    own = (
                        losses_of(model, state, points, progress.update)
                        for model in (state.ema, state.model)
                    )
                    losses = HeldOutLosses(points.t, *own)
                update_best(state, losses.ema)
            if errors:  # in float32, as sample.py samples
                images = subset(self.train_set, size.points)
                clip, shown = sample.clip, progress.update
                denoiser = Denoiser(state.ema, state.diffusion, clip, progress=shown)
                least = min(LEAST, size.points)
                state.x0_error = x0_errors(denoiser, repeated(*images, least))
        return losses

    def draw(self, state: TrainState) -> tuple[Preview, list[Tensor]]:
        """x_T ... x_0 of samples, from the same noise every time; (N, C, H, W) each."""
        preview = Preview.of(state.config, self.train_set.class_names, self.size(state))
        sampler = Sampler(**asdict(state.config.sample))
        with autocast(state.device, state.config.train.precision):
            states = generate_with_progress(
                "drawing samples",
                model_of(state),
                sampler,
                preview.indices,
                preview.labels,
                seed=state.config.train.seed,
                keep=evenly_spaced(sampler.grid(state.diffusion), FRAMES),
                silent=state.ranks.silent,
            )
        return preview, states

    def size(self, state: TrainState) -> Size:
        """How much is measured now."""
        return state.validation_schedule.size(state.step, state.finished)


def losses_of(
    model: nn.Module, state: TrainState, points: HeldOut, progress: Callable[[int], None]
) -> Tensor:
    """The held-out losses of a model, without dropout, (N,)."""
    training = model.training
    with torch.compiler.set_stance("force_eager"):  # not compiled anew for another batch size
        losses = held_out_losses(model.eval(), state.diffusion, points, progress)
    model.train(training)
    return losses


def update_best(state: TrainState, losses: Tensor) -> None:
    """Note the step whose EMA weights have the lowest held-out loss (N,).

    Early in a run N is less: two steps are compared at the points that both were measured at.
    """
    best = state.best
    if best is None or losses[: best.get("points")].mean().item() < best["loss"]:
        state.best = {"step": state.step, "loss": losses.mean().item(), "points": len(losses)}


def subset(image_set: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    """Some images and labels; shuffled, as a folder is sorted by class."""
    return next(image_set.batches(permutation(len(image_set), 0, 0)[:count], count))


def samples_to_score(state: TrainState, labels: Tensor | None) -> Tensor:
    """As many samples of the EMA weights as --score-images says, (N, C, H, W), on the CPU.

    labels: (N,), None for an unconditional network. They are those of evaluate.py with this seed.
    """
    c, sampler = state.config.train, Sampler(**asdict(state.config.sample))
    (x_0,) = generate_with_progress(
        "scoring",
        model_of(state),
        sampler,
        range(c.score_images),
        labels,
        seed=c.seed,
        silent=state.ranks.silent,
    )
    return x_0


def model_of(state: TrainState) -> DiffusionModel:
    """The EMA weights with their process."""
    config = state.config
    classes, shape = config.model.num_classes, config.image_shape
    return DiffusionModel(state.ema, state.diffusion, shape, classes, state.x0_error)
