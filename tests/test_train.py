"""Training from the command line: what it leaves, how it goes on, what it refuses."""

import os
import signal

import pytest
import torch
from conftest import content_hash
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data.datasets
import train
import training.validate
from utils import checkpoint

SMOKE = ["--preset", "smoke", "--device", "cpu"]
CHECKPOINTS = "Logs_Checkpoints/checkpoints/version_{}"


def newest(root, version=0):
    return checkpoint.newest(root / CHECKPOINTS.format(version))


def run(*argv) -> int:
    return train.main([*SMOKE, *argv])


def interrupt_after(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """A real signal from this process to itself, in the middle of that step."""
    original = train.train_step

    def with_signal(state, *rest):
        if state.step == step:
            os.kill(os.getpid(), number)
        return original(state, *rest)

    monkeypatch.setattr(train, "train_step", with_signal)


def test_a_run_leaves_what_the_readme_says(few_digits, capsys):
    assert run("--max-steps", "8", "--batch-size", "25") == 0
    logs = few_digits / "Logs_Checkpoints/Inference/version_0"
    names = {path.name for path in logs.iterdir()}
    assert {"config.json", "environment.json", "samples_00000008.png"} <= names
    steps = checkpoint.steps(few_digits / CHECKPOINTS.format(0))
    assert list(steps) == [4, 8]  # one an epoch
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Logging at: Logs_Checkpoints/Inference/version_0"
    assert out[1] == "Model Checkpoint at: Logs_Checkpoints/checkpoints/version_0"
    assert "python sample.py --ckpt" in out[-1]


def test_the_loss_falls(few_digits):
    assert run("--max-steps", "150", "--lr", "3e-3") == 0
    losses = [e.value for e in curves(few_digits).Scalars("train/loss")]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def curves(root, version=0) -> EventAccumulator:
    events = EventAccumulator(str(root / f"Logs_Checkpoints/Inference/version_{version}"))
    return events.Reload()


def test_tensorboard_shows_every_panel(few_digits):
    assert run("--max-steps", "8", "--batch-size", "25") == 0
    tags = curves(few_digits).Tags()
    assert {
        "train/loss",
        "train/gradient_norm",
        "train/lr",
        "train/images_per_s",
        "held_out/loss",
        *(f"loss_by_t/quartile_{q}" for q in (1, 2, 3, 4)),
    } <= set(tags["scalars"])
    assert {"samples", "reverse_process"} <= set(tags["images"])
    assert {"model/text_summary", "environment/text_summary"} <= set(tags["tensors"])
    assert [e.step for e in curves(few_digits).Scalars("train/loss")] == list(range(1, 9))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [1, 5, 8, 11])
def test_an_interrupted_run_repeats_an_unbroken_one_bit_for_bit(
    few_digits, monkeypatch, stop, optimizer
):
    """25 images a batch, 4 steps an epoch: before, within and at the end of epochs."""
    options = ["--max-steps", "12", "--batch-size", "25", "--optimizer", optimizer]
    options += ["--dropout", "0.1"]
    assert run(*options) == 0
    unbroken = content_hash(checkpoint.load(newest(few_digits)))

    with monkeypatch.context() as patch:
        interrupt_after(patch, stop)
        assert run(*options) == 143
    assert checkpoint.load(newest(few_digits, 1))["step"] == stop
    assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
    assert content_hash(checkpoint.load(newest(few_digits, 1))) == unbroken
    steps = [e.step for e in curves(few_digits, 1).Scalars("train/loss")]
    assert steps == list(range(1, 13))  # the same curve, no step twice


