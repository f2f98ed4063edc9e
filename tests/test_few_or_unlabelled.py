"""Evaluation on images without labels, and with few or no test images."""

import functools
import json
import math
from types import SimpleNamespace

import pytest
import torch

import evaluate
from data import DATASETS
from data.digits import draw_digits
from data.image_set import TensorSet
from evaluation import likelihood
from evaluation.features import Features, LabeledImages, cache_path, load_or_train, unit_scale
from evaluation.memorization import closeness, memorization, real_distances, verdict
from evaluation.scores import class_shares
from evaluation.tasks import FLIPS, ROTATIONS, of_classes, task_of
from sample import load
from utils import checkpoint

pytest_plugins = "trained"
drawn = functools.cache(draw_digits)
SECTIONS = {"scores", "memorization", "held_out", "bits_per_dim"}


def without_labels(images: torch.Tensor) -> TensorSet:
    return TensorSet("digits", "drawn", (), images, torch.zeros(len(images), dtype=torch.int64))


def unlabelled(train: bool, count: int) -> TensorSet:
    """So many drawn digits of which nobody says what they are."""
    return without_labels(drawn(train, 300)[0][:count])


def shaped(*shape: int) -> TensorSet:
    """Noise of this shape (N, C, H, W)."""
    g = torch.Generator().manual_seed(0)
    return without_labels(torch.randint(256, shape, generator=g).to(torch.uint8))


def of(image_set: TensorSet) -> LabeledImages:
    return LabeledImages(image_set.images, image_set.labels)


@pytest.mark.parametrize("task", [ROTATIONS, FLIPS], ids=lambda task: task.name)
def test_the_views_of_an_image_are_the_group_that_its_shape_allows(task):
    """They differ, and any two in a row are one of them; all of the first view come first."""
    images = shaped(3, 2, 5, 5).images
    views, labels = task.examples(images, torch.zeros(3))
    views = list(views.split(3))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(views[0], images)
    assert not any(torch.equal(views[i], views[j]) for i in range(4) for j in range(i))
    for view in task.views:
        for twice in map(view, views):
            assert sum(torch.equal(twice, one) for one in views) == 1
    other = FLIPS if task is ROTATIONS else ROTATIONS  # control: not every turn is in both groups
    assert not all(any(torch.equal(v(images), one) for one in views) for v in other.views)


def test_the_task_is_that_of_the_labels_and_of_the_shape():
    def task(num_classes, *shape, **names):
        return task_of(SimpleNamespace(num_classes=num_classes, image_shape=shape, **names))

    assert task(3, 1, 9, 9, class_names=("a", "b", "c")) == of_classes(("a", "b", "c"))
    assert task(2, 1, 9, 12, class_names=("cat", "dog")) == of_classes(("cat", "dog"))
    assert task(0, 4, 9, 9) is task(1, 1, 9, 9, class_names=("cat",)) is ROTATIONS
    assert task(0, 1, 9, 12) is task(1, 3, 12, 9) is FLIPS


def test_the_columns_of_the_class_shares_are_the_names_of_the_classes(capsys):
    images, predicted = of(shaped(4, 1, 8, 8)), torch.tensor([0, 1, 1, 1])
    features = Features(images, torch.zeros(4, 128), predicted, of_classes(("cat", "dog")))
    assert class_shares({"samples": features}) == {"samples": [0.25, 0.75]}
    assert capsys.readouterr().out.splitlines()[2].split() == ["cat", "dog"]


