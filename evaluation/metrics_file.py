"""metrics.json: the sections that were measured, each with the checkpoint and settings it is of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.checkpoint import set_aside
from utils.runs import write_json

Section = dict[str, Any]  # "of": what it was measured of, and how; beside it the results


def write_sections(path: Path, found: Mapping[str, Section], of: Mapping[str, Any]) -> None:
    """Write these sections in place of earlier ones of their names; others are kept and marked.

    of: the origin of these sections; ``weights`` tells one checkpoint from another.
    """
    sections = {name: {"of": dict(of), **results} for name, results in found.items()}
    kept = {name: own for name, own in earlier(path).items() if name not in found}
    content = kept | sections
    for section in content.values():
        section["of"]["another_checkpoint"] = section["of"]["weights"] != of["weights"]
    write_json(path, content)
    print(f"\n{path}: {', '.join(sections) or 'nothing new'}")
    for name, section in kept.items():
        other = ", another checkpoint" if section["of"]["another_checkpoint"] else ""
        print(f"  kept: {name} (of step {section['of']['step']}{other})")


def earlier(path: Path) -> dict[str, Section]:
    """The sections of earlier calls. A file of another form is kept under another name."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if is_metrics(content):
        return content
    print(f"\n{path} has not the form of this version: kept as {path.name}.replaced")
    set_aside([path], "replaced")
    return {}


def is_metrics(content: Any) -> bool:
    """Whether every section names the step and the weights it is of."""
    if not isinstance(content, dict):
        return False
    sections = content.values()
    origins = [own.get("of") if isinstance(own, dict) else None for own in sections]
    return all(isinstance(of, dict) and {"step", "weights"} <= of.keys() for of in origins)
