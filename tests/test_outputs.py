"""What a run can do without costs a line; what a validation leaves; what a resume sets aside."""

import errno
import itertools
import json
import math
import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from faults import NETWORK, SMALL, newest, result, store_classifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import evaluation.features
import train
from training.clock import Clock
from training.logger import Logger
from training.outputs import Outputs
from training.screen import best_loss
from training.validate import Validation
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.errors import StoppedError
from utils.history import read_history
from utils.runs import Run

LOGS, FOLDER = "Logs_Checkpoints/Inference/version_{}", "Logs_Checkpoints/checkpoints/version_{}"
SCORED = ["--score-every", "10", "--score-images", "16"]
AUTO = ["--resume", "auto", "--device", "cpu"]


def run(*argv) -> int:
    return train.main([*NETWORK, "--max-steps", "10", *argv])


def failing(error: Exception):
    def fail(*_arguments, **_options):
        raise error

    return fail


BREAK = [
    (Validation, "draw", "no samples"),
    (Logger, "write_pictures", "no samples"),
    (train, "score_samples", "no scores"),
    (train.Scorer, "of", "no scores"),
    (Run, "save_ema", "cannot keep the EMA weights"),
    (train, "write_report", "cannot write"),
]
FAULTS = [
    RuntimeError("shapes differ\nand more"),
    OSError(errno.ENOSPC, "No space left on device", "a"),
    CheckpointError("cannot write a: No space left on device"),
    torch.linalg.LinAlgError("did not converge"),
]


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_what_a_run_can_do_without_costs_a_line_and_no_bit(few_digits, monkeypatch, capsys, first):
    """Each of these with one of the faults; in the slow tier with all of them."""
    store_classifier(few_digits / "Logs_Checkpoints")
    flags = [*SCORED, "--keep-ema", "--keep", "all"]
    assert run(*flags) == 0
    whole = result(few_digits)
    capsys.readouterr()
    faults = itertools.cycle([*FAULTS[first:], *FAULTS[:first]])
    for (owner, name, words), error in zip(BREAK, faults, strict=False):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(error))
            assert run(*flags) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert all(line.startswith(f"warning: {words}") for line in lines)
        assert result(few_digits) == whole


def test_the_checkpoint_is_there_before_all_that_a_run_can_do_without(few_digits, monkeypatch):
    store_classifier(few_digits / "Logs_Checkpoints")
    seen = []
    for owner, name in ((Validation, "draw"), (train, "score_samples"), (Run, "save_ema")):
        original = getattr(owner, name)

        def checked(*arguments, original=original, name=name):
            seen.append((name, newest(few_digits)["step"]))
            return original(*arguments)

        monkeypatch.setattr(owner, name, checked)
    assert run(*SCORED, "--keep-ema") == 0
    steps = [("draw", 5), ("save_ema", 5), ("draw", 10), ("score_samples", 10), ("save_ema", 10)]
    assert seen == steps


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 1),
        (StoppedError("gone"), 1),
    ],
    ids=["python", "cuda", "stopped"],
)
def test_lack_of_memory_ends_a_run_as_ever(few_digits, monkeypatch, capsys, error, code):
    monkeypatch.setattr(Validation, "draw", failing(error))
    assert run() == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train.py: stopped: ")
    assert isinstance(error, StoppedError) or "the last good one is" in line
    assert newest(few_digits)["step"] == 5


def test_a_resume_sets_aside_what_lies_after_its_step(few_digits, capsys):
    flags = ["--keep-ema", "--keep", "all"]
    assert run(*flags) == 0
    logs, folder = few_digits / LOGS.format(0), few_digits / FOLDER.format(0)
    first = folder / checkpoint.filename(5)
    before = (logs / "samples_00000010.png").read_bytes()
    assert train.main(["--resume", str(first), "--device", "cpu", "--max-steps", "7"]) == 0
    assert [path.name for path in sorted(logs.glob("samples*"))] == [
        "samples_00000005.png",
        "samples_00000007.png",
        "samples_00000010.png.replaced",
    ]
    assert (logs / "samples_00000010.png.replaced").read_bytes() == before
    assert [path.name for path in sorted(folder.glob("ema*"))] == [
        "ema_00000005.pt",
        "ema_00000007.pt",
        "ema_00000010.pt.replaced",
    ]
    assert "ema_00000010.pt: that step is taken anew" in capsys.readouterr().out