def test_without_keyed_randomness_the_bits_would_differ(few_digits, monkeypatch):
    """The control of the test above: draw t and noise from a state that is not restored."""
    shared = torch.Generator().manual_seed(0)
    monkeypatch.setattr(train, "generator", lambda *_: shared)
    options = ["--max-steps", "12", "--batch-size", "25"]
    assert run(*options) == 0
    shared.manual_seed(0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        assert run(*options) == 143
    shared.manual_seed(0)  # a new process starts anew
    assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
    first, second = (content_hash(checkpoint.load(newest(few_digits, v))) for v in (0, 1))
    assert first != second


def test_runs_with_equal_seeds_are_equal_and_previews_do_not_matter(few_digits, monkeypatch):
    options = ["--max-steps", "8", "--batch-size", "25"]
    assert run(*options) == 0
    assert run(*options, "--sampler", "ddim", "--steps", "2") == 0
    monkeypatch.setattr(training.validate, "PREVIEW", 3)
    assert run(*options) == 0
    assert run(*options, "--seed", "1") == 0
    hashes = [content_hash(checkpoint.load(newest(few_digits, v))) for v in range(4)]
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[3] != hashes[0]  # control


def test_ctrl_c_saves_and_says_how_to_go_on(few_digits, monkeypatch, capsys):
    interrupt_after(monkeypatch, 3, signal.SIGINT)
    assert run("--max-steps", "12") == 130
    path = newest(few_digits)
    assert checkpoint.load(path)["step"] == 3
    assert f"--resume {path.relative_to(few_digits)}" in capsys.readouterr().out


def test_a_finished_run_is_not_touched(few_digits, capsys):
    assert run("--max-steps", "4") == 0
    before = newest(few_digits).stat().st_mtime_ns
    assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
    assert "Already finished at step 4" in capsys.readouterr().out
    assert newest(few_digits).stat().st_mtime_ns == before
    assert train.main(["--resume", "auto", "--max-steps", "6", "--device", "cpu"]) == 0
    assert checkpoint.load(newest(few_digits))["step"] == 6


@pytest.mark.usefixtures("few_digits")
def test_resume_auto_without_a_run_starts_fresh_and_says_so(capsys):
    assert train.main(["--resume", "auto", "--dataset", "digits", "--dry-run"]) == 0
    assert "Nothing to resume" in capsys.readouterr().out


def test_max_minutes_fits_the_plan_into_the_minutes(few_digits):
    assert run("--max-steps", "100000", "--max-minutes", "0.15", "--batch-size", "4") == 0
    state = checkpoint.load(newest(few_digits))
    assert state["scheduler"]["total_steps"] == state["step"]
    assert 5 < state["step"] < 100_000
    rates = [e.value for e in curves(few_digits).Scalars("train/lr")]
    assert rates[-1] < 0.05 * max(rates)  # it decayed to the end of the plan


def test_minutes_and_epochs_limit_a_run_whichever_end_first(few_digits):
    assert run("--epochs", "2", "--max-minutes", "9", "--batch-size", "10", "--max-steps", "0") == 0
    assert checkpoint.load(newest(few_digits))["step"] == 20


def test_loss_by_t_is_of_the_whole_epoch_also_when_it_was_interrupted(few_digits, monkeypatch):
    options = ["--max-steps", "8", "--batch-size", "25"]
    assert run(*options) == 0
    interrupt_after(monkeypatch, 6)
    assert run(*options) == 143
    assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
    for q in (1, 2, 3, 4):
        whole, broken = (curves(few_digits, v).Scalars(f"loss_by_t/quartile_{q}") for v in (0, 1))
        assert [e.step for e in whole] == [e.step for e in broken] == [4, 8]
        assert [e.value for e in whole] == pytest.approx([e.value for e in broken])


def test_a_resumed_run_keeps_the_plan_of_its_minutes(few_digits, monkeypatch):
    original = train.train_step

    def stop_behind_the_plan(state, *rest):
        if state.schedule:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", stop_behind_the_plan)
        assert run("--max-minutes", "0.15", "--batch-size", "4") == 143
    planned = checkpoint.load(newest(few_digits))["scheduler"]
    assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
    state = checkpoint.load(newest(few_digits))
    assert state["scheduler"] == planned
    assert state["step"] == planned["total_steps"]


def test_the_best_checkpoint_is_kept(few_digits, monkeypatch):
    losses = iter([0.1, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(training.validate, "held_out_losses", lambda *_: torch.tensor([next(losses)]))
    assert run("--max-steps", "5", "--batch-size", "100") == 0
    assert list(checkpoint.steps(few_digits / CHECKPOINTS.format(0))) == [1, 4, 5]


def test_dry_run_says_everything_and_leaves_nothing(few_digits, capsys):
    assert run("--dry-run") == 0
    out = capsys.readouterr().out
    for word in ("parameters", "FLOPs", "100 images: drawn", "--lr", "--schedule"):
        assert word in out
    assert list(few_digits.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--lr", "nan"],
        ["--lr", "-1"],
        ["--batch-size", "0"],
        ["--preset", "magic"],
        ["--device", "tpu"],
        ["--device", "cuda:99"],
        ["--dataset", "imagenet"],
        ["--epochs", "0"],
        ["--steps", "1001"],
        ["--schedule", "linear", "--timesteps", "10", "--steps", "5"],
        ["--schedule", "manual"],
        ["--alphas", "0.5", "1.5", "--steps", "1"],
        ["--eta", "0.5"],
        ["--no-precondition"],
        ["--channel-multipliers"],
        ["--image-channels", "3"],
        ["--num-classes", "11", "--dataset", "digits"],
        ["--num-classes", "0", "--label-drop", "0.2"],
        ["--label-drop", "0"],
        ["--dataset", "digits", "--image-size", "30"],
        ["--dataset", "digits", "--image-size", "20"],
        ["--dataset", "digits", "--heads", "5"],
        ["--dataset", "mnist", "--data-root", "/nonexistent"],
        ["--resume", "/nonexistent"],
        ["--resume", "auto", "--preset", "mnist"],
        ["--epoch", "3"],
        ["--first-timestep", "1001", "--dataset", "digits", "--steps", "1"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_on_disk(few_digits, capsys, argv):
    try:
        code = train.main(argv)
    except SystemExit as e:
        code = e.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert error.count("\n") == 1
    assert list(few_digits.iterdir()) == []


def test_a_run_root_that_cannot_be_written_is_one_line(few_digits, capsys):
    (few_digits / "file").write_text("")
    assert run("--run-root", "file") == 2
    assert "cannot make a run folder in file" in capsys.readouterr().err


def test_without_mnist_the_default_goes_on_with_digits_loudly(few_digits, capsys):
    assert train.main(["--data-root", "nowhere", "--max-steps", "2", "--steps", "2"]) == 0
    captured = capsys.readouterr()
    assert "digits" in captured.err
    assert "NOT MNIST" in captured.err
    state = checkpoint.load(newest(few_digits))
    assert state["config"]["data"]["dataset"] == "digits"
    assert state["data"]["source"] == "drawn"
    assert not (few_digits / "nowhere").exists()


@pytest.mark.usefixtures("few_digits")
def test_a_resumed_run_refuses_other_images(monkeypatch, capsys):
    assert run("--max-steps", "4") == 0
    original = data.datasets.DATASETS["digits"]
    swapped = {"digits": lambda root, size, part, d: original(root, size, not part, d)}
    monkeypatch.setattr(data.datasets, "DATASETS", swapped)
    assert train.main(["--resume", "auto", "--max-steps", "6", "--device", "cpu"]) == 2
    assert "not those this run was trained on" in capsys.readouterr().err


def test_a_process_set_by_hand_trains_and_samples(few_digits):
    process = ["--prediction", "x0", "--loss", "kl", "--first-timestep", "2"]
    process += ["--alphas", "0.9", "0.5", "0.2", "0.1", "--attention-levels"]
    assert run("--max-steps", "3", *process) == 0
    config = checkpoint.load(newest(few_digits))["config"]
    assert config["sample"]["steps"] == 3  # all that there are
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
    options = ["--data-root", str(real_mnist), "--dataset", "mnist", "--max-steps", "3"]
    assert train.main([*options, "--steps", "2"]) == 0
    assert checkpoint.load(newest(few_digits))["config"]["data"]["dataset"] == "mnist"
