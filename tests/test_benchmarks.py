"""What the benchmarks compute; what they time is not tested."""

import json
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import pytest
import torch

import train
from benchmarks import ablation, bits, pretext, samplers, scaling, time_to_quality
from benchmarks.time_to_quality import Args
from benchmarks.trials import Place, Score, Scores, read, side_by_side
from config import PRESETS, Config, ConfigError, Parser
from data.digits import draw_digits
from evaluation.features import LabeledImages
from sample import add_flags, parse
from training.setup import parse_args
from utils import images

pytest_plugins = "trained"
ROW = Score(
    "ours", "--lr 1e-3", "", 3.0, 2, 0, 100, 5000, 0.25, 0.125, 0.9, 0.8, -1.0, 7.5, "AVX2", "abc"
)
PARTS = {"whole step": 1.0, "clip": 0.05, "Muon": 0.1, "forward": 0.3}


def test_a_table_of_scores_survives_the_disk(tmp_path):
    """Every field, with its type; and what is missing is what is not in it."""
    path = tmp_path / "made" / "scores.csv"
    rows = [ROW, replace(ROW, seed=1), replace(ROW, name="a, b", sample_flags="--steps 50")]
    scores = Scores(path)
    for row in rows:
        scores.add(row)
    again = Scores(path)
    assert again.rows == rows
    assert again.has(name="ours", minutes=3, seed=1, sample_flags="")
    assert not again.has(name="ours", minutes=10)
    assert not again.has(name="ours", seed=1, sample_flags="--steps 50")
    assert not list(path.parent.glob("*.partial"))


def test_a_row_is_the_first_sampler_beside_the_floor():
    sampled = {"fid_classifier@9": 0.5, "precision@9": 0.8, "recall@9": 0.7, "s/1000": 4.0}
    floor = {"fid_classifier@9": 0.1}
    of = {"num": 9, "step": 7, "environment": {"cpu": "AVX512", "bf16": "yes", "git": "abc"}}
    section = {"of": of, "rows": {"ddpm:10": sampled, "real train images": floor}}
    known = {"name": "x", "train_flags": "", "sample_flags": "", "minutes": 1, "cores": 1}
    row = read(section, **known, seed=0)
    assert (row.fid, row.floor, row.precision, row.recall) == (0.5, 0.1, 0.8, 0.7)
    assert (row.steps, row.num, row.seconds_per_1000) == (7, 9, 4.0)
    assert row.accuracy == -1  # a network without classes
    assert (row.cpu, row.git) == ("AVX512 bf16", "abc")


@dataclass(frozen=True)
class InProcess(Place):
    """A Place whose trainings take a tenth of a second, as no process has to start."""

    capsys: pytest.CaptureFixture

    def run(self, _script, *flags):
        self.capsys.readouterr()
        assert train.main([*flags, "--device", "cpu"]) == 0
        return self.capsys.readouterr().out


@pytest.mark.usefixtures("few_digits")
def test_a_training_is_done_once_in_a_place(tmp_path, capsys):
    flags = ["--preset", "smoke", "--max-steps", "2", "--steps", "1"]
    place = InProcess(tmp_path, str(tmp_path), 1, capsys)
    first = place.train(flags)
    assert place.train(flags) == first
    on = place.train(["--resume", str(first), "--max-steps", "4"])
    assert on.parent == first.parent
    assert on.name != first.name  # control: other flags are another training
    place.train(["--resume", str(on), "--max-steps", "6"])  # deletes the first of the run's own
    assert first.exists()
    assert not first.with_name(first.name.removeprefix("kept_")).exists()
    assert place.train(["--resume", str(first), "--max-steps", "5"]).exists()


def test_a_script_is_a_process_whose_failure_is_noticed(tmp_path):
    place = Place(tmp_path, str(tmp_path), 1)
    assert "--channel-multipliers" in place.run("config.py")
    with pytest.raises(subprocess.CalledProcessError):
        place.run("nowhere.py")


class RecordingPlace:
    """Stands for a Place: notes what is asked of it, and fails when it is told to."""

    cores, data_root = 1, ""

    def __init__(self, folder, fail_at=None):
        self.folder, self.asked, self.fail_at = folder, [], fail_at

    def train(self, flags):
        self.asked.append(("train", " ".join(flags)))
        return self.folder / f"after_{len(self.asked)}"

    def score(self, _ckpt, num, flags):
        if len(self.asked) == self.fail_at:
            raise OSError("stopped")
        self.asked.append(("score", num, " ".join(flags)))
        row = {f"{k}@{num}": 0.5 for k in ("fid_classifier", "precision", "recall")}
        rows = {"ddpm": row | {"s/1000": 1.0}, "real train images": row}
        machine = {"cpu": "AVX2", "bf16": "no", "git": ""}
        return {"of": {"num": num, "step": 1, "environment": machine}, "rows": rows}

    def draw(self, _ckpt, _flags):
        path = self.folder / "drawn.png"
        path.write_bytes(b"")
        return path


