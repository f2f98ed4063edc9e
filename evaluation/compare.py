"""evaluate.py --compare: runs beside each other, from their log folders alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from config import DataConfig, DiffusionConfig, flag
from evaluation.charts import save_charts
from evaluation.curves import SCORE, of_runs, score_names
from evaluation.run_folder import HISTORY, RunFolder, is_number
from evaluation.scores import TEST, TRAIN
from evaluation.tables import Cells, escaped, markdown, show
from utils.errors import InputError
from utils.files import whole_file

PICTURE, TEXT = "comparison.png", "comparison.md"
MOST_LETTERS = 40  # of a setting in a table
Rows = Mapping[str, Cells]
Runs = Mapping[str, RunFolder]  # by name and version


class CompareError(InputError):
    """Runs that cannot be compared; names the run and the reason."""


def read_runs(folders: Sequence[Path]) -> dict[str, RunFolder]:
    """The runs of these log folders. Raises CompareError."""
    if len({logs.resolve() for logs in folders}) < max(2, len(folders)):
        raise CompareError("--compare takes two runs or more, each of them once")
    runs = [RunFolder.of(logs) for logs in folders]
    for run in runs:
        if not run.history:
            raise CompareError(
                f"{run.logs} has no {HISTORY} to compare: the run ended before its first "
                "validation, or is of an earlier release"
            )
    titles = [run.title for run in runs]
    return {run.title if titles.count(run.title) == 1 else str(run.logs): run for run in runs}


def folder_name(runs: Runs) -> str:
    """NAME_vs_NAME; of the versions where names are not enough."""
    names = [run.name for run in runs.values()]
    if len(set(names)) < len(names):
        names = [run.version for run in runs.values()]
    return "_vs_".join(names)


def compare_runs(runs: Runs, folder: Path) -> None:
    """Print tables; write them as Markdown, and curves as a PNG. Raises CompareError, OSError."""
    charts = of_runs(runs)
    if not charts:
        raise CompareError("nothing to compare: the runs have neither losses nor scores")
    tables = {title: rows for title, make in TABLES.items() if (rows := make(runs))}
    remarks = [
        *notes(runs),
        *(f"{name}: {line}" for name, run in runs.items() for line in run.problems),
    ]
    for title, rows in tables.items():
        show(title, rows)
    print("", *remarks, sep="\n")
    folder.mkdir(parents=True, exist_ok=True)
    save_charts(charts, folder / PICTURE)
    with whole_file(folder / TEXT) as file:
        file.write(text(runs, tables, remarks).encode())
    print(folder / PICTURE, folder / TEXT, sep="\n")


def text(runs: Runs, tables: Mapping[str, Rows], remarks: Sequence[str]) -> str:
    """The tables and the picture as Markdown."""
    parts = [f"# {', '.join(map(escaped, runs))}", f"![Curves of these runs]({PICTURE})"]
    for title, rows in tables.items():
        parts += [f"## {title}", markdown(rows)]
    return "\n\n".join([*parts, *map(escaped, remarks)]) + "\n"


def differing_settings(runs: Runs) -> Rows:
    """The settings that are not the same in all runs, and the machines, where these differ."""
    every = {name: run.settings | machine(run) for name, run in runs.items()}
    flags = dict.fromkeys(key for own in every.values() for key in own)
    rows = {key: {name: own.get(key, "-") for name, own in every.items()} for key in flags}
    return {
        key: {name: elided(value) for name, value in row.items()}
        for key, row in rows.items()
        if len(set(row.values())) > 1
    }


def machine(run: RunFolder) -> dict[str, str]:
    """Where a run was trained, and with which code."""
    left_out = ("command", "data")  # the settings say it
    return {name: str(own) for name, own in run.environment.items() if name not in left_out}


def elided(value: str) -> str:
    """The value, or its beginning."""
    return value if len(value) <= MOST_LETTERS else f"{value[: MOST_LETTERS - 3]}..."


def ends(runs: Runs) -> Rows:
    """The end of every run, a row per number: steps, minutes, losses, scores."""
    names = {"train": "training loss", "held_out": "held-out loss"}
    names |= {SCORE + name: name for name in score_names(runs.values())}
    rows: dict[str, dict[str, float]] = {"steps": {}, "minutes": {}}
    for title, run in runs.items():
        rows["steps"][title] = int(run.history[-1]["step"])
        rows["minutes"][title] = run.seconds / 60
        for name, shown in names.items():
            if (value := run.last(name)) is not None:
                rows.setdefault(shown, {})[title] = value
        if best := run.best("held_out"):
            rows.setdefault("best held-out loss", {})[title] = best["held_out"]
            rows.setdefault("at step", {})[title] = int(best["step"])
    return rows


def evaluations(runs: Runs) -> Rows:
    """What evaluate.py measured of every run, and the floors: once where they are the same."""
    rows: dict[str, Cells] = {}
    floors: dict[str, dict[str, Cells]] = {}
    for title, run in runs.items():
        step = run.scores_of.get("step")
        for name, row in run.scores.items():
            if name in (TRAIN, TEST):
                floors.setdefault(name, {})[title] = row
            else:
                rows[f"{title}, {name}"] = {"step": step if is_number(step) else "-", **row}
    for name, own in floors.items():
        first, *others = own.values()
        if all(row == first for row in others):
            rows[name] = first
        else:
            rows |= {f"{title}, {name}": row for title, row in own.items()}
    return rows


def notes(runs: Runs) -> list[str]:
    """What does not compare, and why, a line each."""
    differ = {name for name, row in differing_settings(runs).items() if "-" not in row.values()}
    if not any(run.settings.get("--dataset") == "folder" for run in runs.values()):
        differ -= {"--data-root"}  # the same images in another place
    return [f"{line} ({', '.join(sorted(differ & of))})." for of, line in CAUTION if differ & of]


TABLES: dict[str, Callable[[Runs], Rows]] = {
    "Settings and machines that differ": differing_settings,
    "At the end of training": ends,
    "Samples, and real images drawn likewise as the floor": evaluations,
}
# What makes numbers of two runs different quantities.
CAUTION = (
    (
        {flag(f.name) for f in fields(DataConfig)} - {"--skip-damaged"},
        "Trained on different images: neither losses nor scores compare",
    ),
    (
        {flag(f.name) for f in fields(DiffusionConfig)},
        "Held-out losses compare only between runs of one process, parameterization and loss",
    ),
    (
        {"device", "gpu", "cpu", "threads", "ranks"},
        "Trained on different machines: minutes do not compare",
    ),
)
