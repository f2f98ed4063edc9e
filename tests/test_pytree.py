"""Nested values: one digest for all of them, and the names of those that differ."""

import copy

import pytest
import torch

from utils.pytree import differing, digest, mismatches, not_finite

TREE = {
    "step": 3,
    "on": True,
    "lr": 0.0,
    "pair": (1, 2),
    "model": {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).bfloat16()},
    "optimizer": [{0: {"momentum": torch.zeros(4, 4)}, 1: {}}],
    "best": None,
}
WEIGHTS = TREE["model"]["w"]
BY_NUMBER = "optimizer.0 key"


def one_bit(weights: torch.Tensor) -> torch.Tensor:
    flipped = weights.clone()
    flipped.view(-1).view(torch.int32)[5] ^= 1
    return flipped


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda tree: tree.update(step=3.0), "step"),
        (lambda tree: tree.update(on=1), "on"),
        (lambda tree: tree.update(lr=-0.0), "lr"),
        (lambda tree: tree.update(pair=[1, 2]), "pair"),
        (lambda tree: tree.update(pair=(12,)), "pair"),
        (lambda tree: tree.update(best={}), "best"),
        (lambda tree: tree.pop("best"), "best"),
        (lambda tree: tree.update(new=1), "new"),
        (lambda tree: tree["model"].update(w=one_bit(WEIGHTS)), "model.w"),
        (lambda tree: tree["model"].update(w=WEIGHTS.reshape(3, 2)), "model.w"),
        (lambda tree: tree["model"].update(w=WEIGHTS.int()), "model.w"),
        (lambda tree: tree["model"].update(half=torch.ones(3)), "model.half"),
        (lambda tree: tree["optimizer"][0].update({0: {}}), "optimizer.0.0.momentum"),
        (lambda tree: tree["optimizer"][0].pop(1), "optimizer.0.1"),
        (lambda tree: tree["optimizer"].append({}), "optimizer.1"),
        (lambda tree: tree["optimizer"][0].update({"1": tree["optimizer"][0].pop(1)}), BY_NUMBER),
        (lambda tree: tree["optimizer"][0].update({0: tree["optimizer"][0].pop(0)}), BY_NUMBER),
        (lambda tree: tree["model"].update(w=tree["model"].pop("w")), "model key"),
        (lambda tree: tree.update(step=tree.pop("step")), "key"),
        (
            lambda tree: tree["optimizer"][0][0].update(momentum=-torch.zeros(4, 4)),
            "optimizer.0.0.momentum",  # -0.0 against 0.0
        ),
    ],
)
def test_whatever_differs_changes_the_digest_and_is_named(change, name):
    same, other = copy.deepcopy(TREE), copy.deepcopy(TREE)
    assert digest(same) == digest(TREE)  # control
    assert differing(same, TREE) == []
    change(other)
    assert digest(other) != digest(TREE)
    assert name in differing(TREE, other)
    assert name in differing(other, TREE)


def test_only_what_differs_is_named():
    other = copy.deepcopy(TREE)
    other["step"], other["model"]["w"] = 4, one_bit(WEIGHTS)
    assert differing(TREE, other) == ["step", "model.w"]


def test_values_whose_keys_look_alike_are_not_mistaken_for_each_other():
    tree = {0: 1, "0": 2}
    assert differing(tree, {0: 1, "0": 2}) == []
    for other in ({0: 3, "0": 2}, {0: 1, "0": 3}, {0: 2, "0": 1}):
        assert differing(tree, other) == ["0"]
    assert differing(tree, {"0": 1, 0: 2}) == ["key"]


def test_the_layout_in_memory_and_nan_do_not_matter():
    nan = torch.full((2, 3), float("nan"))
    for tensor in (WEIGHTS, nan):
        turned = tensor.T.contiguous().T
        assert turned.stride() != tensor.stride()
        assert differing({"w": tensor}, {"w": turned}) == []


def test_other_values_have_no_digest():
    with pytest.raises(TypeError, match="cannot hold a set"):
        digest({"a": {1}})


def test_the_first_value_that_is_not_finite_is_named():
    assert not_finite(TREE) is None
    assert not_finite({"a": 1.0, "b": [0, float("inf")]}) == "b.1"
    assert not_finite({"model": {"w": torch.tensor([1.0, float("nan")])}}) == "model.w"


def test_mismatches_are_listed_up_to_a_few():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    found = {"a": torch.zeros(2), "b": torch.zeros(3).int(), "d": torch.zeros(1)}
    assert mismatches(expected, expected) == []
    lines = ["b is int32 [3] instead of float32 [3]", "c is missing", "d is unknown"]
    assert mismatches(found, expected) == lines
    assert mismatches(found, expected, most=1) == [lines[0], "and 2 more"]
