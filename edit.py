"""Real images changed with a trained network, which need not have seen them.

python edit.py vary test:12 --ckpt latest --strength 0.6
python edit.py reconstruct my.png --ckpt latest
python edit.py interpolate test:3 test:7 --ckpt latest --num 9
python edit.py inpaint test:0-3 --ckpt latest --mask left --num 4
python edit.py denoise noisy.png --ckpt latest --sigma 0.3
python edit.py classify test:0-99 --ckpt latest

An IMAGE is a picture file, a folder of them, test:12 or test:0-99 (of the run's own test images),
or an .npz of uint8 (N, H, W, C), as sample.py writes it. It is brought to the network's size and
channels as training brings its images. There is no upscaling: the network knows one size. Each verb
has a --help of its own. From Python: ``load("latest").vary(x_0)``; see docs/python.md.
"""

import os.path
import signal
import sys

if __name__ == "__main__":  # before all that takes long
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback of an import
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from config import ConfigError, Parser, check_range, flag
from data import DataError, ImageSet
from data.pictures import (
    SIDES,
    TEST,
    Pictures,
    named_mask,
    of_test_set,
    read_mask,
    read_pictures,
    rendering,
)
from diffusion import Sampler
from diffusion.editing import is_deterministic, noise_level, start_of
from sample import (
    CKPT,
    FRAMES,
    DrawingArgs,
    add_flags,
    add_output_flags,
    check_numbers,
    check_outputs,
    choices,
    in_a_name,
    named_folder,
    parse,
    parse_classes,
    save_arrays,
    save_numbered,
    written,
)
from training.edited import MOST_ROWS, Edited, Film, titled
from training.edits import DEFAULTS
from training.run_data import load_run_data
from training.setup import data_options
from training.trained import OpenCheckpoint, TrainedModel, load, open_checkpoint
from utils import images
from utils.devices import pick_device, tune
from utils.distributed import ALONE
from utils.files import new_folders, whole_file
from utils.images import normalize
from utils.process import exit_code
from utils.progress import Progress
from utils.rendezvous import launched

__all__ = ["TrainedModel", "load"]

FORMATS = ("grid", "png", "gif", "npz")
RANDOM = "random"  # an end of interpolate
IMAGE = "picture file, folder, .npz, test:12 or test:0-99"


