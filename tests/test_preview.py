"""The samples of a validation: which, in which rows; early ones are part of the later ones."""

import pytest
import torch

from config import PRESETS, Config
from training.validate import Preview
from training.validation_schedule import MOST_ROWS, ROWS, SAMPLES, Size, ValidationSchedule
from utils import images

NAMES = tuple(f"class {k}" for k in range(200))


def of(classes: int, early: bool, width: int = 28) -> Preview:
    size = {"image_size": (28, width), "image_channels": 1, "num_classes": classes}
    config = Config().override(**size)
    schedule = ValidationSchedule.of(config)
    return Preview.of(config, NAMES, schedule.size(schedule.every if early else schedule.steady))


@pytest.mark.parametrize("classes", [0, 1, 2, 3, 10, 13, 16, 102])
def test_a_row_is_one_class_and_early_samples_are_the_first_columns(classes):
    early, late = of(classes, True), of(classes, False)
    rows = len(late.indices) // late.columns
    assert ROWS <= rows <= MOST_ROWS
    assert 0.8 * SAMPLES <= len(late.indices) <= SAMPLES
    table = torch.tensor(late.indices).view(rows, late.columns)
    assert table[:, : early.columns].flatten().tolist() == list(early.indices)
    assert early.columns < late.columns
    if not classes:
        assert late.labels is None
        return
    labels = late.labels.view(rows, late.columns)
    assert (labels == labels[:, :1]).all()
    assert late.names == tuple(NAMES[label] for label in labels[:, 0])
    assert set(labels[:, 0].tolist()) <= set(range(classes))
    assert len(set(labels[:, 0].tolist())) == min(classes, MOST_ROWS)


@pytest.mark.parametrize("classes", [0, 1, 2, 10, 16, 102])
def test_the_strip_has_one_of_each_class_that_there_is(classes):
    preview = of(classes, False)
    chosen = preview.first_of_each
    assert len(chosen) == (ROWS if classes in (0, 10, 16, 102) else classes)
    if classes:
        labels = preview.labels[chosen].tolist()
        assert len(set(labels)) == len(labels)


def test_large_images_make_fewer_columns():
    assert of(10, False, width=256).columns == 6
    assert of(10, False, width=4096).columns == 1


def test_names_at_the_left_move_the_images_and_change_none():
    x = torch.rand(6, 1, 28, 28) * 2 - 1
    plain = images.grid(x, 3)
    named = images.grid(x, 3, rows_of=("7", "a name that is much too long to be written whole"))
    assert named.shape[1] == plain.shape[1]
    assert named[:, :, -plain.shape[2] :].equal(plain)
    left = named[:, :, : -plain.shape[2]]
    assert (left != images.GAP_GREY).any()
    other = images.grid(x, 3, rows_of=("1", "2"))  # control
    assert other.shape != named.shape


def test_the_presets_have_previews():
    for preset in PRESETS.values():
        classes = max(0, preset.model.num_classes)
        config = preset.override(num_classes=classes, image_size=(32, 32))
        schedule = ValidationSchedule.of(config)
        assert len(Preview.of(config, NAMES, schedule.size(schedule.steady)).indices) == SAMPLES


def test_a_very_short_run_has_the_first_rows_of_one_column():
    preview = Preview.of(Config().override(num_classes=10), NAMES, Size(64, 4, 1))
    assert preview.labels.tolist() == [0, 1, 2, 3]
    assert preview.indices == of(10, True).indices[:4]
