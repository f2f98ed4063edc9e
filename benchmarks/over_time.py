"""Quality while a run trains: its curves of scores and held-out loss as one picture.

python train.py --max-minutes 25 --score-every 400 --score-images 500 --name quality
python -m benchmarks.over_time quality    # seconds: only the log folder is read
"""

from pathlib import Path

from benchmarks.trials import RESULTS
from config import Parser
from evaluation.charts import Chart, save_charts
from evaluation.curves import X, curve, scale, score_names
from evaluation.run_folder import RunFolder
from training.trained import RUN_ROOT
from utils.runs import find_logs

SHARES = ("precision", "recall", "accuracy")


def main() -> None:
    """Write the picture, and print a row for each validation with scores."""
    parser = Parser(prog="over_time", description=__doc__)
    parser.add_argument("run", help="name, version or folder")
    parser.add_argument("--run-root", type=Path, default=RUN_ROOT, help="[%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS / "over_time.png", help="[%(default)s]")
    own, _ = parser.parse(None, [])
    run = RunFolder.of(find_logs(own["run"], own["run_root"]))
    save_charts([charts(run)], own["out"])
    names = score_names([run])
    print("| step | minutes | held-out loss |" + "".join(f" {name} |" for name in names))
    print("|---" * (3 + len(names)) + "|")
    for row in run.measured(f"score.{names[0]}"):
        cells = [f"{row['step']:,.0f}", f"{row['seconds'] / 60:.1f}", f"{row['held_out']:.4f}"]
        print("| " + " | ".join(cells + [f"{row['score.' + name]:.3f}" for name in names]) + " |")


def charts(run: RunFolder) -> list[Chart]:
    """The Fréchet distance, the shares, the held-out loss, against minutes."""
    distance, minutes = distance_of(run), X["minutes"]
    names = {f"score.{name}": name for name in SHARES}
    shares = [curve(run, key, name, minutes) for key, name in names.items()]
    losses = [curve(run, "held_out", "", minutes)]
    distances = [curve(run, f"score.{distance}", "", minutes)]
    return [
        Chart(distance, "minutes", distances, scale(distance), (0,)),
        Chart(", ".join(SHARES), "minutes", shares, "linear", (0,)),
        Chart("held-out loss", "minutes", losses, scale("held-out"), (0,)),
    ]


def distance_of(run: RunFolder) -> str:
    """The Fréchet distance in the features that its images have."""
    return next(name for name in score_names([run]) if name.startswith("fid_"))


if __name__ == "__main__":
    main()