@dataclass(frozen=True)
class Args(DrawingArgs, ABC):
    """The command line as it was typed, and what follows from it; a verb is a class of its own."""

    verb: ClassVar[str]
    about: ClassVar[str]  # a line
    most_formats: ClassVar[Sequence[str]] = FORMATS
    default_num: ClassVar[int | None] = None

    image: list[str]
    data_root: str | None

    @classmethod
    def add_own_flags(cls, parser: Parser) -> None:
        """The flags of this verb alone."""

    @cached_property
    def opened(self) -> OpenCheckpoint:
        """The checkpoint with the typed settings, over those of the verb."""
        data = {} if self.data_root is None else {"data_root": self.data_root}
        opened = open_checkpoint(self.ckpt, self.run_root, self.settings | data)
        defaults = {**DEFAULTS.get(self.verb, {}), **self.settings}
        return replace(opened, config=opened.config.override(**defaults))

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Those of FORMATS to write."""
        return choices("save", self.save, self.most_formats)

    @cached_property
    def test_set(self) -> ImageSet:
        """The run's own test images. DataError where there are none, or others."""
        _, test_set = load_run_data(self.opened)
        if not len(test_set):
            raise DataError(f"{test_set.name} has no test images")
        return test_set

    @cached_property
    def pictures(self) -> Pictures:
        """The images that were typed. Raises DataError."""
        return Pictures.joined([self.read(word) for word in self.image])

    @property
    def names(self) -> Sequence[str]:
        """Of the images that were typed. Raises DataError."""
        return self.pictures.names

    def read(self, word: str) -> Pictures:
        """The images of a word that was typed."""
        if TEST.fullmatch(word):
            return of_test_set(self.test_set, word, len(self.opened.class_names))
        how = rendering(data_options(self.opened.config))
        return read_pictures(Path(word), how, self.opened.class_names)

    def classes_of(self, labels: Tensor) -> list[int] | None:
        """The typed classes; else those of the images (N,), where all are known; else none."""
        names = self.opened.class_names
        if self.classes is not None or not names:
            return parse_classes(self.classes, names)
        return labels.tolist() if len(labels) and (labels >= 0).all() else None

    @cached_property
    def folder(self) -> Path:
        """--out, or a folder in the run's logs."""
        return self.out or named_folder(self, self.verb, self.folder_parts())

    def folder_parts(self) -> list[str]:
        """What the name of the folder has beside the verb, the step and the settings."""
        parts = [in_a_name("-".join(self.image)), *map(in_a_name, self.own_settings())]
        c = self.opened.config.sample
        parts += [f"{c.sampler}{c.steps}", f"seed{self.seed}"]
        return parts + ([f"num{self.num}"] if self.num != (self.default_num or 1) else [])

    def own_settings(self) -> list[str]:
        """The verb's own settings, for the name of a folder."""
        return []

    def outputs(self, count: int) -> list[Path]:
        """Every file that will be written, of so many images."""
        names = {
            "grid": ["grid.png"],
            "png": [f"{i:05d}.png" for i in range(count)],
            "gif": ["process.gif"],
            "npz": ["images.npz"],
        }
        return [self.folder / name for kind in self.formats for name in names[kind]]

    @property
    def total(self) -> int:
        """Images that are drawn."""
        return len(self.pictures) * self.num

    def check(self) -> None:
        """InputError for values that cannot be, before any image is read."""

    @abstractmethod
    def edit(self, model: TrainedModel, film: Film) -> Edited:
        """Draw."""

    def options(self, film: Film) -> dict[str, Any]:
        """The keyword arguments that the verbs of TrainedModel share."""
        draw = partial(film.draw, self.verb)
        return {"batch_size": self.batch_size, "draw": draw, **self.settings}

    def titles(self, classes: Sequence[int] | None) -> list[str]:
        """Of the images that are drawn: the class where one was typed, else their number."""
        if self.classes is not None and classes:
            names = [self.opened.class_names[y] for y in classes]
            return [names[i % len(names)] for i in range(self.total)]
        return [str(i % self.num + 1) for i in range(self.total)]

    def repeated_labels(self) -> Tensor:
        """Of the images that are drawn, num in a row of each input."""
        return self.pictures.labels.repeat_interleave(self.num)


@dataclass(frozen=True)
class Vary(Args):
    """SDEdit."""

    verb = "vary"
    about = "new images near each IMAGE: noised to t = strength T, and denoised (SDEdit)"
    default_num = 8

    strength: float

    @classmethod
    def add_own_flags(cls, parser: Parser) -> None:
        parser.add_argument(
            "--strength", type=float, default=0.6, help="t / T to start from [%(default)s]"
        )

    def own_settings(self) -> list[str]:
        return [f"strength{self.strength:g}"]

    def check(self) -> None:
        if not 0 < self.strength <= 1:
            raise ConfigError(
                f"--strength must lie above 0 and be at most 1, got {self.strength:g}"
            )

    def edit(self, model: TrainedModel, film: Film) -> Edited:
        x_0, classes = normalize(self.pictures.images), self.classes_of(self.repeated_labels())
        options = self.options(film) | {"num": self.num, "seed": self.seed}
        drawn = model.vary(x_0, self.strength, classes, **options)
        t = start_of(model.diffusion, self.strength)
        lines = [f"noised to t = {t} of {model.diffusion.timesteps}"]
        return Edited({"input": x_0}, drawn, self.titles(classes), lines=lines)


@dataclass(frozen=True)
class Reconstruct(Args):
    """DDIM inversion and back."""

    verb = "reconstruct"
    about = "each IMAGE inverted to its x_T along DDIM's ODE and sampled again; prints the RMSE"

    def check(self) -> None:
        check_deterministic(self)

    def edit(self, model: TrainedModel, film: Film) -> Edited:
        x_0, classes = normalize(self.pictures.images), self.classes_of(self.pictures.labels)
        again, x_T = model.reconstruct(x_0, classes, **self.options(film))
        lines = [f"RMSE {root_mean_square(again - x_0)}"]
        shown = {"input": x_0, "x_T": x_T / 2}  # 95 % of its pixels within grey
        titles = ["again"] * len(x_0)
        return Edited(shown, again, titles, {"x_T": x_T.numpy()}, lines)


