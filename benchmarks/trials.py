"""Trainings of so many minutes and the scores of their samples: what the quality benchmarks share.

Every training is ``python train.py`` and every score ``python evaluate.py``, as a user types them.
A score is written to a CSV when it is known, so a benchmark that was stopped goes on from there; a
training that ended is known by its flags to the folder of the runs, and is not repeated in it: take
another folder where the code has changed.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any

from config import Parser
from utils import checkpoint
from utils.devices import cores
from utils.files import whole_file
from utils.runs import run_of

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
CORES = cores()


@dataclass(frozen=True)
class Score:
    """A row of the CSV. ``floor``: the mean Fréchet distance of as many real images."""

    name: str
    train_flags: str
    sample_flags: str
    minutes: float
    cores: int
    seed: int
    steps: int
    num: int
    fid: float
    floor: float
    precision: float
    recall: float
    accuracy: float  # -1: the network has no classes
    seconds_per_1000: float
    cpu: str  # what its vectors can do
    git: str

    @property
    def cells(self) -> str:
        """What follows the distance in a Markdown row: precision, recall, accuracy if any."""
        right = f"{self.accuracy:.1%}" if self.accuracy >= 0 else ""
        return f"{self.precision:.3f} | {self.recall:.3f} | {right}"


class Scores:
    """The rows of a CSV; safe to add to from several threads."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.rows: list[Score] = []
        if path.exists():
            kinds = {f.name: f.type for f in fields(Score)}
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    self.rows.append(Score(**{k: kinds[k](v) for k, v in row.items()}))

    def has(self, **values: str | float) -> bool:
        """Whether there is a row with these values."""
        return any(values.items() <= asdict(row).items() for row in self.rows)

    def add(self, row: Score) -> None:
        """Append a row and write them all."""
        with self.lock:
            self.rows.append(row)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as binary:
                file = io.TextIOWrapper(binary, write_through=True, newline="")
                writer = csv.DictWriter(file, [f.name for f in fields(Score)], lineterminator="\n")
                writer.writeheader()
                writer.writerows(asdict(row) for row in self.rows)
                file.detach()


@dataclass(frozen=True)
class Place:
    """Where trials keep their runs, where the images are, and how many cores each may use."""

    run_root: Path
    data_root: str
    cores: int

    @property
    def data(self) -> list[str]:
        return ["--data-root", self.data_root]

    def train(self, flags: Sequence[str]) -> Path:
        """Train to the end, unless these runs have such a training; a copy of its last checkpoint.

        The run deletes its own when it is trained further; the copy is never deleted.
        """
        name = hashlib.sha256(" ".join([str(self.cores), *flags]).encode()).hexdigest()
        note = self.run_root / "trained" / name
        if not note.exists():
            out = self.run("train.py", "--run-root", str(self.run_root), *self.data, *flags)
            version = re.findall(r"^Model Checkpoint at: (.*)$", out, re.MULTILINE)[0]
            last = checkpoint.newest(Path(version))
            copy = shutil.copy(last, last.with_name(f"kept_{last.name}"))
            note.parent.mkdir(exist_ok=True)
            note.write_text(str(copy))
        return Path(note.read_text())

    def score(self, ckpt: Path, num: int, flags: Sequence[str]) -> dict:
        """The section of metrics.json that has the scores of samples."""
        self.run(
            *("evaluate.py", "--ckpt", str(ckpt), "--only", "scores"),
            *("--num", str(num), "--batch-size", "500", *self.data, *flags),
        )
        return json.loads((run_of(ckpt).logs / "metrics.json").read_text())["scores"]

    def draw(self, ckpt: Path, flags: Sequence[str]) -> Path:
        """A picture of 100 samples."""
        command = ("sample.py", "--ckpt", str(ckpt), "--overwrite", *flags)
        return Path(self.run(*command).splitlines()[-1])

    def run(self, script: str, *flags: str) -> str:
        """What a script prints. Raises CalledProcessError where it fails; its errors are shown."""
        command = [sys.executable, str(ROOT / script), *flags]
        threads = os.environ | {"OMP_NUM_THREADS": str(self.cores)}
        return subprocess.run(
            command, env=threads, stdout=subprocess.PIPE, text=True, check=True
        ).stdout


@dataclass(frozen=True)
class PlaceArgs:
    """What was typed of where trials are run."""

    data_root: str
    run_root: Path | None
    jobs: int


@contextmanager
def place(args: PlaceArgs) -> Iterator[Place]:
    """The place that the flags name, for as long as ``with`` lasts."""
    with tempfile.TemporaryDirectory() as folder:
        root = args.run_root or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        yield Place(root.resolve(), args.data_root, CORES // args.jobs)


def side_by_side(jobs: int, tasks: Sequence[Callable[[], None]]) -> None:
    """Run them, so many at a time. After one that fails none begins; its error is raised."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for done in as_completed([pool.submit(task) for task in tasks]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def add_place(parser: Parser, jobs: int) -> None:
    """The flags of PlaceArgs."""
    parser.add_argument("--data-root", required=True, help="where MNIST is")
    parser.add_argument("--run-root", type=Path, help="keeps the runs [a folder that is removed]")
    parser.add_argument(
        "--jobs", type=int, default=jobs, help=f"trainings at a time, 1 ... {CORES} [%(default)s]"
    )


def parse(parser: Parser, argv: Sequence[str] | None) -> dict[str, Any]:
    """What was typed; ends the program where there are fewer cores than jobs."""
    own, _ = parser.parse(argv, [])
    if not 1 <= own["jobs"] <= CORES:
        parser.error(f"--jobs must be 1 ... {CORES}, the number of cores; got {own['jobs']}")
    return own


def read(section: dict, **known: str | float) -> Score:
    """A row from the scores of one sampler: the first of a section of metrics.json."""
    of, sampled = section["of"], next(iter(section["rows"].values()))
    n, machine = of["num"], of["environment"]
    return Score(
        **known,
        steps=of["step"],
        num=n,
        fid=sampled[f"fid_classifier@{n}"],
        floor=section["rows"]["real train images"][f"fid_classifier@{n}"],
        precision=sampled[f"precision@{n}"],
        recall=sampled[f"recall@{n}"],
        accuracy=sampled.get(f"accuracy@{n}", -1.0),
        seconds_per_1000=sampled["s/1000"],
        cpu=machine["cpu"] + (" bf16" if machine["bf16"] == "yes" else ""),
        git=machine["git"],
    )
