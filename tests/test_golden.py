"""tests/golden.py, the equality check for refactors: it is stable, and it notices a change."""

from pathlib import Path

import pytest
from golden import FORMULATIONS, TINY, Checkout, golden

CODE = Path(__file__).parent.parent


def hashes(folder: Path, *flags: str) -> dict:
    """Of a training of the default formulation in this empty folder."""
    folder.mkdir()
    return Checkout(CODE, folder).train(*TINY.split(), *flags)


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
