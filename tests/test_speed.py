"""What makes a step smaller or faster and must not change its numbers, or only their rounding."""

import pytest
import torch
from faults import result
from faults import run as run_alone
from test_distributed import SHORT, curve
from torch import nn

import train
from config import PRESETS, TrainConfig
from models import UNet
from training.state import TrainState, build, compiles
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
