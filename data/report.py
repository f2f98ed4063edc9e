"""What a run learns, in lines for the screen."""

import torch

from data.image_set import ImageSet
from utils.errors import listed

NONE_HELD_OUT = (
    "held out: none, so there is no held-out loss: too few different images, or too few of a class"
)


def report(train_set: ImageSet, test_set: ImageSet) -> list[str]:
    """Counts, classes, sizes, what is left out, what is held out; a line each."""
    height_width = "x".join(map(str, train_set.image_shape[1:]))
    lines = [
        f"{train_set.name}: {len(train_set):,} training and {len(test_set):,} held-out images, "
        f"{train_set.image_shape[0]} x {height_width}; {train_set.source}",
        classes(train_set),
        *train_set.notes,
    ]
    if not len(test_set):
        lines.append(NONE_HELD_OUT)
    elif missing := without_held_out(train_set, test_set):
        lines.append(f"held out: no image of {listed(missing)}")
    return lines


def classes(image_set: ImageSet) -> str:
    """How many images each class has."""
    if not image_set.class_names:
        return "classes: none, so sampling is unconditional"
    counts = torch.bincount(image_set.labels.cpu(), minlength=image_set.num_classes).tolist()
    rows = [f"{name} {n:,}" for name, n in zip(image_set.class_names, counts, strict=True)]
    return f"{len(rows)} {'class' if len(rows) == 1 else 'classes'}: {listed(rows)}"


def without_held_out(train_set: ImageSet, test_set: ImageSet) -> list[str]:
    """The classes of which no image is held out."""
    there = set(test_set.labels.tolist())
    return [name for label, name in enumerate(train_set.class_names) if label not in there]
