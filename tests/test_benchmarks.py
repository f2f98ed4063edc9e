"""What the benchmarks compute; what they time is not tested."""

from dataclasses import replace
from itertools import combinations

import pytest

from benchmarks import ablation, scaling, time_to_quality
from benchmarks.trials import Place, Score, Scores, read
from config import PRESETS, Config, Parser
from draw import add_flags, parse_flags
from prepare import parse

ROW = Score("ours", "--lr 1e-3", "", 3.0, 2, 0, 100, 5000, 0.25, 0.125, 0.9, 0.8, -1.0, 7.5)
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
    assert again.missing(["", "--steps 50"], "ours", 3) == ["--steps 50"]
    assert again.missing([""], "ours", 3, seed=1) == []
    assert again.missing([""], "ours", 10) == [""]


def test_a_row_is_the_first_sampler_beside_the_floor():
    sampled = {"fid_classifier@9": 0.5, "precision@9": 0.8, "recall@9": 0.7, "s/1000": 4.0}
    floor = {"fid_classifier@9": 0.1}
    metrics = {"num": 9, "step": 7, "scores": {"ddpm:10": sampled, "real train images": floor}}
    known = {"name": "x", "train_flags": "", "sample_flags": "", "minutes": 1, "cores": 1}
    row = read(metrics, **known, seed=0)
    assert (row.fid, row.floor, row.precision, row.recall) == (0.5, 0.1, 0.8, 0.7)
    assert (row.steps, row.num, row.seconds_per_1000) == (7, 9, 4.0)
    assert row.accuracy == -1  # a network without classes


def test_a_training_is_done_once_in_a_place(tmp_path):
    flags = ["--preset", "smoke", "--max-steps", "2"]
    place = Place(tmp_path, str(tmp_path), 1)
    first = place.train(flags)
    assert place.train(flags) == first
    assert place.train([*flags, "--seed", "1"]) != first  # control
    on = place.train(["--resume", str(first), "--max-steps", "4"])
    assert on.parent == first.parent
    assert on.name != first.name


def rows() -> dict[str, list[str]]:
    """Flags of training by what they are for: each with those of sampling."""
    rows = {**ablation.FORMULATION, **ablation.RECIPE}
    pairs = [(flags, list(own.values())) for flags, own in rows.items()]
    rivals = time_to_quality.CONTENDERS.values()
    return dict(pairs + [(c.flags, [*c.samplings, *c.last]) for c in rivals])


@pytest.mark.parametrize("train_flags", rows())
def test_the_flags_of_every_row_are_accepted(train_flags):
    config, _, _ = parse(train_flags.split(), "")
    for own in rows()[train_flags]:
        parser = Parser()
        add_flags(parser, num=1)
        _, typed = parse_flags(parser, ["--ckpt", "x", *own.split()])
        config.override(**typed).check_sampling(typed, {"variance", "eta"})


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