@pytest.mark.parametrize("name", time_to_quality.METHODS)
def test_a_method_is_scored_once_everywhere_whatever_stops_it(name, tmp_path):
    place = {"data_root": "", "run_root": None, "jobs": 1}
    args = Args(**place, only=None, seed=0, minutes=[3, 10, 25], num=300, out=tmp_path)
    whole, path = RecordingPlace(tmp_path), tmp_path / "whole.csv"
    time_to_quality.compare(whole, Scores(path), name, args)
    method = time_to_quality.METHODS[name]
    expected = 3 * len(method.samplings) + len(method.last)
    scored = [asked for asked in whole.asked if asked[0] == "score"]
    assert len(scored) == expected
    assert all(num >= time_to_quality.MIN_FOR_FID for _, num, _ in scored)
    again = RecordingPlace(tmp_path)
    time_to_quality.compare(again, Scores(path), name, args)
    assert again.asked == []
    for fail_at in range(1, len(whole.asked)):
        path = tmp_path / f"{fail_at}.csv"
        stopped, resumed = RecordingPlace(tmp_path, fail_at), RecordingPlace(tmp_path)
        with suppress(OSError):
            time_to_quality.compare(stopped, Scores(path), name, args)
        time_to_quality.compare(resumed, Scores(path), name, args)
        both = stopped.asked + resumed.asked
        assert sorted(a for a in both if a[0] == "score") == sorted(scored)
        assert {a for a in both if a[0] == "train"} >= {whole.asked[0]}


def test_the_plots_of_a_comparison_are_drawn(tmp_path):
    from benchmarks import plot  # matplotlib takes a second

    pictures = {("ours", 3): tmp_path / "a.png"}
    images.save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), pictures["ours", 3])
    plot.plot_quality([ROW, replace(ROW, name="b", minutes=10.0)], tmp_path / "quality.png")
    plot.plot_grids(tmp_path, pictures)
    plot.plot_grids(tmp_path, {})
    assert {p.name for p in tmp_path.glob("*quality*.png")} == {
        "quality.png",
        "time_to_quality_grids.png",
    }


def test_after_one_that_fails_no_other_task_begins():
    begun = []

    def task(n):
        begun.append(n)
        if n == 1:
            raise ValueError("second")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="second"):
        side_by_side(1, [partial(task, n) for n in range(50)])
    assert begun[:2] == [0, 1]
    assert len(begun) < 50


def test_what_a_network_without_classes_lacks_is_left_out():
    for line in (ablation.line, time_to_quality.line):
        assert line(ROW).endswith("|  |")
        assert line(replace(ROW, accuracy=0.5)).endswith("| 50.0% |")  # control


def rows() -> list[tuple[str, str]]:
    """Flags of training, and of sampling, of every row of both benchmarks."""
    tables = (ablation.FORMULATION, ablation.RECIPE)
    pairs = [(flags, own) for t in tables for flags, row in t.items() for own in row.values()]
    methods = time_to_quality.METHODS.values()
    return pairs + [(m.flags, own) for m in methods for own in (*m.samplings, *m.last)]


def configured(train_flags: str) -> Config:
    return parse_args(train_flags.split(), "").config


def accept(train_flags: str, sample_flags: str) -> None:
    parser = Parser()
    add_flags(parser, num=1)
    _, typed = parse(parser, sample_flags.split())
    config = configured(train_flags).override(**typed)
    config.check()
    config.check_sampling(typed)


@pytest.mark.parametrize("pair", rows())
def test_the_flags_of_every_row_are_accepted(pair):
    accept(*pair)


def test_flags_that_do_not_fit_a_row_are_refused():
    """The control: what is accepted above is checked."""
    for pair in (("--loss kl", "--steps 1001"), ("", "--sampler dpmpp --variance beta")):
        with pytest.raises(ConfigError):
            accept(*pair)


def test_no_two_rows_of_the_ablation_are_the_same_training():
    configs = [configured(flags) for flags in ablation.FORMULATION]
    assert configs[0] == Config()
    assert all(a != b for a, b in combinations(configs, 2))


def test_no_two_rows_of_the_bits_are_the_same_training_and_all_can_be_evaluated():
    configs = [parse_args(flags.split(), "").config for flags in bits.ROWS.values()]
    assert configs[0] == PRESETS["likelihood"]
    assert all(a != b for a, b in combinations(configs, 2))


@pytest.mark.slow
def test_the_bits_of_a_row_are_those_of_its_own_variance_and_of_all_steps(tmp_path):
    tiny = "--preset smoke --max-steps 2 --timesteps 8 --steps 2 --prediction x0 --loss kl"
    flags = f"{tiny} --schedule log-snr --learn-variance --variance learned --guidance 1"
    where = Place(tmp_path, str(tmp_path / "none"), 1)
    found = bits.measured(where, flags.split())
    assert found["bits"]["total"] == pytest.approx(found["parts"]["all"]["total"])
    assert found["coders"].keys() == {"gzip -9", "bzip2 -9", "xz -9e", "context"}


