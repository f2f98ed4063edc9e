"""What the benchmarks compute; what they time is not tested."""

import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch

from benchmarks import ablation, plot, scaling, time_to_quality
from benchmarks.trials import Place, Score, Scores, read, side_by_side
from config import PRESETS, Config, ConfigError, Parser
from diffusion import options_of
from draw import CHOICES, add_flags, parse_flags
from prepare import parse
from scores import LEAST
from utils import images

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
    metrics = {"num": 9, "step": 7, "scores": {"ddpm:10": sampled, "real train images": floor}}
    metrics["environment"] = {"cpu": "AVX512", "bf16": "yes", "git": "abc"}
    known = {"name": "x", "train_flags": "", "sample_flags": "", "minutes": 1, "cores": 1}
    row = read(metrics, **known, seed=0)
    assert (row.fid, row.floor, row.precision, row.recall) == (0.5, 0.1, 0.8, 0.7)
    assert (row.steps, row.num, row.seconds_per_1000) == (7, 9, 4.0)
    assert row.accuracy == -1  # a network without classes
    assert (row.cpu, row.git) == ("AVX512 bf16", "abc")


def test_a_training_is_done_once_in_a_place(tmp_path):
    flags = ["--preset", "smoke", "--max-steps", "2"]
    place = Place(tmp_path, str(tmp_path), 1)
    first = place.train(flags)
    assert place.train(flags) == first
    assert place.train([*flags, "--seed", "1"]) != first  # control
    on = place.train(["--resume", str(first), "--max-steps", "4"])
    assert on.parent == first.parent
    assert on.name != first.name
    place.train(["--resume", str(on), "--max-steps", "6"])  # deletes the first of the run's own
    assert first.exists()
    assert not first.with_name(first.name.removeprefix("kept_")).exists()
    assert place.train(["--resume", str(first), "--max-steps", "5"]).exists()


class Told:
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
        scores = {"ddpm": row | {"s/1000": 1.0}, "real train images": row}
        machine = {"cpu": "AVX2", "bf16": "no", "git": ""}
        return {"num": num, "step": 1, "scores": scores, "environment": machine}

    def draw(self, _ckpt, _flags):
        path = self.folder / "drawn.png"
        path.write_bytes(b"")
        return path


@pytest.mark.parametrize("name", time_to_quality.CONTENDERS)
def test_a_contender_is_scored_once_everywhere_whatever_stops_it(name, tmp_path):
    flags = Namespace(minutes=[3, 10, 25], num=300, seed=0, out=tmp_path)
    whole, path = Told(tmp_path), tmp_path / "whole.csv"
    time_to_quality.compete(whole, Scores(path), name, flags)
    contender = time_to_quality.CONTENDERS[name]
    expected = 3 * len(contender.samplings) + len(contender.last)
    scored = [asked for asked in whole.asked if asked[0] == "score"]
    assert len(scored) == expected
    assert all(num >= LEAST for _, num, _ in scored)
    again = Told(tmp_path)
    time_to_quality.compete(again, Scores(path), name, flags)
    assert again.asked == []
    for fail_at in range(1, len(whole.asked)):
        path = tmp_path / f"{fail_at}.csv"
        stopped, resumed = Told(tmp_path, fail_at), Told(tmp_path)
        with suppress(OSError):
            time_to_quality.compete(stopped, Scores(path), name, flags)
        time_to_quality.compete(resumed, Scores(path), name, flags)
        both = stopped.asked + resumed.asked
        assert sorted(a for a in both if a[0] == "score") == sorted(scored)
        assert {a for a in both if a[0] == "train"} >= {whole.asked[0]}


def test_the_plots_of_a_comparison_are_drawn(tmp_path):
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
    rivals = time_to_quality.CONTENDERS.values()
    return pairs + [(c.flags, own) for c in rivals for own in (*c.samplings, *c.last)]


def accept(train_flags: str, sample_flags: str) -> None:
    config, _, _ = parse(train_flags.split(), "")
    parser = Parser()
    add_flags(parser, num=1)
    _, typed = parse_flags(parser, ["--ckpt", "x", *sample_flags.split()])
    config = config.override(**typed)
    config.check(CHOICES)
    config.check_sampling(typed, options_of(config.sample.sampler))


@pytest.mark.parametrize("pair", rows())
def test_the_flags_of_every_row_are_accepted(pair):
    accept(*pair)


def test_flags_that_do_not_fit_a_row_are_refused():
    """The control: what is accepted above is checked."""
    for pair in (("--loss kl", "--steps 1001"), ("", "--sampler dpmpp --variance beta")):
        with pytest.raises(ConfigError):
            accept(*pair)


def test_no_two_rows_of_the_ablation_are_the_same_training():
    configs = [parse(flags.split(), "")[0] for flags in ablation.FORMULATION]
    assert configs[0] == Config()
    assert all(a != b for a, b in combinations(configs, 2))


def test_the_large_rival_has_the_network_of_the_original():
    flags = f"{time_to_quality.TEXTBOOK} {time_to_quality.LARGE}"
    assert parse(flags.split(), "")[0].model == PRESETS["original"].model


def test_the_model_of_scaling_has_its_limits():
    """One rank: as measured. A free network: Amdahl's law. No network: it does not pay."""
    for n in scaling.RANKS:
        amdahl = 0.15 + 0.85 / n
        assert scaling.step_seconds(PARTS, 10**9, n, float("inf")) == pytest.approx(amdahl)
    assert scaling.step_seconds(PARTS, 10**9, 1, 1.0) == pytest.approx(1.0)
    assert scaling.pays(PARTS, 10**9, 1.0) == 1
    assert scaling.pays({"whole step": 1.0}, 10**9, float("inf")) == scaling.RANKS[-1]
    assert scaling.pays(PARTS, 0, 1.0) == 4  # 0.36 to 0.26 s is less than 1.5 times as fast