@dataclass(frozen=True)
class Interpolate(Args):
    """Slerp of two x_T."""

    verb = "interpolate"
    about = f"from IMAGE A to IMAGE B, or {RANDOM}: their x_T mixed by slerp"
    default_num = 9

    @property
    def total(self) -> int:
        return self.num

    def check(self) -> None:
        check_deterministic(self)
        if len(self.image) != 2:
            raise ConfigError(f"interpolate takes two images, A and B, got {len(self.image)}")
        check_range("--num", self.num, 2, 10**7)

    @cached_property
    def ends(self) -> list[Pictures | None]:
        """A and B; None: random."""
        found = [None if word == RANDOM else self.read(word) for word in self.image]
        for word, end in zip(self.image, found, strict=True):
            if end is not None and len(end) != 1:
                raise ConfigError(f"{word} holds {len(end)} images: an end is one")
        return found

    @property
    def names(self) -> Sequence[str]:
        ends = zip(self.image, self.ends, strict=True)
        return [word if end is None else end.names[0] for word, end in ends]

    def edit(self, model: TrainedModel, film: Film) -> Edited:
        known = [end for end in self.ends if end is not None]
        labels = torch.cat([end.labels for end in known]) if len(known) == 2 else torch.tensor([])
        classes = self.classes_of(labels)
        a, b = (None if end is None else normalize(end.images) for end in self.ends)
        drawn = model.interpolate(a, b, self.num, classes, seed=self.seed, **self.options(film))
        film.frames = [x for x in film.frames if len(x) == self.num]
        beside = {name: x for name, x in (("A", a), ("B", b)) if x is not None}
        titles = [f"{w:.2f}" for w in torch.linspace(0, 1, self.num).tolist()]
        return Edited(beside, drawn, titles)


@dataclass(frozen=True)
class Inpaint(Args):
    """RePaint."""

    verb = "inpaint"
    about = "a part of each IMAGE anew, all else equal to the byte (RePaint)"
    default_num = 8

    mask: str
    jump: int
    resample: int

    @classmethod
    def add_own_flags(cls, parser: Parser) -> None:
        parser.add_argument(
            "--mask",
            required=True,
            help=f"what to fill in: {', '.join(SIDES)}, or a picture, where it is white",
        )
        parser.add_argument(
            "--jump", type=int, default=5, help="steps that are repeated together [%(default)s]"
        )
        parser.add_argument(
            "--resample",
            type=int,
            default=10,
            help="how often every step is taken; 1: without resampling [%(default)s]",
        )

    def own_settings(self) -> list[str]:
        return [f"mask-{self.mask}", f"jump{self.jump}x{self.resample}"]

    def check(self) -> None:
        check_range("--jump", self.jump, 1, 10**5)
        check_range("--resample", self.resample, 1, 1000)
        s = self.opened.config.sample
        if {"restart", "churn"} & self.settings.keys() and (s.restart or s.churn):
            raise ConfigError("inpaint has a grid of its own: leave out --restart and --churn")
        _ = self.unknown

    @cached_property
    def unknown(self) -> Tensor:
        """Which pixels are filled in, (H, W) bool. InputError for none, or all of them."""
        how = rendering(data_options(self.opened.config))
        named = self.mask in SIDES
        found = named_mask(self.mask, how.size) if named else read_mask(Path(self.mask), how)
        if found.all() or not found.any():
            what = "all white: nothing is known" if found.all() else "black: nothing is filled in"
            raise ConfigError(f"--mask {self.mask} is {what}")
        return found

    def edit(self, model: TrainedModel, film: Film) -> Edited:
        x_0, classes = normalize(self.pictures.images), self.classes_of(self.repeated_labels())
        options = self.options(film) | {"num": self.num, "seed": self.seed}
        options |= {"jump": self.jump, "resample": self.resample}
        drawn = model.inpaint(x_0, self.unknown, classes, **options)
        masked = torch.where(self.unknown, 0, x_0)  # grey
        return Edited({"input": x_0, "mask": masked}, drawn, self.titles(classes))


