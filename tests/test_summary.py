"""The table of layers: complete, in the order of the calls, and its numbers add up."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from config import PRESETS
from models import Classifier, UNet
from models.summary import layers, markdown, text

PRESET = PRESETS["mnist"].override(num_classes=10, image_channels=1)
SHAPE = (1, 28, 28)


def network(**changes) -> UNet:
    return UNet(**{**asdict(PRESET.model), **changes})


@pytest.mark.parametrize(
    "model",
    [network(), network(num_classes=0, blocks_per_level=2), Classifier(1, 10)],
    ids=["conditional", "unconditional", "classifier"],
)
def test_the_rows_add_up_to_the_network(model):
    if isinstance(model, Classifier):
        forward = model.forward
        model.forward = lambda x, _t: forward(x)
    *rows, total = layers(model, SHAPE)
    assert total.name == "total"
    assert total.parameters == sum(p.numel() for p in model.parameters())
    assert sum(row.parameters for row in rows) == total.parameters
    assert sum(row.flops for row in rows) == total.flops > 0
    assert len({row.name for row in rows}) == len(rows)


def test_every_level_and_block_has_its_row_in_the_order_of_the_calls():
    model = network(blocks_per_level=2)
    names = [row.name for row in layers(model, SHAPE)]
    down = ["down.0.blocks.0", "down.0.blocks.1", "down.0.resample"]
    down += ["down.1.blocks.0", "down.1.blocks.1"]
    up = [f"up.0.blocks.{i}" for i in range(3)] + ["up.0.resample"]
    up += [f"up.1.blocks.{i}" for i in range(3)]
    ends = ["norm", "head", "total"]
    assert names == ["time", "label", "stem", *down, "middle.0", "middle.1", *up, *ends]


def test_shapes_and_flops_are_those_of_the_layer():
    rows = {row.name: row for row in layers(network(), SHAPE)}
    assert rows["stem"].shape == rows["down.0.blocks.0"].shape == (32, 14, 14)  # patches of 2 x 2
    assert rows["middle.0"].shape == (64, 7, 7)
    assert rows["total"].shape == SHAPE
    assert rows["stem"].flops == 2 * (14 * 14) * 32 * (4 * 3 * 3)


def test_the_network_is_left_as_it_was():
    model = network()
    layers(model, SHAPE)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_both_forms_hold_every_row():
    rows = layers(network(), SHAPE)
    lines = text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == len(rows) + 1
    assert [line.split()[0] for line in lines[1:]] == [row.name for row in rows]
    table = markdown(rows).splitlines()
    assert len(table) == len(rows) + 2
    assert {line.count("|") for line in table} == {5}
    assert f"{rows[-1].parameters:,}" in lines[-1]
    assert f"{rows[-1].parameters:,}" in table[-1]


def test_a_module_without_parameters_has_no_row():
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.linear = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
            return self.linear(self.act(x).flatten(1))

    rows = layers(Small(), (1, 2, 2))
    assert [(row.name, row.shape, row.parameters, row.flops) for row in rows] == [
        ("linear", (2,), 10, 16),
        ("total", (2,), 10, 16),
    ]
