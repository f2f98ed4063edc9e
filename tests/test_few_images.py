"""Few images: epochs of several passes, mirrored images, and runs from one image on."""

import os
import signal
from collections.abc import Iterable

import faults
import pytest
import torch
from faults import NETWORK, newest, result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data.datasets
import train
from config import PRESETS
from data.image_set import TensorSet
from sample import load
from training.epochs import Epochs
from training.state import TrainState
from utils.distributed import ALONE, Ranks
from utils.seeding import permutation

MIN = PRESETS["mnist"].train.min_epoch_images
CPU = torch.device("cpu")
FEW = [*NETWORK, "--batch-size", "4", "--min-epoch-images", "32", "--flip", "--epochs", "0"]


@pytest.mark.parametrize("images", [1, 2, 7, 90, 9_599])
@pytest.mark.parametrize("batch_size", [1, 32, 100])
def test_an_epoch_is_whole_passes_of_enough_work_in_full_batches(images, batch_size):
    epochs = Epochs(images, batch_size, MIN)
    order = epochs.order(seed=3, epoch=2)
    assert order.bincount().tolist() == [epochs.passes] * images
    assert len(order) >= MIN == 300 * 32
    assert (epochs.passes - 1) * images < MIN  # no pass more than needed
    sizes = [epochs.global_batch(step) for step in range(1, epochs.steps + 2)]
    assert sum(sizes[:-1]) == len(order)
    assert set(sizes[:-2]) | {sizes[-1]} == {batch_size}


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    [
        (60_000, 32, 1875),
        (60_000, 128, 469),
        (60_000, 2048, 30),
        (50_000, 128, 391),
        (12_000, 32, 375),
    ],
)
def test_an_epoch_of_enough_steps_is_one_pass_in_the_order_it_always_had(images, batch_size, steps):
    """MNIST, the original's preset, CIFAR-10's preset, drawn digits."""
    epochs = Epochs(images, batch_size, MIN)
    assert (epochs.passes, epochs.steps) == (1, steps)
    assert torch.equal(epochs.order(5, 2), permutation(images, 5, 2))
    twice = Epochs(images // 10, batch_size, MIN)  # control
    assert twice.passes > 1
    assert not torch.equal(twice.order(5, 2), permutation(images // 10, 5, 2))


def test_a_batch_of_any_size_makes_no_epoch_longer():
    assert len(Epochs(20, 10**8, MIN).order(0, 0)) == MIN
    assert Epochs(20, 10**8, MIN).steps == 1


def test_no_two_passes_have_the_same_order():
    epochs = Epochs(20, 32, MIN)
    passes = torch.cat([epochs.order(0, epoch) for epoch in range(2)]).split(20)
    assert len({tuple(order.tolist()) for order in passes}) == len(passes) == 2 * epochs.passes


NUMBERED = torch.arange(1, 25, dtype=torch.uint8).view(24, 1, 1, 1).repeat(1, 1, 1, 2)
NUMBERED[..., 0] += 100  # the number of the image, and 100 more on its left side
NUMBERS = TensorSet("", "numbers", (), NUMBERED, torch.zeros(24, dtype=torch.int64))


def flipping(**changes) -> TrainState:
    """With epochs of 4 passes over NUMBERS, in 14 batches of 7."""
    small = {"base_channels": 8, "channel_multipliers": (1,), "attention_levels": (), "heads": 2}
    config = PRESETS["smoke"].override(
        **small, image_channels=1, image_size=(28, 28), num_classes=0, min_epoch_images=96
    )
    config = config.override(**{"batch_size": 7, "flip": True, **changes})
    return TrainState.create(config, len(NUMBERS), CPU, Ranks(), None)


def batches(state: TrainState, step: int = 0, ranks: Ranks = ALONE) -> list[torch.Tensor]:
    """This rank's images in what is left of the epoch after this step."""
    state.step, state.ranks = step, ranks
    return [x_0 for x_0, _ in state.batches(NUMBERS)]


def mirrored(batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Which image is mirrored in which pass, (passes, images)."""
    left, right = torch.cat(list(batches)).view(-1, len(NUMBERS), 2).unbind(-1)
    return (left < right).gather(1, torch.minimum(left, right).argsort(1))


def test_every_image_is_mirrored_in_about_half_of_its_passes():
    state, off = flipping(), flipping(flip=False)
    flips = torch.cat([mirrored(batches(state, 14 * epoch)) for epoch in range(50)])
    assert flips.shape == (200, 24)
    assert (flips.float().mean(0) - 0.5).abs().max() < 0.2  # 5.6 standard deviations
    assert not mirrored(batches(off)).any()


def test_an_image_is_mirrored_alike_on_any_rank_after_a_resume_and_in_any_batch():
    state = flipping()
    whole = batches(state)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], batches(state, 5), strict=True))
    parts = zip(*(batches(state, ranks=Ranks(rank, 3)) for rank in range(3)), strict=True)
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, parts, strict=True))
    flips = mirrored(whole)
    assert torch.equal(flips, mirrored(batches(flipping(batch_size=11))))
    assert not torch.equal(flips, mirrored(batches(flipping(seed=1))))  # control
    assert not torch.equal(flips, mirrored(batches(state, 14)))


def few(monkeypatch, images: int, held_out: int) -> None:
    """`digits` are so many images."""
    sizes = {True: images, False: held_out}
    drawn = {part: [x[: sizes[part]] for x in faults.DRAWN[part]] for part in sizes}
    monkeypatch.setitem(data.datasets.DATASETS, "digits", faults.opener(drawn))


@pytest.mark.parametrize(
    ("images", "held_out"),
    [(1, 0), (5, 1), *(pytest.param(*n, marks=pytest.mark.slow) for n in ((2, 0), (19, 0)))],
)
def test_from_one_image_on_a_run_trains_resumes_and_samples(
    few_digits, monkeypatch, capsys, images, held_out
):
    """Interrupted in its first epoch, of 32 to 40 images; no file would take a NaN."""
    few(monkeypatch, images, held_out)
    assert train.main([*FEW, "--max-steps", "9"]) == 0
    out = capsys.readouterr().out
    assert out.count("held out: none, so there is no held-out loss") == (not held_out)
    assert out.count(f"passes over {images} images") == 1
    unbroken = result(few_digits)
    original = train.train_step

    def stopped(state, x_0, y):
        state.step == 3 and os.kill(os.getpid(), signal.SIGTERM)
        return original(state, x_0, y)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", stopped)
        assert train.main([*FEW, "--max-steps", "9"]) == 143
    assert train.main(["--resume", "auto", "--device", "cpu"]) == 0
    assert result(few_digits) == unbroken
    assert (newest(few_digits)["best"] is not None) == held_out
    assert load(few_digits / "Logs_Checkpoints/checkpoints/version_1").sample(3).isfinite().all()


def test_without_test_images_there_is_no_curve_of_the_held_out_loss(few_digits, monkeypatch):
    for version, held_out in enumerate((0, 1)):
        few(monkeypatch, 3, held_out)
        assert train.main([*FEW, "--max-minutes", "0.005"]) == 0
        events = EventAccumulator(str(few_digits / f"Logs_Checkpoints/Inference/version_{version}"))
        tags = events.Reload().Tags()
        assert ("loss/held_out" in tags["scalars"]) == held_out
        assert "samples/grid" in tags["images"]
        notes = [e.tensor_proto.string_val[0] for e in events.Tensors("run/text_summary")]
        assert any(b"no held-out loss" in note for note in notes) == (not held_out)


def test_flip_and_the_length_of_an_epoch_change_the_result_of_a_resumed_run(few_digits, capsys):
    assert train.main([*NETWORK, "--max-steps", "3"]) == 0
    changed = ["--resume", "auto", "--flip", "--min-epoch-images", "9", "--max-steps", "6"]
    assert train.main([*changed, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "--flip: False -> True (changes the result)" in out
    assert "--min-epoch-images: 1 -> 9 (changes the result)" in out
    assert newest(few_digits)["config"]["train"]["flip"]