def test_the_training_loss_of_a_line_is_that_of_all_steps_since_the_one_before(
    few_digits, monkeypatch
):
    """Also where the run was interrupted in between."""
    assert run() == 0
    original = train.train_step

    def stop_at_seven(state, x_0, y):
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(state, x_0, y)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", stop_at_seven)
        assert run() == 143
    assert train.main(AUTO) == 0
    whole, broken = (read_history(few_digits / LOGS.format(version)) for version in (0, 1))
    assert [row["train"] for row in whole] == pytest.approx([row["train"] for row in broken])
    events = EventAccumulator(str(few_digits / LOGS.format(0))).Reload().Scalars("loss/train")
    losses = [event.value for event in events]
    assert whole[1]["train"] == pytest.approx(sum(losses[5:]) / 5, rel=1e-5)
    assert whole[1]["train"] != pytest.approx(sum(losses[7:]) / 3, rel=1e-5)  # control


STARTUP, VALIDATION, EXTRA, STEP = 1000.0, 7.0, 3.0, 0.5  # seconds


@pytest.fixture
def by_hand(monkeypatch):
    """A clock that only these things advance: start-up, steps, validations."""
    now = [0.0]
    monkeypatch.setattr(train, "Clock", partial(Clock, clock=lambda: now[0]))

    def takes(owner, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def timed(*arguments, **options):
            now[0] += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, timed)

    takes(train, "load_data", STARTUP)
    takes(train.Scorer, "of", STARTUP)
    takes(train, "train_step", STEP)
    takes(Validation, "measure", VALIDATION)
    takes(Validation, "draw", EXTRA)
    return now


@pytest.mark.usefixtures("by_hand")
def test_seconds_are_those_from_the_first_step_on_with_earlier_validations(few_digits):
    store_classifier(few_digits / "Logs_Checkpoints")
    logs = few_digits / LOGS.format(0)
    assert run(*SCORED) == 0
    seconds = [row["seconds"] for row in read_history(logs)]
    assert seconds == [5 * STEP, 10 * STEP + VALIDATION + EXTRA]
    whole = 10 * STEP + 2 * (VALIDATION + EXTRA)
    assert json.loads((logs / "run.json").read_text())["seconds"] == whole
    assert train.main([*AUTO, "--max-steps", "12"]) == 0
    before = newest(few_digits)["seconds"]  # of this resumed run
    (*_, row) = read_history(logs)
    assert row["seconds"] == 12 * STEP + 2 * VALIDATION + EXTRA  # until the checkpoint
    assert before == row["seconds"] + VALIDATION


@pytest.mark.usefixtures("by_hand")
def test_minutes_are_those_of_training_whatever_comes_before_it(few_digits):
    """By the very cost that is planned, half a minute has nearly 60 steps."""
    store_classifier(few_digits / "Logs_Checkpoints")
    flags = ["--max-steps", "100000", "--eval-every", "auto", "--batch-size", "100"]
    flags += ["--max-minutes", "0.5", "--score-every", "99999", "--score-images", "16"]
    assert run(*flags) == 0
    about = json.loads((few_digits / LOGS.format(0) / "run.json").read_text())
    assert 0.9 * 30 < about["step"] * STEP <= 30


@pytest.mark.usefixtures("by_hand")
def test_the_speed_of_a_line_is_that_of_training_since_the_one_before(few_digits):
    assert run() == 0
    rows = read_history(few_digits / LOGS.format(0))
    assert [row["images_per_s"] for row in rows] == [20 / STEP] * 2


def test_the_table_of_runs_and_the_page_are_those_of_the_resumed_run(few_digits):
    assert run("--keep", "all") == 0
    logs, first = few_digits / LOGS.format(0), few_digits / FOLDER.format(0)
    path = first / checkpoint.filename(5)
    store_classifier(few_digits / "Logs_Checkpoints")
    again = ["--resume", str(path), "--device", "cpu", "--lr", "0.005", *SCORED]
    assert train.main(again) == 0
    events = EventAccumulator(str(logs)).Reload()
    plugin = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data
    start = metadata.parse_session_start_info_plugin_data(plugin.content)
    assert start.hparams["lr"].number_value == 0.005
    plugin = events.summary_metadata[metadata.EXPERIMENT_TAG].plugin_data
    experiment = metadata.parse_experiment_plugin_data(plugin.content)
    assert "score/fid_classifier" in {info.name.tag for info in experiment.metric_infos}
    (page,) = events.Tensors("run/text_summary")
    text = page.tensor_proto.string_val[0].decode()
    assert "| --lr | 0.005 |" in text
    assert "after step 5: --lr: 0.0007 -> 0.005 (changes the result)" in text


