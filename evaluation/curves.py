"""The curves of a run's history, and those of several runs beside each other."""

from collections.abc import Callable, Iterable, Mapping

from evaluation.charts import Chart, Series, has_points
from evaluation.run_folder import HistoryRow, RunFolder, part

# What curves are drawn against.
X = {"step": lambda own: own["step"], "minutes": lambda own: own["seconds"] / 60}
LOSSES = {
    "train": "training",
    "held_out": "held-out, EMA weights",
    "held_out_raw": "held-out, raw weights",
}
SCORE = "score."
DISTANCES = ("fid", "kid")  # how the names of distances begin; all other scores are shares, 0 ... 1


def of_run(run: RunFolder) -> list[Chart]:
    """Losses, the held-out loss by quartile of t, scores, speed; those that were measured."""
    names = score_names([run])
    shares = [name for name in names if not name.startswith(DISTANCES)]
    quartiles = {f"held_out_by_t.{q}": name for q, name in enumerate(quartiles_of(run))}
    charts = [
        of_numbers(run, "loss", LOSSES, "log"),
        of_numbers(run, "held-out loss of the EMA weights, by t", quartiles, "log"),
        *[
            of_numbers(run, name, {SCORE + name: ""}, scale(name))
            for name in names
            if name not in shares
        ],
        of_numbers(run, ", ".join(shares), {SCORE + name: name for name in shares}, reach=(0, 1)),
        of_numbers(run, "images/s", {"images_per_s": ""}, reach=(0,)),
    ]
    return [chart for chart in charts if has_points(chart)]


def of_numbers(
    run: RunFolder,
    title: str,
    names: Mapping[str, str],
    scale: str = "linear",
    reach: tuple[float, ...] = (),
) -> Chart:
    """These numbers of a run against its steps, with the names that the curves are to have."""
    curves = [curve(run, name, label, X["step"]) for name, label in names.items()]
    steps = (0, *(own["step"] for own in run.history[-1:]))
    return Chart(title, "step", curves, scale, steps, reach)


def of_runs(runs: Mapping[str, RunFolder]) -> list[list[Chart]]:
    """A row of charts for the held-out loss and for each score: against steps, against minutes."""
    names = {"held_out": "held-out loss"}
    names |= {SCORE + name: name for name in score_names(runs.values())}
    rows = []
    for name, title in names.items():
        curves = {
            label: [curve(run, name, title, x) for title, run in runs.items()]
            for label, x in X.items()
        }
        rows.append([Chart(title, label, own, scale(title), (0,)) for label, own in curves.items()])
    return [row for row in rows if has_points(row[0])]


def curve(run: RunFolder, name: str, label: str, x: Callable[[HistoryRow], float]) -> Series:
    """A number over training; validations without it are left out."""
    return Series(label, [(x(own), own[name]) for own in run.history if name in own])


def score_names(runs: Iterable[RunFolder]) -> list[str]:
    """Of all scores that were measured over training."""
    every = dict.fromkeys(name for run in runs for row in run.history for name in row)
    return [name.removeprefix(SCORE) for name in every if name.startswith(SCORE)]


def scale(name: str) -> str:
    """Losses and Fréchet distances are read by their ratios; the others may be 0 or less."""
    return "log" if name.startswith(("held-out", "fid")) else "linear"


def quartiles_of(run: RunFolder) -> list[str]:
    """The quarters of 1 ... T, from the least noise to the most."""
    t = part(run.config, "diffusion").get("timesteps")
    if not isinstance(t, int):
        return [f"quartile {q}" for q in (1, 2, 3, 4)]
    first = [-(-q * t // 4) + 1 for q in range(5)]  # the least t with (t - 1) * 4 // T == q
    return [f"t = {first[q]} ... {first[q + 1] - 1}" for q in range(4)]