def test_rotations_are_learnt_where_images_have_an_upper_side(tmp_path):
    """Of images that look the same however they are turned, one view in four is right."""
    noise = shaped(200, 1, 8, 8).images // 2
    upright = torch.cat([noise[:, :, :4] + 128, noise[:, :, 4:]], dim=2)
    symmetric = torch.stack([upright.rot90(k, (2, 3)) for k in range(4)]).amax(0)
    for images, expected in ((upright, 1.0), (symmetric, 0.25)):
        both = LabeledImages(images, torch.zeros(200))
        path = tmp_path / f"{expected}.pt"
        learnt = load_or_train(both[:150], both[150:], ROTATIONS, path, steps=20)
        assert learnt.accuracy == pytest.approx(expected, abs=0.02)
        assert "classifier of rotations" in learnt.summary


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 8, 12), (2, 4, 9, 5), (2, 1, 3, 2)])
def test_any_number_shape_and_colour_has_features(shape, tmp_path):
    images = shaped(*shape)
    task = task_of(images)
    extractor = load_or_train(of(images), of(images)[:0], task, tmp_path / "a.pt", steps=2)
    assert extractor.accuracy is None
    assert "not known without test images" in extractor.summary
    found = extractor.extract(of(images))
    assert found.features.shape == (shape[0], 128)
    assert found.features.isfinite().all()
    assert extractor.extract(of(images)[:0]).features.shape == (0, 128)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_small_images_have_finite_gradients_whatever_the_memory_held(side, tmp_path):
    images = shaped(2, 1, side + 1, side)
    for trial in range(4):
        junk = [torch.full((n,), torch.nan) for n in (100, 1000, 5000, 20_000, 100_000)]
        del junk
        path = tmp_path / f"{trial}.pt"
        extractor = load_or_train(of(images), of(images)[:0], task_of(images), path, steps=2)
        assert all(p.isfinite().all() for p in extractor.model.parameters())


def test_the_scale_makes_the_mean_variance_one_and_one_image_has_none():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert (unit_scale(features) * features).var(0).mean().item() == pytest.approx(1)
    assert unit_scale(features[:1]) == unit_scale(features[:1].expand(3, 8)) == 1


def test_a_classifier_of_another_task_or_of_other_classes_is_not_taken(tmp_path, capsys):
    images, path = of(shaped(4, 1, 8, 8)), tmp_path / "a.pt"
    load_or_train(images, images, ROTATIONS, path, steps=1)
    for task in (FLIPS, of_classes(("0",)), of_classes(("0", "1"))):
        assert "trained" in load_or_train(images, images, task, path, steps=1).source
    out = capsys.readouterr().out
    assert "predicts rotations, not flips" in out
    assert "does not fit" in out
    assert "loaded" in load_or_train(images, images, of_classes(("0", "1")), path).source  # control
    names = {cache_path(tmp_path, shaped(1, 1, 8, 8), task).name for task in (ROTATIONS, FLIPS)}
    assert len(names) == 2


@pytest.fixture
def measure(trained, tmp_path, monkeypatch, capsys):
    """Evaluate the unconditional run as if its images had no labels: so many of each kind."""

    def run(train, test, num, *flags):
        parts = {True: unlabelled(True, train), False: unlabelled(False, test)}
        monkeypatch.setitem(DATASETS, "digits", lambda *_: (parts[True], parts[False]))
        state = checkpoint.load(checkpoint.find(trained / "checkpoints/version_1", trained))
        state["data"]["fingerprint"] = parts[True].fingerprint
        checkpoint.save(tmp_path / "a.pt", state)
        path = cache_path(tmp_path / "classifiers", parts[True], ROTATIONS)
        load_or_train(of(parts[True]), of(parts[False]), ROTATIONS, path, steps=2)
        flags = ["--num", str(num), "--steps", "2", *flags]
        assert evaluate.main(["--ckpt", str(tmp_path / "a.pt"), "--device", "cpu", *flags]) == 0
        text = (tmp_path / "metrics.json").read_text()
        return capsys.readouterr().out, json.loads(text, parse_constant=refuse)

    return run


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(("train", "test"), [(1, 0), (2, 1), (19, 0), (30, 3)])
def test_from_one_image_on_it_works_or_says_what_is_missing(measure, train, test):
    out, found = measure(train, test, 5)
    assert "nan" not in out
    assert found["scores"]["classifier"]["task"] == "rotations"
    assert found.keys() & SECTIONS == (SECTIONS if test else {"scores", "memorization"})
    assert ("no held-out loss, no bits per dimension" in out) == (test == 0)
    assert (found["scores"]["classifier"]["accuracy"] is None) == (test == 0)
    assert "no fid_rotations: 5 samples" in out
    assert "no accuracy, no shares of classes" in out
    assert ("real test images" in found["scores"]["rows"]) == (test > 0)
    memory = found["memorization"]
    assert memory["verdict"].startswith("no verdict") == (train == 1)
    assert memory["baseline"].startswith("none" if train == 1 else f"{train} training images")
    if test:
        bound = found["bits_per_dim"]["2 steps"]["posterior"]
        assert ("se" in bound) == (test > 1)
        assert "loss" in found["held_out"]["all"]