@dataclass(frozen=True)
class Denoise(Args):
    """An image with noise of known sigma is x_t at some t, scaled."""

    verb = "denoise"
    about = "each IMAGE without its noise, of known sigma: its mean in one step, and a sample"

    sigma: float
    add_noise: bool

    @classmethod
    def add_own_flags(cls, parser: Parser) -> None:
        parser.add_argument(
            "--sigma",
            type=float,
            required=True,
            help="standard deviation of the noise, where black is -1 and white is 1",
        )
        parser.add_argument(
            "--add-noise",
            action="store_true",
            help="add that noise first, and print how much is left [the images have it already]",
        )

    def own_settings(self) -> list[str]:
        return [f"sigma{self.sigma:g}"] + (["added"] if self.add_noise else [])

    def check(self) -> None:
        check_range("--sigma", self.sigma, 0, 1e9)

    def edit(self, model: TrainedModel, film: Film) -> Edited:
        given, classes = normalize(self.pictures.images), self.classes_of(self.pictures.labels)
        try:
            t = noise_level(model.diffusion, self.sigma)
        except ValueError as e:
            raise ConfigError(f"--{e}") from e
        y = model.add_noise(given, self.sigma, self.seed) if self.add_noise else given
        options = self.options(film) | {"seed": self.seed}
        estimate, drawn = model.remove_noise(y, self.sigma, classes, **options)
        del film.frames[:2]  # of the one step
        beside = {"input": given, "noisy": y} if self.add_noise else {"input": y}
        beside |= {"one step": estimate}
        lines = [f"sigma {self.sigma:g} is t = {t} of {model.diffusion.timesteps}"]
        if self.add_noise:
            parts = {"noisy": y, "one step": estimate, "sample": drawn}
            lines += [f"{n}: RMSE {root_mean_square(x - given)}" for n, x in parts.items()]
        return Edited(beside, drawn, ["sample"] * len(y), {"one_step": estimate.numpy()}, lines)


@dataclass(frozen=True)
class Classify(Args):
    """The diffusion classifier."""

    verb = "classify"
    about = "the class of each IMAGE: the one whose bound is lowest (diffusion classifier)"
    most_formats = ("grid", "npz")

    def check(self) -> None:
        if not self.opened.class_names:
            raise ConfigError("classify: the network was trained without classes")

    def folder_parts(self) -> list[str]:
        return [in_a_name("-".join(self.image)), f"seed{self.seed}"]

    def edit(self, model: TrainedModel, _film: Film) -> Edited:
        pictures, names = self.pictures, self.opened.class_names
        x_0 = normalize(pictures.images)
        with Progress("classify", None, "network evaluations") as progress:
            found, bounds = model.classify(
                x_0, seed=self.seed, batch_size=self.batch_size, progress=progress.update
            )
        said = [names[y] for y in found.tolist()]
        lines = []
        if len(said) <= MOST_ROWS:
            margins = bounds.topk(min(2, len(names)), largest=False).values
            gaps = (margins[:, -1] - margins[:, 0]).tolist()
            lines += [
                f"{name}: {word}, by {gap:.3g} nats"
                for name, word, gap in zip(pictures.names, said, gaps, strict=True)
            ]
        known = pictures.labels >= 0
        if known.any():
            right = found[known] == pictures.labels[known]
            lines.append(
                f"right: {right.sum()} of {len(right)} ({100 * right.float().mean():.1f} %)"
            )
        arrays = {"arr_1": found.numpy(), "bounds": bounds.numpy()}
        return Edited({}, x_0, said, arrays, lines)


