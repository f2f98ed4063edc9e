"""The floor: real images in the proportions of the samples, never those they are compared with."""

from collections.abc import Sequence

import pytest
import torch

from evaluation.features import Features, LabeledImages
from evaluation.floor import Floor, draw, draws, in_proportion, proportional_labels, strata
from evaluation.scores import (
    NEGATIVE,
    TEST,
    TRAIN,
    floor_rows,
    negative_kid,
    over_draws,
    score,
    score_all,
)
from evaluation.tasks import of_classes


def tensor(*counts: int) -> torch.Tensor:
    return torch.tensor(counts)


def of_counts(*counts: int) -> torch.Tensor:
    """Shuffled labels, so many of each class."""
    labels = torch.arange(len(counts)).repeat_interleave(tensor(*counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def apart(counts: Sequence[int], seed: int) -> Features:
    """Normal features (N, 4) about the corner of each class, far from those of the others."""
    labels = of_counts(*counts)
    g = torch.Generator().manual_seed(seed)
    features = 20 * torch.eye(4)[labels] + torch.randn(len(labels), 4, generator=g)
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return Features(LabeledImages(images, labels), features, labels, of_classes(tuple("abcd")))


def test_as_many_of_each_class_as_wanted_or_all_fewer_in_proportion():
    assert in_proportion(tensor(5, 3, 2), tensor(9, 3, 2)).tolist() == [5, 3, 2]
    assert in_proportion(tensor(50, 30, 20), tensor(99, 99, 9)).tolist() == [25, 15, 9]
    assert in_proportion(tensor(50, 30, 20), tensor(99, 99, 0)).tolist() == [2, 1, 0]
    assert in_proportion(tensor(5, 0), tensor(9, 0)).tolist() == [5, 0]  # none are wanted
    assert in_proportion(tensor(700), tensor(31)).tolist() == [31]


def test_a_draw_is_keyed_and_splits_the_images():
    classes, counts = of_counts(30, 20, 10), tensor(7, 0, 10)
    chosen, rest = draw(classes, counts, "a", 0)
    assert classes[chosen].bincount(minlength=3).tolist() == counts.tolist()
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(60))
    assert torch.equal(draw(classes, counts, "a", 0)[0], chosen)
    assert not torch.equal(draw(classes, counts, "a", 1)[0], chosen)  # control
    every = torch.cat([draw(classes, counts, "a", i)[0] for i in range(60)]).bincount()
    assert (every[classes == 0] > 0).all()  # any image can be drawn


def test_draws_that_take_all_images_are_one():
    classes = of_counts(4, 4)
    assert len(draws(classes, tensor(3, 4), "a", 5)) == 5
    assert len(draws(classes, tensor(4, 4), "a", 5)) == 1
    assert draws(classes[:0], tensor(4, 4), "a", 5) == []


def test_samples_have_the_proportions_of_the_training_set():
    labels = of_counts(40, 40, 20)
    assert proportional_labels(labels, 10).bincount().tolist() == [4, 4, 2]


@pytest.mark.parametrize("conditional", [True, False])
def test_the_floor_is_drawn_as_the_samples_are(conditional):
    train, test = apart((400, 300, 200, 100), 0), apart((100, 100, 100, 20), 1)
    labels = proportional_labels(train.source.labels, 100)
    floor = Floor.of(labels, (train, test), conditional, 3)
    few = floor.reference.few.source.labels.bincount().tolist()
    counts = [train.source.labels[index].bincount().tolist() for index in floor.train]
    counts += [test.source.labels[index].bincount().tolist() for index in floor.test]
    assert len(counts) == 6
    assert all(own == [40, 30, 20, 10] for own in [few, *counts]) == conditional
    for index in floor.train:  # none of the images it is compared with
        own = train.features[index]
        left = floor.reference.without(index).spaces["classifier"]
        assert len(left) == 900
        assert torch.cdist(own, left).min() > 0
        assert torch.cdist(own, floor.reference.few.features).min() > 0
        assert torch.cdist(own, train.features).min() == 0  # control


def test_at_random_real_images_score_worse_than_in_the_proportions_of_classes():
    """The reason for it: what the proportions of classes alone do to the Fréchet distance."""
    train, test = apart((2000, 1500, 1000, 500), 0), apart((400, 300, 200, 100), 1)
    labels = proportional_labels(train.source.labels, 200)
    alike, random = (
        floor_rows(Floor.of(labels, (train, test), conditional, 10), train, test)
        for conditional in (True, False)
    )
    for name in (TRAIN, TEST):
        means = [over_draws(torch.mean, own[name]) for own in (alike, random)]
        assert means[1]["fid_classifier@200"] > 5 * means[0]["fid_classifier@200"]


def test_fewer_real_images_are_said_and_named_by_their_number(capsys):
    train, test = apart((40, 30, 20, 10), 0), apart((10, 10, 10, 0), 1)
    samples = train[torch.arange(100)]
    found = score_all({"ddpm:2": samples}, {"ddpm:2": {}}, train, test, True)
    assert found["draws"] == {TRAIN: 1, TEST: 5}
    assert "fid_classifier@50" in found["rows"][TRAIN]  # half, the rest is the reference
    assert TRAIN not in found["std"]  # a single draw
    out = capsys.readouterr().out
    assert "real train images: 50 instead of 100" in out
    assert "real test images: 9 instead of 100" in out


def test_mean_and_deviation_are_those_of_the_draws(capsys):
    train, test = apart((100, 100, 100, 100), 0), apart((50, 50, 50, 50), 1)
    samples = train[strata(train.source.labels, True).argsort()[::4]]
    found = score_all({"ddpm:2": samples}, {"ddpm:2": {"nfe": 2}}, train, test, True)
    floor = Floor.of(samples.source.labels, (train, test), True)
    own = torch.tensor(
        [score(test[i], floor.reference, True)["kid_classifier@100"] for i in floor.test]
    ).double()
    column = found["rows"][TEST]["kid_classifier@100"], found["std"][TEST]["kid_classifier@100"]
    assert column == pytest.approx((own.mean().item(), own.std().item()))
    assert own.std() > 0  # control
    assert "real test images, std" in capsys.readouterr().out


def test_a_negative_kid_is_explained_where_there_is_one(capsys):
    train, test = apart((100, 100, 100, 100), 0), apart((50, 50, 50, 50), 1)
    samples = train[strata(train.source.labels, True).argsort()[::4]]
    found = score_all({"ddpm:2": samples}, {"ddpm:2": {}}, train, test, True)
    assert any(row["kid_classifier@100"] < 0 for row in found["rows"].values())
    assert NEGATIVE in capsys.readouterr().out
    assert negative_kid({"a": {"kid_classifier@9": 0.1, "fid_classifier@9": -1.0}}) == []  # control
