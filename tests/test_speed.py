"""What makes a step smaller or faster and must not change its numbers, or only their rounding."""

from contextlib import nullcontext

import pytest
import torch
from faults import result
from faults import run as run_alone
from test_distributed import SHORT, curve
from torch import nn

import train
from config import PRESETS, TrainConfig
from models import UNet
from training.build import build
from training.state import TrainState, compiles
from utils.distributed import Ranks

SMOKE = PRESETS["smoke"].override(
    num_classes=10, image_channels=1, image_size=(28, 28), precision="fp32", batch_size=20
)
CPU = torch.device("cpu")


def gradients(**changes) -> list[torch.Tensor]:
    """Those of step 1, kept from the optimizers."""
    state = TrainState.create(SMOKE.override(**changes), 100, CPU, Ranks(), None)
    state.optimizers, state.step = [], 1
    torch.manual_seed(0)
    train.train_step(state, torch.rand(20, 1, 28, 28) * 2 - 1, torch.arange(20) % 10)
    return [p.grad for p in state.model.parameters()]


@pytest.mark.parametrize("micro_batches", [2, 3, 20, 50])
def test_micro_batches_have_the_gradient_of_the_whole(micro_batches):
    """20 images, also in parts of unequal size."""
    whole, parts = gradients(), gradients(grad_accum=micro_batches)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    other_seed = gradients(grad_accum=micro_batches, seed=1)  # control
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(whole, other_seed, strict=True))


def test_a_run_in_micro_batches_has_the_curve_of_the_whole(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for where, flags in ((whole, []), (parts, ["--grad-accum", "3"])):
        where.mkdir()
        assert run_alone(where, [*SHORT, *flags]).code == 0
    torch.testing.assert_close(curve(parts), curve(whole), rtol=1e-5, atol=0)


def test_checkpointed_activations_change_no_bit(tmp_path):
    """Dropout included: what is computed twice is dropped alike."""
    digests = []
    for name, flags in (
        ("kept", []),
        ("again", ["--checkpoint-activations"]),
        ("control", ["--seed", "1"]),
    ):
        where = tmp_path / name
        where.mkdir()
        assert run_alone(where, [*SHORT, "--dropout", "0.1", *flags]).code == 0
        digests.append(result(where))
    assert digests[0] == digests[1] != digests[2]


def test_a_compiled_network_trains_to_the_same_bits(few_digits, monkeypatch):
    """With the compiler that compiles nothing; the table of layers for TensorBoard included."""
    monkeypatch.setattr(
        UNet, "compile", lambda model, **_: nn.Module.compile(model, backend="eager")
    )
    digests = []
    for flags in (["--compile", "on"], ["--compile", "off"]):
        where = few_digits / flags[1]
        where.mkdir()
        monkeypatch.chdir(where)
        assert train.main([*SHORT, "--max-steps", "2", *flags]) == 0
        digests.append(result(where))
    assert digests[0] == digests[1]


def compiled_sizes() -> set[int]:
    """The batch sizes that the network is compiled for, in epochs of 20, 20 and 10 images."""
    sizes = set()

    def backend(graph, inputs):
        sizes.update(len(x) for x in inputs if x.shape[1:] == (1, 28, 28))
        return graph

    torch._dynamo.reset()
    state = TrainState.create(SMOKE.override(min_epoch_images=1), 50, CPU, Ranks(), None)
    state.model.compile(dynamic=False, backend=backend)
    for state.step in range(1, 7):
        size = state.epochs.global_batch(state.step)
        train.train_step(state, torch.zeros(size, 1, 28, 28), torch.zeros(size, dtype=torch.long))
    torch._dynamo.reset()
    return sizes


@pytest.mark.slow
def test_a_network_is_compiled_for_whole_batches_alone(monkeypatch):
    assert compiled_sizes() == {20}
    monkeypatch.setattr(TrainState, "compilation", lambda _: nullcontext())
    assert compiled_sizes() == {10, 20}  # control


def test_checkpointed_activations_save_memory():
    def saved_bytes(again: bool) -> int:
        """What the forward pass keeps for the backward pass."""
        model, _ = build(SMOKE)
        model.checkpoint_activations = again
        kept = {}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(torch.zeros(8, 1, 28, 28), torch.ones(8, dtype=torch.long))
        assert output.requires_grad
        return sum(kept.values())

    assert saved_bytes(True) < 0.5 * saved_bytes(False)


def test_a_network_that_is_evaluated_checkpoints_nothing(monkeypatch):
    model: UNet = build(SMOKE)[0].eval()
    model.checkpoint_activations = True
    monkeypatch.setattr("models.unet.checkpoint", None)
    model(torch.zeros(1, 1, 28, 28), torch.ones(1, dtype=torch.long))
    with pytest.raises(TypeError):
        model.train()(torch.zeros(1, 1, 28, 28), torch.ones(1, dtype=torch.long))  # control


def test_compiling_is_for_long_runs_on_cuda():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    short, long = 500, 50_000
    auto = TrainConfig()
    assert not compiles(auto, cpu, long)
    assert not compiles(auto, cuda, short)
    assert compiles(auto, cuda, long)
    assert compiles(TrainConfig(max_minutes=30), cuda, None)
    assert not compiles(TrainConfig(max_minutes=3), cuda, None)
    assert compiles(TrainConfig(compile="on"), cpu, short)
    assert not compiles(TrainConfig(compile="off"), cuda, long)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_the_compiled_network_of_every_preset_has_the_losses_of_the_eager_one(preset):
    """By the real compiler, at tiny width, also where an epoch ends with a smaller batch."""
    sized = {"image_channels": 3 if preset == "cifar10" else 1, "image_size": (28, 28)}
    sized |= {"image_size": (32, 32)} if preset in ("original", "cifar10") else {}
    sized |= {} if preset == "original" else {"num_classes": 10}
    config = PRESETS[preset].override(
        **sized, base_channels=8, emb_channels=16, batch_size=4, dropout=0.0, precision="fp32",
        min_epoch_images=1, warmup_steps=2,
    )  # fmt: skip
    curves = []
    for changes in ({"compile": "on"}, {"compile": "off"}, {"compile": "off", "seed": 1}):
        torch._dynamo.reset()
        state = TrainState.create(config.override(**changes), 10, CPU, Ranks(), None)
        random = torch.Generator().manual_seed(0)
        losses = []
        for state.step in range(1, 8):
            size = state.epochs.global_batch(state.step)
            x_0 = torch.rand(size, *config.image_shape, generator=random) * 2 - 1
            y = torch.arange(size) % 10
            losses.append(train.train_step(state, x_0, y).loss)
        curves.append(torch.stack(losses))
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=0)
    assert (curves[2] / curves[1] - 1).abs().max() > 1e-3  # control