VERBS = {own.verb: own for own in (Vary, Reconstruct, Interpolate, Inpaint, Denoise, Classify)}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done, 1: failed to write, 2: bad input, 128 + N: stopped by signal N."""
    return exit_code("edit.py", lambda: run(parse_args(argv)), "interrupted")


def run(args: Args) -> int:
    """Read the images, draw, write."""
    if (launch := launched()) and launch.world > 1:
        raise ConfigError("edit.py is one process: start it without torchrun")
    device = pick_device(args.device)
    tune(device)
    names = args.names  # which reads the images
    outputs = args.outputs(args.total)
    check_outputs(outputs, args.folder, args.overwrite, ALONE)
    film = Film(FRAMES if "gif" in args.formats else 0)
    model = args.opened.model(device)
    counting = film.counting(model)
    print(f"{model.path}: step {model.step:,}; {args.verb}, {shown(names)}", flush=True)
    edited = args.edit(counting, film)
    each = film.evaluations / len(edited.drawn)
    cost = f"{film.evaluations:,} network evaluations, {each:,.0f} for each image of the result"
    print("\n".join([*edited.lines, cost]), flush=True)
    with new_folders(args.folder):
        write(edited, film.frames, args)
    print("\n".join(written(outputs)))
    return 0


def write(edited: Edited, frames: Sequence[Tensor], args: Args) -> None:
    """The images in each of the formats."""
    if "grid" in args.formats:
        plain = not edited.beside and args.verb == Classify.verb
        picture = titled(edited.drawn, edited.titles) if plain else edited.picture(edited.drawn)
        images.save_png(picture, args.folder / "grid.png")
    if "png" in args.formats:
        save_numbered(edited.drawn, args.folder)
    if "gif" in args.formats:
        with whole_file(args.folder / "process.gif") as file:
            file.write(images.gif([edited.picture(x) for x in frames]))
    if "npz" in args.formats:
        save_arrays(edited.drawn, edited.arrays, args.folder / "images.npz")


def check_deterministic(args: Args) -> None:
    """ConfigError for typed settings with which an image cannot be inverted."""
    if not is_deterministic(Sampler(**asdict(args.opened.config.sample))):
        raise ConfigError(
            f"{args.verb} needs a sampler that draws no noise: ddim, heun, dpmpp or unipc, with "
            "--eta 0, without --restart and --churn"
        )


def root_mean_square(difference: Tensor) -> str:
    """Over all pixels: where black is -1 and white 1, and in levels of 255."""
    value = difference.double().square().mean().sqrt().item()
    return f"{value:.4f} of -1 ... 1, {value * 127.5:.2f} of 255 levels"


def shown(names: Sequence[str]) -> str:
    """The names of the images, if they are few."""
    return ", ".join(names) if len(names) <= 3 else f"{len(names):,} images"


def parse_args(argv: list[str] | None) -> Args:
    """The command line, checked against the checkpoint it names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in VERBS:
        top = Parser(prog="edit.py", description=__doc__)
        verbs = top.add_subparsers(metavar="VERB", required=True)
        for name, verb in VERBS.items():
            verbs.add_parser(name, help=verb.about)
        top.parse_args(words)
        top.error("the first word is a verb")
    verb = VERBS[words.pop(0)]
    own, typed = parse_verb(verb, words)
    args = verb(**{"num": 1, "classes": None, **own}, settings=typed)
    check(args)
    return args


def parse_verb(verb: type[Args], words: list[str]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The flags of a verb, and the typed settings of SampleConfig."""
    parser = Parser(prog=f"edit.py {verb.verb}", description=verb.about)
    ends = verb is Interpolate
    parser.add_argument(
        "image",
        nargs="+",
        metavar="A|B" if ends else "IMAGE",
        help=IMAGE + (f", or {RANDOM}: an x_T of the seed" if ends else ""),
    )
    parser.add_argument("--ckpt", required=True, help=CKPT)
    verb.add_own_flags(parser)
    what = "images from A to B" if ends else "results for each image"
    add_flags(parser, verb.default_num, what)
    add_output_flags(parser, verb.most_formats)
    parser.add_argument(
        "--data-root", help="folder of the run's images, of test:N [as in training]"
    )
    if verb is Classify:
        own, _ = parser.parse(words, [])
        check_numbers(own)
        return own, {}
    parser.add_argument(
        "--classes",
        help="7, 0-9, 3,1,4 or cat,dog, repeated [those of the images if known, else none]",
    )
    return parse(parser, words, DEFAULTS[verb.verb])


def check(args: Args) -> None:
    """InputError for what cannot be, before anything is drawn."""
    _ = args.formats, args.opened  # which raise it
    if args.data_root is not None and not any(map(TEST.fullmatch, args.image)):
        raise ConfigError(f"{flag('data_root')} is of test images: there is none")
    parse_classes(args.classes, args.opened.class_names)
    args.check()


if __name__ == "__main__":
    sys.exit(main())