def test_the_timed_loop_trains_for_the_steps_it_is_asked_for():
    baselines = pytest.importorskip("benchmarks.baselines", exc_type=ImportError)
    task = baselines.Task("mnist", "fp32", torch.device("cpu"))
    state, trained = baselines.start(task), []
    run = baselines.loop(task, task.images(64), state)
    state.model.register_forward_hook(lambda *_: trained.append(state.step))
    run(2)
    run(1)
    assert trained == [1, 2, 1]


def test_the_large_network_is_that_of_the_original():
    flags = f"{time_to_quality.TEXTBOOK} {time_to_quality.LARGE}"
    assert configured(flags).model == PRESETS["original"].model


def test_the_model_of_scaling_has_its_limits():
    """One rank: as measured. A free network: Amdahl's law. No network: it does not pay."""
    for n in scaling.RANKS:
        amdahl = 0.15 + 0.85 / n
        assert scaling.step_seconds(PARTS, 10**9, n, float("inf")) == pytest.approx(amdahl)
    assert scaling.step_seconds(PARTS, 10**9, 1, 1.0) == pytest.approx(1.0)
    assert scaling.pays(PARTS, 10**9, 1.0) == 1
    assert scaling.pays({"whole step": 1.0}, 10**9, float("inf")) == scaling.RANKS[-1]
    assert scaling.pays(PARTS, 0, 1.0) == 4  # 0.36 to 0.26 s is less than 1.5 times as fast


def test_the_table_of_scaling_has_measured_steps_only():
    rows = [{"preset": p, "precision": "bf16", "parts": PARTS} for p in ("mnist", "original")]
    lines = scaling.table([*rows, {"preset": "original", "precision": "fp32"}], 10**6)
    assert len(lines) == 2 + len(scaling.NETWORKS)
    assert all(line.startswith("| bf16, ") for line in lines[2:])
    assert len(scaling.table([], 10**6)) == 2  # control


def test_spearman_is_of_the_ranks_alone():
    """1 for what rises together, -1 for the reverse; by hand: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    a = [0.1, 5.0, 2.0, 100.0]
    assert pretext.spearman(a, [x**3 for x in a]) == pytest.approx(1)
    assert pretext.spearman(a, [-x for x in a]) == pytest.approx(-1)
    assert pretext.spearman(a, [1.0, 4.0, 3.0, 2.0]) == pytest.approx(1 - 6 * 6 / (4 * 15))


def test_corruptions_rise_with_their_degree_and_keep_the_shape():
    """In the mean change of a pixel; fewer classes and repeats change none, but leave fewer."""
    test = LabeledImages(*draw_digits(True, 100))
    for corrupt, degrees in pretext.CORRUPTIONS.values():
        sets = [corrupt(test, degree) for degree in degrees]
        assert all(images.shape[1:] == (1, 28, 28) for images in sets)
        assert all(images.dtype == torch.uint8 for images in sets)
        if corrupt in (pretext.fewer_classes, pretext.repeated):
            sizes = [len(images[:100].unique(dim=0)) for images in sets]
            assert sizes == sorted(sizes, reverse=True)
            continue
        changes = [(images.float() - test.images).abs().mean().item() for images in sets]
        assert changes[0] > 0
        assert changes == sorted(changes)


@pytest.mark.slow
@pytest.mark.usefixtures("few_drawn")
def test_samplers_are_measured_once_at_the_evaluations_they_may_cost(trained, tmp_path, capsys):
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--run-root", str(trained)]
    flags += ["--num", "16", "--device", "cpu", "--out", str(tmp_path), "--budgets", "2", "8"]
    rows = ["ddpm", "heun, karras", "ddim, restart"]
    samplers.main([*flags, "--rows", *rows[:2]])
    (own,) = json.loads((tmp_path / "samplers.json").read_text()).values()
    assert own["rows"].keys() == {f"{row}: {n}" for row in rows[:2] for n in (2, 8)}
    assert all(row["nfe"] <= int(key[-1]) for key, row in own["rows"].items())
    assert own["rows"]["ddpm: 8"]["nfe"] > own["rows"]["heun, karras: 2"]["nfe"]
    assert "precision@16" in own["floor"]["real train images"]
    own["rows"]["ddpm: 8"]["steps"] = -7  # known by now
    (tmp_path / "samplers.json").write_text(json.dumps({NETWORK: own}))
    samplers.main([*flags, "--rows", rows[0], rows[2]])
    (again,) = json.loads((tmp_path / "samplers.json").read_text()).values()
    assert again["rows"]["ddpm: 8"]["steps"] == -7
    assert again["rows"]["ddim, restart: 2"] is None  # no restart costs as little
    assert again["rows"]["ddim, restart: 8"]["nfe"] == 8  # control
    assert (tmp_path / "samplers_version_0.png").stat().st_size > 1000
    assert "| ddim, restart: 2 | |" in capsys.readouterr().out


NETWORK = "version_0, step 12, 16 images"