def test_scores_without_labels_say_whose_features_they_are(measure):
    out, found = measure(256, 256, 256, "--only", "scores")
    rows = found["scores"]["rows"]
    assert "in the features of a classifier of rotations" in out
    assert "not comparable with scores in features of classes" in out
    assert found["scores"]["classifier"]["accuracy"] > 0
    distances = ["fid_rotations@256", "kid_rotations@256"]
    assert list(rows["ddpm:2"])[3:] == [*distances, "precision@256", "recall@256"]
    # A network of twelve steps: far from real images, which are near to each other.
    floor = rows["real test images"]["fid_rotations@256"]
    assert rows["ddpm:2"]["fid_rotations@256"] > 5 * floor
    assert "class_shares" not in found["scores"]


@pytest.fixture(scope="module")
def extract(tmp_path_factory):
    """Features of rotations, hardly trained: memorization is in pixels."""
    images = of(unlabelled(True, 20))
    path = tmp_path_factory.mktemp("classifiers") / "a.pt"
    return load_or_train(images, images[:0], ROTATIONS, path, steps=2).extract


@pytest.mark.parametrize("count", [2, 5, 19, 300])
def test_without_test_images_copies_are_told_from_unseen_images(extract, tmp_path, count):
    known, picture = of(unlabelled(True, count)), tmp_path / "a.png"
    train, none = extract(known), extract(known[:0])
    noise = torch.randint(-6, 7, known.images.shape, generator=torch.Generator().manual_seed(0))
    copies = LabeledImages((known.images + noise).clamp(0, 255).to(torch.uint8), known.labels)
    unseen = of(unlabelled(False, 200))
    for samples, expected in ((copies, "copies"), (unseen, "no sign")):
        found = memorization(extract(samples), train, none, picture)
        assert found["verdict"].startswith(expected)
        assert ("closer" in found["pixels"]) == (count >= 100)


def test_the_baseline_is_of_every_training_image_to_another_and_a_copy_is_at_0():
    points = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
    assert real_distances(points, points[:0]).tolist() == [1, 1, 0, 0]
    assert real_distances(points[:1], points[:0]).tolist() == []
    many = torch.arange(100.0)[:, None]
    assert real_distances(points, many).tolist() == [0, 0, 1, 0, *range(1, 97)]  # test images


def test_copies_of_training_images_are_no_baseline(extract, tmp_path):
    """Test images that are training images too would hide the samples that copy them."""
    known = of(unlabelled(True, 150))
    train = extract(known)
    test = extract(LabeledImages(*(torch.cat(p) for p in zip(
        (known.images, known.labels), (drawn(False, 300)[0][:150], known.labels), strict=True
    ))))  # fmt: skip
    found = memorization(train, train, test, tmp_path / "a.png")
    assert found["baseline"] == "150 test images (150 copies left out)"
    assert found["verdict"] == "copies training images"
    all_copies = memorization(train, train, train, tmp_path / "a.png")
    assert all_copies["baseline"] == "none"
    assert all_copies["verdict"].startswith("no verdict")


def test_few_real_images_are_weak_evidence():
    """The share of copies must exceed that of samples like n real images: one in n + 1."""
    real, samples = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.4] * 2 + [1.5] * 8)
    assert verdict(closeness(samples, real)) == "no sign of memorization"  # 20 % of at most 25 %
    assert verdict(closeness(samples, real.repeat(3))) == "copies training images"  # of 10 %
    assert verdict(closeness(samples, real[:0])).startswith("no verdict")


def test_the_held_out_loss_of_one_image_has_no_standard_error(trained):
    model = load(trained / "checkpoints/version_1", device="cpu")
    one, many = (
        likelihood.held_out_loss(model, of(unlabelled(False, n)), "simple") for n in (1, 300)
    )
    assert all(row.keys() == {"loss"} for row in one.values())
    assert all(math.isfinite(row["se"]) for row in many.values())  # control
