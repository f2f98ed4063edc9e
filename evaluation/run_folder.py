"""The log folder of a run, read: its settings, environment, history and scores."""

import json
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_origin

from config import Config, flag, is_of, shown
from evaluation.tables import Cells, cell
from utils.history import HISTORY, parse_history
from utils.pytree import walk
from utils.run_names import RUN_FILE, name_of, run_title

FILES = (RUN_FILE, "config.json", "environment.json", "metrics.json")
# The numbers of a validation by dotted name: "held_out", "held_out_by_t.0", "score.recall".
HistoryRow = dict[str, float]


@dataclass(frozen=True)
class RunFolder:
    """The files of a log folder; what is absent is empty."""

    logs: Path
    about: dict[str, Any]  # run.json
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    history: tuple[HistoryRow, ...]  # by rising step
    problems: tuple[str, ...]  # what cannot be read and counts as absent, a line each

    @classmethod
    def of(cls, logs: Path) -> Self:
        """Read the folder."""
        problems: list[str] = []
        found = [read_object(logs / name, problems) for name in FILES]
        history = tuple(without_repeated(logs / HISTORY, problems))
        return cls(logs, *found, history, tuple(problems))

    @property
    def version(self) -> str:
        """The name of its folder."""
        return self.logs.name

    @property
    def name(self) -> str:
        """The run's name, or its version where it has none."""
        return name_of(self.logs) or self.version

    @property
    def title(self) -> str:
        """Name and version."""
        return run_title(self.logs)

    @property
    def seconds(self) -> float:
        """That the run has taken; of one that ended without notice, until its last validation."""
        known = [row["seconds"] for row in self.history[-1:]]
        whole = self.about.get("seconds")
        return max([0.0, *known, *([float(whole)] if is_seconds(whole) else [])])

    @property
    def settings(self) -> dict[str, str]:
        """Every setting by its flag, as it is typed."""
        return settings(self.config)

    @property
    def scores(self) -> dict[str, Cells]:
        """Those of evaluate.py, real images with the standard deviation over their draws."""
        std = rows_of(self.metrics, "scores", "std")
        return {
            name: with_std(row, std.get(name, {}))
            for name, row in rows_of(self.metrics, "scores", "rows").items()
        }

    @property
    def scores_of(self) -> dict[str, Any]:
        """What the scores of evaluate.py are of: checkpoint, step, number of samples, seed."""
        return part(self.metrics, "scores", "of")

    def measured(self, name: str) -> list[HistoryRow]:
        """The validations that have this number, and have it finite."""
        return [own for own in self.history if math.isfinite(own.get(name, math.nan))]

    def last(self, name: str) -> float | None:
        """The number at the last validation that has it."""
        return next((own[name] for own in reversed(self.measured(name))), None)

    def best(self, name: str) -> HistoryRow | None:
        """The validation at which the number was the lowest."""
        return min(self.measured(name), key=lambda own: own[name], default=None)


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object, empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    problems.append(f"{path.name} cannot be read")
    return {}


def without_repeated(path: Path, problems: list[str]) -> list[HistoryRow]:
    """The validations of a run.

    Where it was resumed from an earlier step, later lines stand in for those they repeat.
    """
    try:
        rows = parse_history(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as e:
        problems.append(f"{path.name} cannot be read: {e.strerror}")
        return []
    found = [numbers for row in rows if row and (numbers := numbers_of(row))]
    if len(found) < len(rows):
        problems.append(f"{path.name}: {len(rows) - len(found)} of {len(rows)} lines left out")
    history: list[HistoryRow] = []
    for row in found:
        while history and history[-1]["step"] >= row["step"]:
            history.pop()
        history.append(row)
    return history


def numbers_of(row: dict[str, Any]) -> HistoryRow | None:
    """The numbers of a row; None where its step or its seconds cannot be."""
    try:
        numbers = {name: float(value) for name, value in walk(row) if is_number(value)}
    except (OverflowError, RecursionError):
        return None
    whole = all(is_seconds(numbers.get(name)) for name in ("step", "seconds"))
    return numbers if whole else None


def is_seconds(value: Any) -> bool:
    """Whether it can be so many seconds, or steps."""
    return is_number(value) and 0 <= value < 1e15


def is_number(value: Any) -> bool:
    """Whether it is one; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rows_of(content: Any, *path: str) -> dict[str, dict[str, float]]:
    """The rows of numbers in a part of metrics.json, but for what says how they came about."""
    return {
        name: {column: value for column, value in row.items() if is_number(value)}
        for name, row in part(content, *path).items()
        if isinstance(row, dict) and name not in ("of", "classifier")
    }


def part(content: Any, *path: str) -> dict[str, Any]:
    """The object behind these keys; empty where there is none."""
    for name in path:
        content = content.get(name) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def with_std(row: dict[str, float], std: dict[str, float]) -> Cells:
    """A row with its standard deviations, in the same cells."""
    both = {c: f"{cell(row, c)} \u00b1 {std[c]:.2g}" for c in row if std.get(c)}
    return {**row, **both}


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of ``asdict(Config)``, also after JSON, by their flags, as they are typed."""
    kinds = {f.name: (f, kind) for f, kind, _ in Config().options()}
    sections = [section for section in config.values() if isinstance(section, dict)]
    values = {name: value for section in sections for name, value in section.items()}
    return {
        flag(name): as_typed(value, *kinds[name]) if name in kinds else str(value)
        for name, value in values.items()
    }


def as_typed(value: Any, f: Field, kind: Any) -> str:
    """A value of this field, whose tuples JSON made lists; in plain where it is of another type."""
    value = tuple(value) if isinstance(value, list) else value
    return shown(f, value) if get_origin(kind) is Literal or is_of(value, kind) else str(value)
