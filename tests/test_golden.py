"""tests/golden.py, the equality check for refactors: it is stable, and it notices a change."""

from pathlib import Path

import pytest
import torch
from golden import FORMULATIONS, TINY, Checkout, digest, golden

CODE = Path(__file__).parent.parent


def hashes(folder: Path, *flags: str) -> dict:
    """Of a training of the default formulation in this empty folder."""
    folder.mkdir()
    return Checkout(CODE, folder).train(*TINY.split(), *flags)


def test_one_bit_is_another_hash():
    content = {"step": 3, "weights": torch.arange(4.0), "rest": [None, (1.5, "a")]}
    first = digest(content)
    assert digest(dict(content)) == first
    content["weights"].view(torch.int32)[2] ^= 1
    assert digest(content) != first
    content["weights"].view(torch.int32)[2] ^= 1
    assert digest(content) == first
    for other in (torch.arange(4), torch.arange(4.0)[None], torch.arange(4.0).double()):
        assert digest(content | {"weights": other}) != first
    assert digest(content | {"rest": [None, (1.5, "b")]}) != first


@pytest.mark.slow
def test_another_seed_has_other_hashes_of_what_it_decides_alone(tmp_path):
    first, other = hashes(tmp_path / "first"), hashes(tmp_path / "other", "--seed", "1")
    assert first["code"] == other["code"] == 0
    for part in ("model", "ema", "optimizer", "x0_error"):
        assert first["checkpoint"][part] != other["checkpoint"][part]
    assert first["curves"]["loss/train"] != other["curves"]["loss/train"]
    for part in ("step", "epoch", "scheduler"):
        assert first["checkpoint"][part] == other["checkpoint"][part]
    assert first["curves"]["training/lr"] == other["curves"]["training/lr"]


@pytest.mark.slow
def test_all_of_it_is_stable():
    """Seven formulations, resuming, five samplers, evaluation: twice the same."""
    assert golden(CODE, FORMULATIONS) == golden(CODE, FORMULATIONS)
