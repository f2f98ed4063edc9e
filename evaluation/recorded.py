"""What the log folder of a run says of it: settings, environment, history, scores."""

import json
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_origin

from config import Config, flag, is_of, shown
from evaluation.tables import Cells, cell
from utils.history import HISTORY
from utils.names import RECORD, label, name_of
from utils.pytree import walk

FILES = (RECORD, "config.json", "environment.json", "metrics.json")
# The numbers of a validation by dotted name: "held_out", "held_out_by_t.0", "score.recall".
Validation = dict[str, float]


@dataclass(frozen=True)
class Recorded:
    """The files of a log folder; what is absent is empty."""

    logs: Path
    run: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    history: tuple[Validation, ...]  # by rising step
    problems: tuple[str, ...]  # what cannot be read and counts as absent, a line each

    @classmethod
    def of(cls, logs: Path) -> Self:
        """Read the folder."""
        problems: list[str] = []
        found = [read_object(logs / name, problems) for name in FILES]
        history = tuple(read_history(logs / HISTORY, problems))
        return cls(logs, *found, history, tuple(problems))

    @property
    def version(self) -> str:
        """The name of its folder."""
        return self.logs.name

    @property
    def title(self) -> str:
        """The run's name, or its version where it has none."""
        return name_of(self.logs) or self.version

    @property
    def label(self) -> str:
        """Name and version."""
        return label(self.logs)

    @property
    def seconds(self) -> float:
        """That the run has taken; of one that ended without notice, until its last validation."""
        known = [validation["seconds"] for validation in self.history[-1:]]
        whole = self.run.get("seconds")
        return max([0.0, *known, *([float(whole)] if is_seconds(whole) else [])])

    @property
    def settings(self) -> dict[str, str]:
        """Every setting by its flag, as it is typed."""
        return settings(self.config)

    @property
    def scores(self) -> dict[str, Cells]:
        """Those of evaluate.py, real images with the standard deviation over their draws."""
        spread = rows_of(self.metrics, "scores", "std")
        return {
            name: with_spread(row, spread.get(name, {}))
            for name, row in rows_of(self.metrics, "scores", "rows").items()
        }

    @property
    def scores_of(self) -> dict[str, Any]:
        """What the scores of evaluate.py are of: checkpoint, step, number of samples, seed."""
        return part(self.metrics, "scores", "of")

    def measured(self, name: str) -> list[Validation]:
        """The validations that have this number, and have it finite."""
        return [own for own in self.history if math.isfinite(own.get(name, math.nan))]

    def last(self, name: str) -> float | None:
        """The number at the last validation that has it."""
        return next((own[name] for own in reversed(self.measured(name))), None)

    def best(self, name: str) -> Validation | None:
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


def read_history(path: Path, problems: list[str]) -> list[Validation]:
    """The validations of a run.

    Where it was resumed from an earlier step, later lines stand in for those they repeat.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as e:
        problems.append(f"{path.name} cannot be read: {e.strerror}")
        return []
    found = [validation for line in lines if (validation := parse(line))]
    if len(found) < len(lines):
        problems.append(f"{path.name}: {len(lines) - len(found)} of {len(lines)} lines left out")
    history: list[Validation] = []
    for validation in found:
        while history and history[-1]["step"] >= validation["step"]:
            history.pop()
        history.append(validation)
    return history


def parse(line: bytes) -> Validation | None:
    """The numbers of a line; None where it is no validation, as the half line of a killed run."""
    try:
        content = json.loads(line)
        numbers = {name: float(value) for name, value in walk(content) if is_number(value)}
    except (ValueError, OverflowError, RecursionError):
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


def with_spread(row: dict[str, float], spread: dict[str, float]) -> Cells:
    """A row with its standard deviations, in the same cells."""
    both = {c: f"{cell(row, c)} \u00b1 {spread[c]:.2g}" for c in row if spread.get(c)}
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
