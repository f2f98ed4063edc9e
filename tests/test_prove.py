"""--prove-resume would notice: any bit, any missing value; and a resume says what is different."""

import copy

import pytest
import torch
from faults import AGAIN, folder, newest, run

import prove
import resume
from config import ConfigError


@pytest.fixture(scope="module")
def state():
    with folder() as where:
        assert run(where, AGAIN).code == 0
        return newest(where)


def test_equal_is_equal(state):
    assert prove.first_difference(state, copy.deepcopy(state)) is None


def test_one_bit_anywhere_is_a_difference(state):
    for part, key in (("model", "stem.weight"), ("ema", "module.stem.weight")):
        other = copy.deepcopy(state)
        weights = other[part][key].contiguous()
        weights.view(-1).view(torch.int32)[5] ^= 1
        other[part][key] = weights
        assert prove.first_difference(state, other).startswith(f"{part}.{key}: by up to")
    zeros = {**state, "model": {"w": torch.zeros(2)}}, {**state, "model": {"w": -torch.zeros(2)}}
    assert "model.w" in prove.first_difference(*zeros)


def test_what_is_missing_or_of_another_shape_is_a_difference(state):
    shorter, longer = copy.deepcopy(state), copy.deepcopy(state)
    del shorter["optimizer"][1][0]
    longer["model"]["stem.weight"] = longer["model"]["stem.weight"][:1]
    for other in (shorter, longer, {**state, "step": 19}):
        assert prove.first_difference(state, other)


@pytest.mark.parametrize("flag", ["--resume=auto", "--max-steps", "--run-root", "--save-minutes"])
def test_what_it_chooses_itself_is_refused(flag):
    with pytest.raises(ConfigError, match="chooses"):
        prove.prove(["--prove-resume", flag, "1"])


def test_the_device_is_told_again():
    assert prove.device_of(["--lr", "1", "--device", "cpu"]) == ["cpu"]
    assert prove.device_of(["--device=cuda:1", "--lr", "1"]) == ["cuda:1"]
    assert prove.device_of([]) == []


def test_another_machine_is_named(state):
    cpu, here = torch.device("cpu"), state["environment"]
    threads = torch.get_num_threads()
    same = {**state, "environment": {**here, "threads": threads}}
    assert resume.changed_surroundings(same, cpu) == []
    other = {**state, "environment": {**here, "threads": threads + 1, "torch": "1.0"}}
    lines = resume.changed_surroundings(other, cpu)
    assert [line.split(":")[0] for line in lines] == ["torch", "threads"]
    assert "to rounding" in lines[0]
