"""history.jsonl: what every validation of a run found, a JSON object a line.

What report.html and ``evaluate.py --compare`` read; it needs no TensorBoard. The keys: step;
seconds (after which the weights were there: from the first step of the run on, over all resumes,
with the validations, scores and checkpoints before this one); train (mean training loss since the
last line), held_out, held_out_raw, held_out_by_t (four numbers), points (of the held-out loss),
images_per_s (in training since the last line), memory_gib and, where samples were scored, score.
"""

import json
import math
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def line_of(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON: six digits, and null for NaN and infinity, which JSON lacks."""
    return (json.dumps(rounded(row)) + "\n").encode()


def rounded(value: Any) -> Any:
    """A value, or all that a list or dict of them holds."""
    if isinstance(value, dict):
        return {name: rounded(own) for name, own in value.items()}
    if isinstance(value, list):
        return [rounded(own) for own in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's logs; none without the file. Damaged lines are left out."""
    path = folder / HISTORY
    rows = parse_history(path.read_bytes()) if path.exists() else []
    return [row for row in rows if row]


def parse_history(content: bytes) -> list[dict[str, Any] | None]:
    """A row for each line; None where that is damaged, as the last one of a killed run."""
    return [parse_line(line) for line in content.splitlines()]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A row; None where the line is none, as a crash or a disk may leave it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if whole else None
