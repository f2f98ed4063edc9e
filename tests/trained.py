"""Two tiny trained runs, made once a session, for every test that needs a checkpoint.

A test module takes the fixtures with ``pytest_plugins = "trained"``; so each exists once, however
many modules share it.
"""

import functools
from pathlib import Path

import pytest
from faults import opener

import data.datasets
import train
from data import ImageSet
from data.digits import draw_digits
from evaluation.features import LabeledImages, cache_path, load_or_train
from evaluation.tasks import task_of
from sample import TrainedModel, load

TRAIN = ["--preset", "smoke", "--max-steps", "12", "--device", "cpu"]
SIZES = {True: 700, False: 300}  # training and test images
CLASSIFIER_STEPS = 30


drawn = functools.cache(draw_digits)


def open_few_digits(options: data.DataOptions, loading: data.Loading) -> tuple[ImageSet, ImageSet]:
    """Stands for ``digits`` in the registry."""
    return opener({part: drawn(part, SIZES[part]) for part in SIZES})(options, loading)


@pytest.fixture
def few_drawn(monkeypatch) -> None:
    """`digits` has the images that the runs were trained on."""
    monkeypatch.setitem(data.datasets.DATASETS, "digits", open_few_digits)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run root with a conditional (version_0) and an unconditional (version_1) run.

    Beside them lies the classifier that evaluate.py would train, of fewer steps.
    """
    folder = tmp_path_factory.mktemp("trained")
    root = folder / "Logs_Checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(data.datasets.DATASETS, "digits", open_few_digits)
        assert train.main(TRAIN) == 0
        assert train.main([*TRAIN, "--num-classes", "0", "--first-timestep", "2"]) == 0
        train_set, test_set = data.load_splits(data.DataOptions("digits"))
    task = task_of(train_set)
    path = cache_path(root / "classifiers", train_set, task)
    images = (LabeledImages.of(part, len(part)) for part in (train_set, test_set))
    load_or_train(*images, task, path, CLASSIFIER_STEPS)
    return root


@pytest.fixture(scope="session")
def model(trained) -> TrainedModel:
    """The conditional run, as ``load`` gives it."""
    return load(trained / "checkpoints/version_0", device="cpu")
