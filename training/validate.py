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
    generate,
    held_out_losses,
    repeated,
    spread,
    x0_errors,
)
from training.plan import HELD_OUT, PREVIEW
from training.state import TrainState
from utils.devices import autocast
from utils.progress import Progress
from utils.seeding import permutation

ERRORS = 1024  # training images from which the errors of x_0 are measured
ROWS, MOST_ROWS = 10, 16  # of the grid of samples
WIDEST = 1600  # pixels of that grid
FRAMES = 51  # states of the reverse process that are kept, at most
FEW = 2  # columns that are drawn early in a run, when a picture would cost as much as training


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
    def of(cls, config: Config, class_names: Sequence[str], early: bool) -> "Preview":
        """PREVIEW samples, or the first columns of them; more than MOST_ROWS classes: some."""
        classes = config.model.num_classes
        rows = min(max(classes, ROWS), MOST_ROWS)
        columns = max(1, min(PREVIEW // rows, WIDEST // config.data.image_size[1]))
        drawn = min(FEW, columns) if early else columns
        indices = tuple(r * columns + c for r in range(rows) for c in range(drawn))
        if not classes:
            return cls(indices, None, drawn, ())
        of_row = [r * classes // rows for r in range(rows)]
        names = tuple(class_names[label] for label in of_row)
        return cls(indices, torch.tensor(of_row).repeat_interleave(drawn), drawn, names)

    @property
    def first_of_each(self) -> list[int]:
        """Positions of one sample of each class, at most ROWS: those of the strip."""
        labels = [None] * len(self.indices) if self.labels is None else self.labels.tolist()
        if self.labels is None:
            return list(range(min(ROWS, len(labels))))
        rising = sorted(range(len(labels)), key=labels.__getitem__)
        return [next(own) for _, own in groupby(rising, labels.__getitem__)][:ROWS]


@dataclass(frozen=True)
class Validated:
    """What a validation found: losses at the held-out points, in the order of t (N,); samples."""

    losses: Tensor | None  # of the EMA weights; None without test images
    raw: Tensor | None  # of the weights themselves
    preview: Preview
    states: list[Tensor]  # x_T ... x_0 of the samples, each (N, C, H, W)

    @property
    def by_quartile(self) -> list[float] | None:
        """The held-out loss in each quarter of 1 ... T."""
        if self.losses is None:
            return None
        return [part.mean().item() for part in self.losses.tensor_split(4)]


class Validation:
    """The fixed images on which a run is validated."""

    def __init__(self, state: TrainState, train_set: ImageSet, test_set: ImageSet) -> None:
        self.train_set, self.held_out = train_set, None
        if len(test_set):
            self.held_out = HeldOut.of(*subset(test_set, HELD_OUT), state.diffusion)

    def run(self, state: TrainState) -> Validated:
        """The losses, which update state.best, and the samples.

        At the end of the run, or where samples need them now, also the network's errors of x_0.
        """
        sample, diffusion = state.config.sample, state.diffusion
        early = state.step < state.validations.every
        preview = Preview.of(state.config, self.train_set.class_names, early)
        points = 0 if self.held_out is None else 2 * len(self.held_out.t)
        total = points + len(preview.indices) * sample.steps
        with Progress("validating", total, "images", silent=state.ranks.silent) as progress:
            state.x0_error = None
            if state.finished or sample.variance == "optimal":  # in float32, as sample.py samples
                denoiser = Denoiser(state.ema, diffusion, sample.clip)
                state.x0_error = x0_errors(denoiser, repeated(*subset(self.train_set, ERRORS)))
            with autocast(state.device, state.config.train.precision):
                losses = self.losses(state.ema, state, progress.update)
                raw = self.losses(state.model, state, progress.update)
                states = draw(state, preview, progress.update)
        update_best(state, losses)
        return Validated(losses, raw, preview, states)

    def losses(
        self, model: nn.Module, state: TrainState, progress: Callable[[int], None]
    ) -> Tensor | None:
        """Those of a model without dropout, (N,); None without test images."""
        if self.held_out is None:
            return None
        training = model.training
        with torch.compiler.set_stance("force_eager"):  # not compiled anew for another batch size
            losses = held_out_losses(model.eval(), state.diffusion, self.held_out, progress)
        model.train(training)
        return losses


def update_best(state: TrainState, losses: Tensor | None) -> None:
    """Note the step whose EMA weights have the lowest held-out loss."""
    if losses is None:
        return
    loss = losses.mean().item()
    if state.best is None or loss < state.best["loss"]:
        state.best = {"step": state.step, "loss": loss}


def subset(image_set: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    """Some images and labels; shuffled, as a folder is sorted by class."""
    return next(image_set.batches(permutation(len(image_set), 0, 0)[:count], count))


def samples_to_score(state: TrainState, labels: Tensor | None) -> Tensor:
    """As many samples of the EMA weights as --score-images says, (N, C, H, W), on the CPU.

    labels: (N,), None for an unconditional network. They are those of evaluate.py with this seed.
    """
    config, sampler = state.config, Sampler(**asdict(state.config.sample))
    num, total = config.train.score_images, config.train.score_images * sampler.steps
    with Progress("scoring", total, "steps of an image", silent=state.ranks.silent) as progress:
        options = {"seed": config.train.seed, "progress": progress.update}
        (x_0,) = generate(model_of(state), sampler, range(num), labels, **options)
    return x_0


def model_of(state: TrainState) -> DiffusionModel:
    """The EMA weights with their process."""
    config = state.config
    classes, shape = config.model.num_classes, config.image_shape
    return DiffusionModel(state.ema, state.diffusion, shape, classes, state.x0_error)


def draw(state: TrainState, preview: Preview, progress: Callable[[int], None]) -> list[Tensor]:
    """x_T ... x_0 of the samples, from the same noise every time; (N, C, H, W) each."""
    sampler = Sampler(**asdict(state.config.sample))
    keep = spread(sampler.steps, FRAMES)
    options = {"seed": state.config.train.seed, "keep": keep, "progress": progress}
    return generate(model_of(state), sampler, preview.indices, preview.labels, **options)
