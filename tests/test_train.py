"""Training from the command line: what it leaves, how it continues, what it refuses."""

import os
import signal

import faults
import pytest
import torch
from faults import NETWORK, folder, result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data.datasets
import train
from config import ABOUT, PRESETS, Config
from training.clock import RESERVE, Clock
from training.validation_schedule import ValidationSchedule
from utils import checkpoint

CHECKPOINTS = "Logs_Checkpoints/checkpoints/version_{}"
AUTO = ["--resume", "auto", "--device", "cpu"]


def newest(root, version=0):
    return checkpoint.newest(root / CHECKPOINTS.format(version))


def run(*argv) -> int:
    """The small network of tests/faults.py, 5 steps an epoch, a validation each."""
    return train.main([*NETWORK, *argv])


def before_step(monkeypatch, action) -> None:
    """Call action(state) at the beginning of every step."""
    original = train.train_step

    def train_step(state, x_0, y):
        action(state)
        return original(state, x_0, y)

    monkeypatch.setattr(train, "train_step", train_step)


def interrupt_after(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """A real signal from this process to itself, in the middle of that step."""
    before_step(monkeypatch, lambda state: state.step == step and os.kill(os.getpid(), number))


def test_a_run_leaves_what_the_readme_says(few_digits, capsys):
    assert run("--max-steps", "10") == 0
    logs = few_digits / "Logs_Checkpoints/Inference/version_0"
    names = {path.name for path in logs.iterdir()}
    assert {"config.json", "environment.json", "run.json", "history.jsonl"} <= names
    assert {"samples_00000005.png", "samples_00000010.png", "data.png"} <= names
    assert {"reverse_process.png", "reverse_process.gif"} <= names
    steps = checkpoint.steps(few_digits / CHECKPOINTS.format(0))
    assert list(steps) == [5, 10]  # one a validation
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Logging at: Logs_Checkpoints/Inference/version_0"
    assert out[1] == "Model Checkpoint at: Logs_Checkpoints/checkpoints/version_0"
    first_words = [line.split()[0] for line in out[2:]]
    assert first_words[:2] == ["device", "data"]
    assert {"network", "schedule", "curves"} <= set(first_words)
    assert out[-2].startswith("Done after step 10, ")
    assert "held-out loss" in out[-2]
    assert f"{faults.ROOT / 'sample.py'} --ckpt" in out[-1]


def curves(root, version=0) -> EventAccumulator:
    events = EventAccumulator(str(root / f"Logs_Checkpoints/Inference/version_{version}"))
    return events.Reload()


def test_tensorboard_shows_every_panel(few_digits):
    assert run("--max-steps", "10") == 0
    tags = curves(few_digits).Tags()
    assert {
        "loss/train",
        "loss/held_out",
        "loss/held_out_raw",
        "training/gradient_norm",
        "training/lr",
        "training/images_per_s",
        "training/step_ms",
        *(f"timesteps/{kind}_quartile_{q}" for kind in ("train", "held_out") for q in (1, 2, 3, 4)),
    } <= set(tags["scalars"])
    assert set(tags["images"]) == {
        "training_images", "samples/grid", "samples/reverse_process", "samples/reverse_process_film"
    }  # fmt: skip
    assert set(tags["tensors"]) == {"run/text_summary"}  # one page
    assert [e.step for e in curves(few_digits).Scalars("loss/train")] == list(range(1, 11))


def test_the_errors_of_x_0_are_measured_at_the_end(few_digits):
    """At every validation only where its samples need them."""
    for version, (variance, known) in enumerate(
        [("posterior", [False, True]), ("optimal", [True, True])]
    ):
        assert run("--epochs", "2", "--variance", variance) == 0
        paths = checkpoint.steps(few_digits / CHECKPOINTS.format(version)).values()
        errors = [checkpoint.load(path)["x0_error"] for path in paths]
        assert [error is not None for error in errors] == known
        assert errors[-1].shape == (51,)  # T + 1


@pytest.mark.parametrize(
    ("optimizer", "stops"),
    [("muon", (1, 5, 11)), pytest.param("adamw", (8,), marks=pytest.mark.slow)],
)
def test_an_interrupted_run_repeats_an_unbroken_one_bit_for_bit(
    few_digits, monkeypatch, optimizer, stops
):
    """Stopped before, within and at the end of epochs of 5 steps."""
    options = ["--max-steps", "12", "--optimizer", optimizer]
    assert run(*options) == 0
    unbroken = result(few_digits)
    for version, stop in enumerate(stops, start=1):
        with monkeypatch.context() as patch:
            interrupt_after(patch, stop)
            assert run(*options) == 143
        assert checkpoint.load(newest(few_digits, version))["step"] == stop
        assert train.main(AUTO) == 0
        assert result(few_digits) == unbroken
        steps = [e.step for e in curves(few_digits, version).Scalars("loss/train")]
        assert steps == list(range(1, 13))  # the same curve, no step twice


def test_runs_with_equal_seeds_are_equal_and_previews_do_not_matter(few_digits):
    digests = []
    for flags in ([], ["--sampler", "ddim", "--steps", "3"], ["--seed", "1"]):
        assert run("--max-steps", "6", *flags) == 0
        digests.append(result(few_digits))
    assert digests[0] == digests[1]
    assert digests[2] != digests[0]  # control


@pytest.mark.usefixtures("few_digits")
def test_resume_auto_without_a_run_starts_fresh(capsys):
    assert run("--resume", "auto", "--dry-run") == 0
    assert "Nothing to resume" in capsys.readouterr().out


def test_max_minutes_are_those_of_steps_and_validation():
    """Where a step takes 0.4 s, by a clock that the steps alone advance."""
    minutes, seconds, every = 0.5, 0.4, 20
    flags = [*NETWORK, "--max-steps", "100000", "--max-minutes", str(minutes)]
    flags += ["--batch-size", "200", "--eval-every", str(every)]
    with folder() as where:
        ended = faults.run(where, flags, "sabotage.steps_take", 400)
        assert ended.code == 0, ended.err
        stored = checkpoint.load(newest(where))
        rates = [e.value for e in curves(where).Scalars("training/lr")]
    steps = stored["scheduler"]["total_steps"]
    assert steps == len(rates) == ended.step
    assert rates[-1] < 0.05 * max(rates)  # it decayed to the end of the schedule
    schedule = ValidationSchedule.of(Config.from_dict(stored["config"]))
    validations = sum(map(schedule.cost, range(every, steps + 1, every)))
    validations += schedule.cost(steps, last=True)
    planned = seconds * (steps + validations)
    assert 0.9 * 60 * minutes * (1 - RESERVE) < planned <= 60 * minutes * (1 - RESERVE)


@pytest.mark.parametrize("done", [0, 3, 9])
def test_no_more_steps_would_fit_into_the_minutes(done):
    """Steps of a minute, of which some are done, and every ten a validation of some minutes."""
    clock = Clock(torch.device("cpu"))
    clock.step_seconds = 60.0
    validation_schedule = ValidationSchedule(every=10, early=False, batch_size=20, evaluations=1.0)

    def taken(steps: int) -> float:
        within = [step for step in range(done + 1, done + steps + 1) if step % 10 == 0]
        at_end = validation_schedule.cost(done + steps, last=True)
        return steps + sum(map(validation_schedule.cost, within)) + at_end if steps else 0

    for minutes in (n + 0.2 for n in range(60)):
        steps = clock.steps_within(60 * minutes, done, validation_schedule)
        assert taken(steps) <= minutes < taken(steps + 1)
    assert clock.steps_within(-60.0, done, validation_schedule) == 0  # the minutes are over


def test_the_best_checkpoint_is_kept(few_digits, monkeypatch):
    """From step 2 on the network is worse at every step."""

    def spoil(state) -> None:
        if state.step > 1:
            with torch.no_grad():
                state.model.head.bias.add_(1)

    before_step(monkeypatch, spoil)
    often = ["--batch-size", "100", "--eval-every", "1"]
    assert run("--max-steps", "5", *often, "--ema-decay", "0") == 0
    assert list(checkpoint.steps(few_digits / CHECKPOINTS.format(0))) == [1, 4, 5]
    assert checkpoint.load(newest(few_digits))["best"]["step"] == 1


def test_dry_run_shows_settings_layers_and_data_and_leaves_nothing(few_digits, capsys):
    assert run("--dry-run", "--lr", "0.002") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["--lr"] == ["0.002"]
    assert rows["layer"][-4:] == ["parameters", "MFLOPs", "per", "image"]
    assert rows["stem"][:5] == ["8", "x", "4", "x", "4"]
    assert {"down.0.blocks.0", "middle.0", "middle.1", "up.0.blocks.0", "head"} <= rows.keys()
    assert rows["total"][:5] == ["1", "x", "28", "x", "28"]
    assert rows["digits:"][:6] == ["100", "training", "and", "100", "held-out", "images,"]
    assert rows["10"][:3] == ["classes:", "0", "10,"]
    assert rows["time"][2:4] == ["150", "steps"]  # 30 epochs of 5
    assert rows["disk"][:5] == ["at", "most", "3", "checkpoints", "of"]
    assert rows["folder"] == ["Logs_Checkpoints/Inference/version_0"]
    assert list(few_digits.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "lr"), [([], "0.0007"), (["--preset", "original"], "0.0002"), (["--preset"], "0.0007")]
)
def test_help_shows_the_settings_of_the_preset_and_what_the_presets_are(capsys, argv, lr):
    with pytest.raises(SystemExit) as end:
        train.main(["--help", *argv])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert f"peak learning rate [{lr}]" in out
    assert all(f"\n  {name:12}{line}\n" in out for name, line in ABOUT.items())
    assert "[(" not in out  # a tuple as Python writes it


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--schedule", "linear", "--timesteps", "10", "--steps", "5"], "needs T of at least 21"),
        (["--num-classes", "0", "--label-drop", "0.2"], "--label-drop has no effect"),
        (["--score-images", "100"], "--score-images has no effect without --score-every"),
        (["--ema-decay", "0", "--ema-power", "3"], "--ema-power has no effect"),
        (["--data-root", ""], "--data-root must not be empty"),
        (["--dataset", "digits", "--image-size", "30"], "multiple of 4"),
        (["--resume", "auto", "--preset", "mnist"], "exclude each other"),
        (["--dataset", "digits", "--num-classes", "11"], "--num-classes"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_on_disk(few_digits, capsys, argv, words):
    """One flag at a time is for test_command_line; these do not fit together."""
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert list(few_digits.iterdir()) == []


def test_every_preset_has_a_line_about_it():
    assert ABOUT.keys() == PRESETS.keys()


def test_ctrl_c_saves_and_prints_how_to_continue(few_digits, monkeypatch, capsys):
    interrupt_after(monkeypatch, 3, signal.SIGINT)
    assert run("--epochs", "2") == 130
    path = newest(few_digits)
    assert checkpoint.load(path)["step"] == 3
    assert f"--resume {path.relative_to(few_digits)}" in capsys.readouterr().out


def test_minutes_and_epochs_limit_a_run_whichever_end_first(few_digits):
    assert run("--epochs", "2", "--max-minutes", "9") == 0
    assert checkpoint.load(newest(few_digits))["step"] == 10


def test_loss_by_t_is_of_all_steps_since_the_last_validation(few_digits, monkeypatch):
    """Also when the run was interrupted in between."""
    options = ["--max-steps", "10"]
    assert run(*options) == 0
    interrupt_after(monkeypatch, 7)
    assert run(*options) == 143
    assert train.main(AUTO) == 0
    for q in (1, 2, 3, 4):
        tag = f"timesteps/train_quartile_{q}"
        whole, broken = (curves(few_digits, version).Scalars(tag) for version in (0, 1))
        assert [e.step for e in whole] == [e.step for e in broken] == [5, 10]
        assert [e.value for e in whole] == pytest.approx([e.value for e in broken])


def test_a_run_root_that_cannot_be_written_is_one_line(few_digits, capsys):
    (few_digits / "file").write_text("")
    assert run("--run-root", "file") == 2
    assert "cannot make a run folder in file" in capsys.readouterr().err


def test_without_mnist_the_default_trains_on_digits_with_a_warning(few_digits, monkeypatch, capsys):
    def absent(*_):
        raise data.DataNotFound("MNIST is absent")

    monkeypatch.setitem(data.datasets.DATASETS, "mnist", absent)
    network = NETWORK[NETWORK.index("--device") :]  # without --dataset
    assert train.main([*network, "--max-steps", "2"]) == 0
    captured = capsys.readouterr()
    assert "digits" in captured.err
    assert "NOT MNIST" in captured.err
    state = checkpoint.load(newest(few_digits))
    assert state["config"]["data"]["dataset"] == "digits"
    assert state["data"]["source"] == "drawn"
    assert train.main([*network, "--dataset", "mnist"]) == 2  # for whoever insists on it


@pytest.mark.usefixtures("few_digits")
def test_a_resumed_run_refuses_other_images(monkeypatch, capsys):
    assert run("--max-steps", "4") == 0
    original = data.datasets.DATASETS["digits"]
    swapped = {"digits": lambda options, loading: original(options, loading)[::-1]}
    monkeypatch.setattr(data.datasets, "DATASETS", swapped)
    assert train.main([*AUTO, "--max-steps", "6"]) == 2
    assert "not those this run was trained on" in capsys.readouterr().err


def test_a_schedule_by_hand_trains_and_samples(few_digits):
    process = ["--prediction", "x0", "--loss", "kl", "--first-timestep", "2"]
    process += ["--alphas", "0.9", "0.5", "0.2", "0.1", "--attention-levels"]
    process += ["--timesteps", "4", "--steps", "3"]
    assert run("--max-steps", "3", *process) == 0
    config = checkpoint.load(newest(few_digits))["config"]
    assert config["model"]["attention_levels"] == ()
    stored = config["diffusion"]
    assert stored["alphas"] == (0.9, 0.5, 0.2, 0.1)
    assert stored["timesteps"] == 4


@pytest.mark.usefixtures("few_digits")
def test_it_is_quiet_where_there_is_no_terminal(capsys):
    """No bar, no carriage returns."""
    assert run("--max-steps", "3") == 0
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err


def test_real_mnist_trains(few_digits, real_mnist):
    assert run("--data-root", str(real_mnist), "--dataset", "mnist", "--max-steps", "3") == 0
    assert checkpoint.load(newest(few_digits))["config"]["data"]["dataset"] == "mnist"
