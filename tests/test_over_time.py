"""What a run records while it trains: history, scores, EMA snapshots, checkpoints that are kept."""

import json
import os
import signal

import pytest
from faults import NETWORK, result, store_classifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import sample
import train
from config import PRESETS, differences
from training.validate import samples_to_score
from utils import checkpoint
from utils.history import read_history

LOGS, FOLDER = "Logs_Checkpoints/Inference/version_{}", "Logs_Checkpoints/checkpoints/version_{}"
SCORED = ["--score-every", "4", "--score-images", "16"]


def run(*argv) -> int:
    return train.main([*NETWORK, "--max-steps", "10", *argv])


def test_the_history_has_every_validation_and_a_resumed_run_no_line_twice(few_digits):
    logs = few_digits / LOGS.format(0)
    assert run() == 0
    rows = read_history(logs)
    assert [row["step"] for row in rows] == [5, 10]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    for row in rows:
        assert row["held_out"] == pytest.approx(sum(row["held_out_by_t"]) / 4, rel=1e-5)
        assert row["held_out_raw"] != row["held_out"]
        assert row["images_per_s"] > 0
    about = json.loads((logs / "run.json").read_text())
    assert (about["status"], about["step"], about["total_steps"]) == ("finished", 10, 10)
    assert about["class_names"] == [str(digit) for digit in range(10)]
    first = few_digits / FOLDER.format(0) / checkpoint.filename(5)
    assert train.main(["--resume", str(first), "--device", "cpu", "--max-steps", "12"]) == 0
    again = read_history(logs)
    assert [row["step"] for row in again] == [5, 10, 12]
    assert again[0] == rows[0]
    assert again[1]["seconds"] > rows[0]["seconds"]  # the time before the resume counts


def test_scores_are_curves_that_change_no_bit_and_the_best_is_kept(few_digits):
    """On a classifier that is at hand; without scores nothing of the result differs."""
    assert run() == 0
    store_classifier(few_digits / "Logs_Checkpoints")
    assert run(*SCORED, "--keep", "1") == 0
    parts = [{**checkpoint.load(checkpoint.newest(few_digits / FOLDER.format(v)))} for v in (0, 1)]
    for part in ("model", "ema", "optimizer"):
        assert checkpoint.digest(parts[0][part]) == checkpoint.digest(parts[1][part])
    rows = read_history(few_digits / LOGS.format(1))
    assert [row["step"] for row in rows] == [4, 5, 8, 10]
    assert [row["step"] for row in rows if "score" in row] == [4, 8, 10]
    assert {"precision", "recall", "accuracy"} <= rows[0]["score"].keys()
    events = EventAccumulator(str(few_digits / LOGS.format(1))).Reload()
    curve = {event.step: event.value for event in events.Scalars("score/accuracy")}
    scored = {row["step"]: row["score"]["accuracy"] for row in rows if "score" in row}
    assert curve == pytest.approx(scored)


@pytest.mark.parametrize("signalled", [True, False])
def test_a_signal_ends_the_scores_at_once_and_the_run_goes_on_the_same(
    few_digits, monkeypatch, signalled
):
    """The checkpoint is written before. Unsignalled is the control: the scores are there."""
    store_classifier(few_digits / "Logs_Checkpoints")
    drawn, signals = [], [signal.SIGTERM] * signalled

    def draw(*arguments):
        if signals:
            os.kill(os.getpid(), signals.pop())
        drawn.append(samples_to_score(*arguments))
        return drawn[-1]

    monkeypatch.setattr(train, "samples_to_score", draw)
    assert run(*SCORED) == (143 if signalled else 0)
    assert len(drawn) == (0 if signalled else 3)
    rows = read_history(few_digits / LOGS.format(0))
    assert [row["step"] for row in rows] == ([4] if signalled else [4, 5, 8, 10])
    assert ("score" in rows[0]) != signalled
    if signalled:
        assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
        rows = read_history(few_digits / LOGS.format(0))
        assert [row["step"] for row in rows if "score" in row] == [8, 10]


def test_the_checkpoint_of_the_best_score_is_kept(tmp_path):
    """Beside that of the best loss, and the newest."""
    for step in range(1, 8):
        (tmp_path / checkpoint.filename(step)).touch()
    checkpoint.prune(tmp_path, best=(2, 4), keep=1)
    assert list(checkpoint.steps(tmp_path)) == [2, 4, 7]


def test_all_checkpoints_are_kept_where_that_is_asked(few_digits):
    assert run("--keep", "all", "--eval-every", "2") == 0
    assert list(checkpoint.steps(few_digits / FOLDER.format(0))) == [2, 4, 6, 8, 10]
    assert run("--keep", "1", "--eval-every", "2") == 0
    best = checkpoint.load(checkpoint.newest(few_digits / FOLDER.format(1)))["best"]["step"]
    assert list(checkpoint.steps(few_digits / FOLDER.format(1))) == sorted({best, 10})


def test_ema_snapshots_are_small_and_sample_as_their_checkpoints_do(few_digits, capsys):
    assert run("--keep-ema", "--keep", "all") == 0
    folder = few_digits / FOLDER.format(0)
    snapshots = sorted(folder.glob("ema_*.pt"))
    assert [path.name for path in snapshots] == ["ema_00000005.pt", "ema_00000010.pt"]
    whole = folder / checkpoint.filename(5)
    assert snapshots[0].stat().st_size < 0.5 * whole.stat().st_size
    images = [
        sample.load(path).sample(num=3, steps=2) for path in (snapshots[0], whole, snapshots[1])
    ]
    assert images[0].equal(images[1])
    assert not images[0].equal(images[2])  # control
    assert train.main(["--resume", str(snapshots[0]), "--device", "cpu"]) == 2
    assert "lacks model, optimizer" in capsys.readouterr().err


def test_the_table_of_runs_has_their_settings(few_digits):
    assert run("--lr", "0.002") == 0
    events = EventAccumulator(str(few_digits / LOGS.format(0))).Reload()
    plugin = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data
    assert plugin.plugin_name == metadata.PLUGIN_NAME
    start = metadata.parse_session_start_info_plugin_data(plugin.content)
    assert start.hparams["lr"].number_value == 0.002
    assert start.hparams["dataset"].string_value == "digits"
    assert metadata.SESSION_END_INFO_TAG in events.summary_metadata


def test_validating_elsewhere_changes_no_weight(few_digits):
    digests = []
    for version, every in enumerate(("3", "auto")):
        assert run("--eval-every", every) == 0
        content = checkpoint.load(checkpoint.newest(few_digits / FOLDER.format(version)))
        digests.append([checkpoint.digest(content[part]) for part in ("model", "ema", "optimizer")])
    assert digests[0] == digests[1]
    assert run("--seed", "1") == 0
    assert result(few_digits) is not None
    content = checkpoint.load(checkpoint.newest(few_digits / FOLDER.format(2)))
    assert checkpoint.digest(content["model"]) != digests[0][0]  # control


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_told_by_its_settings_and_what_differs_is_named(name):
    assert differences(PRESETS[name]) == (name, {})
    filled = PRESETS[name].override(lr=0.123, image_size=(48, 32), num_classes=3)
    expected = {"--lr": "0.123"}
    for flag, value, shown in (("image_size", (0, 0), "48x32"), ("num_classes", -1, "3")):
        section = PRESETS[name].data if flag == "image_size" else PRESETS[name].model
        if getattr(section, flag) != value:  # not what the data set fills in
            expected["--" + flag.replace("_", "-")] = shown
    assert differences(filled) == (name, expected)
