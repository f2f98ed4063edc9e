"""report.html: what a run is, how it went and what it draws, in one file that needs no other."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from config import PRESETS
from evaluation.charts import lay_out, svg
from evaluation.curves import SCORE, of_run, score_names
from evaluation.embedded import embedded, evenly
from evaluation.markup import Markup, tag
from evaluation.page import (
    document,
    facts,
    figure,
    folded,
    numbers,
    section,
    short,
    slider,
    soft,
    words,
)
from evaluation.run_folder import RunFolder, is_number, part, rows_of, settings
from evaluation.tables import Cells
from utils.errors import listed
from utils.files import whole_file
from utils.progress import duration

NAME = "report.html"
# Bytes of pictures, of which the page has a third more; with all else it stays below 3 MB.
MOST_GRIDS, ALL_GRIDS, PICTURE = 24, 1_000_000, 150_000
MOST_LINES, LONG = 40, 1000  # about the data, and the letters of one
COMMAND = 10_000  # letters
STATUS = {"running": "not finished: running, or ended without notice"}


def write_report(logs: Path) -> Path:
    """Write report.html into the log folder of a run, from the files there; the path.

    What is absent is left out. Raises OSError where it cannot be written.
    """
    path = logs / NAME
    with whole_file(path) as file:
        file.write(page(RunFolder.of(logs)).encode("utf-8", "backslashreplace"))
    return path


def page(run: RunFolder) -> str:
    """The HTML."""
    drawn = tag("div", samples(run), reverse(run), class_="pair")
    parts = (curves, scores, data, chosen, network, repeat)
    return document(run.title, header(run), drawn, *(own(run) for own in parts))


def header(run: RunFolder) -> Markup:
    """Name, version, and the facts that one asks for first."""
    return tag(
        "header",
        tag("h1", run.name),
        soft(f"Training run {run.version}"),
        facts(dict(known_facts(run))),
        *map(soft, run.problems),
    )


def known_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Status, steps, time, losses, scores, data, network, speed."""
    about = run.about
    if status := about.get("status"):
        yield "status", STATUS.get(str(status), str(status))
    if steps := [f"{n:,}" for n in (about.get("step"), about.get("total_steps")) if is_number(n)]:
        yield "steps", " of ".join(steps)
    if run.seconds:
        yield "time", duration(run.seconds)
    if best := run.best("held_out"):
        yield "held-out loss, best", f"{best['held_out']:.4f} at step {best['step']:,.0f}"
        yield "held-out loss, last", f"{run.last('held_out'):.4f}"
    for name in score_names([run]):
        if (value := run.last(SCORE + name)) is not None:
            yield f"{name}, last", f"{value:.3f}"
    if dataset := run.settings.get("--dataset"):
        yield "data set", dataset
    if (rows := layer_rows(run)) and rows[-1][0] == "total":
        yield "parameters", rows[-1][2]
    if speeds := [own["images_per_s"] for own in run.measured("images_per_s")]:
        yield "speed, median", f"{median(speeds):,.0f} images/s"
    if memory := run.measured("memory_gib"):
        yield "memory, peak", f"{max(own['memory_gib'] for own in memory):.2f} GiB"


