"""Scores while a run trains: what they are called, what is kept for them, what they would cost."""

from types import SimpleNamespace

import pytest
import torch
from faults import few_digits as digits
from faults import store_classifier

import train
from evaluation.during import Scorer, names_of, seconds_to_prepare


def images(num_classes: int, *shape: int) -> SimpleNamespace:
    names = tuple(f"class {k}" for k in range(num_classes))
    return SimpleNamespace(num_classes=num_classes, image_shape=shape, class_names=names)


def test_names_are_those_of_the_features_that_the_images_have():
    common = ["precision", "recall"]
    labelled, square, wide = images(10, 1, 28, 28), images(0, 3, 32, 32), images(0, 3, 32, 48)
    classifier = ["fid_classifier", "kid_classifier", *common]
    assert names_of(labelled, True) == [*classifier, "accuracy"]
    assert names_of(labelled, False) == classifier
    assert names_of(square, False) == ["fid_rotations", "kid_rotations", *common]
    assert names_of(wide, False) == ["fid_flips", "kid_flips", *common]


@pytest.mark.parametrize("conditional", [True, False])
def test_no_real_image_is_kept_and_the_scores_are_as_named(tmp_path, conditional):
    store_classifier(tmp_path)
    sets = digits(None, None)
    scorer = Scorer.of(sets, 60, conditional, tmp_path / "classifiers")
    found = [scorer.reference.spaces, vars(scorer.reference.few), vars(scorer.reference.few.source)]
    tensors = [value for own in found for value in own.values() if isinstance(value, torch.Tensor)]
    assert not any(value.numel() for value in tensors if value.dtype == torch.uint8)
    assert all(value.untyped_storage().nbytes() <= 100 * 128 * 4 for value in tensors)
    x_0 = torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = set(names_of(sets[0], conditional)) - {"fid_classifier"}  # of 256 or more
    if len(scorer.reference.few) < 50:
        expected -= {"kid_classifier"}
    assert scorer.score(x_0).keys() == expected


def test_a_stored_classifier_costs_less(tmp_path):
    """By a clock that counts the work: 1,900 steps are not there to be trained."""
    sets = digits(None, None)
    anew = seconds_to_prepare(sets, tmp_path / "classifiers", torch.device("cpu"))
    store_classifier(tmp_path)
    stored = seconds_to_prepare(sets, tmp_path / "classifiers", torch.device("cpu"))
    assert anew > 20 * stored > 0


def test_dry_run_has_the_cost_of_the_feature_extractor(few_digits, capsys):
    argv = ["--preset", "smoke", "--device", "cpu", "--dry-run"]
    line = "before it, for the feature extractor"
    assert train.main(argv) == 0
    out = capsys.readouterr().out
    assert line not in out  # control
    assert "of it for validation\n" in out
    assert train.main([*argv, "--score-every", "10"]) == 0
    out = capsys.readouterr().out
    assert line in out
    assert "of it for validation and scores\n" in out
    assert list(few_digits.iterdir()) == []