def test_scores_that_cannot_be_are_said_once_with_the_reason(few_digits, capsys):
    store_classifier(few_digits / "Logs_Checkpoints")
    assert run("--score-every", "5", "--score-images", "16") == 0
    out = capsys.readouterr().out
    assert out.count("no fid_classifier: 16 samples") == 1
    assert out.count("no kid_classifier: 16 samples") == 1
    assert "no accuracy" not in out  # control
    assert run("--score-every", "5", "--score-images", "16", "--num-classes", "0") == 0
    assert capsys.readouterr().out.count("no accuracy: the network was trained without") == 1


def test_the_footer_has_the_scores_that_were_measured(few_digits, capsys):
    store_classifier(few_digits / "Logs_Checkpoints")
    assert run(*SCORED) == 0
    *_, done, scores, draw = capsys.readouterr().out.splitlines()
    assert done.startswith("Done after step 10, ")
    assert [word.split()[0] for word in scores.split(", ")] == ["precision", "recall", "accuracy"]
    assert draw.startswith("draw images: ")


@pytest.mark.parametrize(("points", "words"), [(64, " of 64 images"), (1024, ""), (None, "")])
def test_the_best_loss_says_of_how_many_images_it_is_where_they_were_fewer(points, words):
    size = SimpleNamespace(points=1024)
    state = SimpleNamespace(
        best={"loss": 0.5, "step": 200} | ({"points": points} if points else {}),
        step=900,
        finished=True,
        validation_schedule=SimpleNamespace(size=lambda *_: size),
    )
    assert best_loss(state) == f"best 0.50000{words} at step 200"


def test_ctrl_c_ends_the_training_of_the_feature_extractor(few_digits, monkeypatch, capsys):
    taken, original = [], evaluation.features.shifted

    def interrupt_third(*arguments):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(evaluation.features, "shifted", interrupt_third)
    assert run(*SCORED) == 130
    assert len(taken) <= 4
    assert capsys.readouterr().err.splitlines()[-1] == (
        "train.py: interrupted before the first step"
    )
    assert not list((few_digits / FOLDER.format(0)).glob("*.lock"))


def test_a_signal_before_the_feature_extractor_is_heard(few_digits, monkeypatch):
    original = train.Validation

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(train, "Validation", interrupted)
    monkeypatch.setattr(train.Scorer, "of", failing(AssertionError("trained")))
    assert run(*SCORED) == 130
    assert list((few_digits / FOLDER.format(0)).glob("*.pt")) == []


def test_the_last_grid_of_a_short_run_is_whole(few_digits, capsys):
    assert train.main([*SMALL, "--eval-every", "auto"]) == 0
    assert "Step 20: held-out loss" in (out := capsys.readouterr().out)
    assert "of 64 test images, 100 samples\n" in out
    assert len(list((few_digits / LOGS.format(0)).glob("samples_*.png"))) == 1


def test_a_small_validation_covers_all_t(few_digits, monkeypatch):
    found, original = [], Validation.measure
    monkeypatch.setattr(
        Validation, "measure", lambda *own: found.append(original(*own)) or found[-1]
    )
    assert run() == 0
    for losses in found:
        quarters = ((losses.t - 1) * 4 // 50).bincount(minlength=4)
        assert len(losses.t) == 64
        assert (quarters - 16).abs().max() <= 2
    by_t = read_history(few_digits / LOGS.format(0))[-1]["held_out_by_t"]
    last = found[-1]
    assert by_t[0] == pytest.approx(last.ema[last.t.argsort()[:16]].mean().item(), rel=0.05)


def test_lines_that_are_damaged_are_left_out_wherever_they_are(tmp_path):
    lines = [b'{"step": 1}', b'{"step": 2', b"\xff\xfe", b"[3]", b'{"seconds": 4}', b'{"step": 5}']
    (tmp_path / "history.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert read_history(tmp_path) == [{"step": 1}, {"step": 5}]
    outputs = Outputs(tmp_path)
    outputs.add_scores(5, {"recall": 0.5, "precision": math.nan})
    score = {"recall": 0.5, "precision": None}
    assert read_history(tmp_path) == [{"step": 1}, {"step": 5, "score": score}]
    outputs.go_back_to(1)
    assert read_history(tmp_path) == [{"step": 1}]