def samples(run: RunFolder) -> Markup:
    """The grids over time, the newest shown first."""
    grids = grids_of(run.logs)
    shown = evenly(sorted(grids), MOST_GRIDS)
    if not shown:
        return Markup()
    known = {own["step"]: own for own in run.history}
    names = run.about.get("class_names")
    classes = f" of {listed(list(map(str, names)))}" if isinstance(names, list) and names else ""
    frames = {}
    for step in shown:
        when = f"step {step:,}"
        picture = embedded(grids[step], ALL_GRIDS // len(shown))
        frames[when] = figure(
            picture, f"Samples{classes} at {when}", caption(when, known.get(step))
        )
    count = "" if len(shown) == len(grids) else f" {len(shown)} of {len(grids)} grids are shown."
    text = f"Drawn with the EMA weights, from the same noise every time.{count}"
    return section("Samples", soft(text), slider(frames))


def grids_of(logs: Path) -> dict[int, Path]:
    """The grids of samples by step."""
    found = [
        (re.fullmatch(r"samples_([0-9]{1,18})\.png", path.name), path) for path in logs.iterdir()
    ]
    return {int(match[1]): path for match, path in found if match}


def caption(when: str, validation: Mapping[str, float] | None) -> str:
    """When a grid was drawn, and how good the network was."""
    if validation is None:
        return when.capitalize()
    parts = [when.capitalize(), f"after {duration(validation['seconds'])}"]
    if "held_out" in validation:
        parts.append(f"held-out loss {validation['held_out']:.4f}")
    return ", ".join(parts)


def reverse(run: RunFolder) -> Markup:
    """The strip of the reverse process."""
    text = "From noise, x_T, on the left to samples, x_0, on the right."
    return section("Reverse process", *stored(run.logs / "reverse_process.png", text))


def stored(path: Path, text: str) -> list[Markup]:
    """A picture of the log folder and what it shows; none where it is not there."""
    return [figure(embedded(path, PICTURE), text, text)] if path.is_file() else []


def curves(run: RunFolder) -> Markup:
    """The history as charts."""
    charts = [svg(lay_out(chart)) for chart in of_run(run)]
    return section("Curves", *([tag("div", *charts, class_="charts")] if charts else []))


def scores(run: RunFolder) -> Markup:
    """What evaluate.py measured: a table for each section, and what it is of."""
    return section("Evaluation", *(own for name in TABLES for own in measured(run, name)))


def chains(run: RunFolder) -> dict[str, Cells]:
    """The bound for each number of steps and variance."""
    names = part(run.metrics, "bits_per_dim")
    rows = {name: rows_of(run.metrics, "bits_per_dim", name) for name in names if name != "of"}
    return {f"{name}, {key}": row for name, own in rows.items() for key, row in own.items()}


# The sections of metrics.json: what they are called, and the rows of their tables.
TABLES: dict[str, tuple[str, Callable[[RunFolder], Mapping[str, Cells]]]] = {
    "scores": ("Samples, and real images drawn likewise as the floor", lambda own: own.scores),
    "memorization": (
        "Distance to the nearest training image",
        lambda own: rows_of(own.metrics, "memorization"),
    ),
    "held_out": ("Held-out loss by t", lambda own: rows_of(own.metrics, "held_out")),
    "bits_per_dim": ("Bits per dimension of test images", chains),
}


def measured(run: RunFolder, name: str) -> Iterator[Markup]:
    """A section of metrics.json: a heading, its origin, its tables, and what belongs to it."""
    found = part(run.metrics, name)
    if not found:
        return
    title, rows_in = TABLES[name]
    yield tag("h3", title)
    yield soft(origin(name, part(found, "of")))
    if rows := rows_in(run):
        yield numbers(rows)
    if name == "memorization":
        yield tag("p", str(found.get("verdict", "")).capitalize() + ".")
        text = "The closest pairs: samples above, the nearest training images below."
        yield from stored(run.logs / "nearest_pairs.png", text)


def origin(name: str, of: Mapping[str, Any]) -> str:
    """Of which weights a section is and, where it is of samples, of how many."""
    parts = [f"EMA weights of step {of.get('step')}"]
    if name in ("scores", "memorization"):
        parts.append(f"{of.get('num')} samples, seed {of.get('seed')}")
    if of.get("another_checkpoint"):
        parts.append("another checkpoint than that of the sections measured last")
    return f"{'; '.join(parts)}."


def data(run: RunFolder) -> Markup:
    """What was learnt: counts and classes, and a sheet of training images."""
    lines = run.about.get("data")
    lines = lines[:MOST_LINES] if isinstance(lines, list) else []
    texts = [tag("p", short(str(line), LONG)) for line in lines]
    sheet = stored(run.logs / "data.png", "Training images, as the network gets them.")
    return section("Data", *texts, *sheet)


def chosen(run: RunFolder) -> Markup:
    """The settings: what differs from the preset, and all of them."""
    own, preset = run.settings, str(run.about.get("preset"))
    if not own:
        return Markup()
    parts = [folded("All settings", words(("flag", "value"), list(own.items())))]
    changed = run.about.get("changed")
    if isinstance(changed, dict) and preset in PRESETS:
        before = settings(asdict(PRESETS[preset]))
        lines = [(name, str(value), before.get(name, "")) for name, value in changed.items()]
        text = f"The preset {preset}" + (", and what differs from it:" if lines else ", unchanged.")
        head = ("flag", "this run", f"preset {preset}")
        parts = [tag("p", text), *([words(head, lines)] if lines else []), *parts]
    return section("Settings", *parts)


def network(run: RunFolder) -> Markup:
    """The layers of the network."""
    rows = layer_rows(run)
    return section("Network", *([folded("Layers", words(rows[0], rows[1:]))] if rows else []))


def layer_rows(run: RunFolder) -> list[list[str]]:
    """The cells of the table of layers, of which run.json has the Markdown; its head first."""
    lines = str(run.about.get("layers", "")).splitlines()
    rows = [[text.strip() for text in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == 4 and set(row[0]) != {"-"}]


def repeat(run: RunFolder) -> Markup:
    """The command, and what else the result depends on."""
    found = {name: str(value) for name, value in run.environment.items()}
    if not found:
        return Markup()
    line = f"python {found.get('command', 'train.py')}"
    command = tag("pre", tag("code", short(line, COMMAND)))
    text = f"The code was at commit {found.get('git', 'unknown')}."
    table = folded("Environment", words(("name", "value"), list(found.items())))
    return section("To repeat it", command, soft(text), table)
