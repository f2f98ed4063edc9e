"""Which images are held out, and whether those of a resumed run are still the same."""

import zlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from data.errors import DataError
from data.image_set import ImageSet
from data.listing import ImageFile
from data.options import DataOptions, Loading
from utils.errors import listed

HELD_OUT_EVERY, MIN_IMAGES, MIN_CLASS = 10, 20, 5  # one in ten; from so many images, a class on


def split(kept: Sequence[ImageFile], labels: Tensor, digests: Tensor, loading: Loading) -> Tensor:
    """Which images are held out, (N,) bool: those of a test folder; those that were; a tenth."""
    named = torch.tensor([file.test for file in kept], dtype=torch.bool)
    if named.any():
        return named
    known = set() if loading.digests is None else rows_of(loading.digests)
    trained = torch.tensor([row in known for row in map(bytes, digests.tolist())], dtype=torch.bool)
    return ~trained if trained.any() else choose_held_out(labels, digests)


def choose_held_out(labels: Tensor, digests: Tensor) -> Tensor:
    """Which images are held out, (N,) bool: a tenth of each class, but at least one.

    Those with the lowest hash of their content: another image in the folder does not change the
    others' lot, and copies of a held-out image are held out too. Copies count as one: of fewer than
    MIN_IMAGES none is held out, nor of a class with fewer than MIN_CLASS.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.tensor([zlib.crc32(bytes(row)) for row in digests.tolist()])
    if len(order.unique()) < MIN_IMAGES:
        return chosen
    for label in labels.unique():
        contents = order[labels == label].unique()  # rising
        if len(contents) >= MIN_CLASS:
            chosen |= torch.isin(order, contents[: max(1, len(contents) // HELD_OUT_EVERY)])
    for label in labels.unique():  # whose images are all copies of another class's
        own = labels == label
        if chosen[own].all():
            chosen[own] = False
    return chosen


def check_same_images(
    train_set: ImageSet, options: DataOptions, loading: Loading
) -> tuple[str, ...]:
    """DataError unless these are the images a run was begun with, or what is left of them.

    A line, where some are gone.
    """
    if not loading.fingerprint or train_set.fingerprint == loading.fingerprint:
        return ()
    names = loading.class_names
    if names is not None and list(train_set.class_names) != list(names):
        raise DataError(
            f"the classes of {train_set.source} are {listed(train_set.class_names) or 'none'}, but "
            f"this run was trained on {listed(names) or 'none'}"
        )
    if loading.digests is not None:
        labels = loading.labels is not None
        before = counted(loading.digests, loading.labels)
        now = counted(train_set.digests, train_set.labels if labels else None)
        gone = len(loading.digests) - len(train_set)
        if options.skip_damaged and now < before and gone <= len(loading.digests) / 2:
            total = len(loading.digests)
            return (f"{gone:,} of {total:,} training images are gone since the start",)
        if now < before:
            raise DataError(
                f"{gone:,} of the {len(loading.digests):,} images ({train_set.source}) that this "
                "run was trained on are gone: bring them back, or go on with --skip-damaged"
            )
    raise DataError(f"the images ({train_set.source}) are not those this run was trained on")


def trained_too(trained: Tensor, held_out: Tensor) -> list[str]:
    """A line where test images are copies of training images, as a test folder may have them."""
    known = rows_of(trained)
    copies = sum(row in known for row in map(bytes, held_out.tolist()))
    return [f"{copies:,} held-out images are trained on, too, as byte-by-byte copies"] * (
        copies > 0
    )


def check_held_out(
    test: Tensor, digests: Tensor, options: DataOptions, loading: Loading
) -> tuple[Tensor, tuple[str, ...]]:
    """Which images are held out, (N,) bool, of those that were when the run began; lines to print.

    Images that came later are left out. DataError where some are gone, unless damaged ones may be.
    """
    if loading.held_out is None:
        return test, ()
    before = rows_of(loading.held_out)
    known = torch.tensor([row in before for row in map(bytes, digests.tolist())], dtype=torch.bool)
    new, gone = int((test & ~known).sum()), len(before - rows_of(digests[test]))
    lines = []
    if new:
        lines.append(f"{new:,} images are new since the start of the run: left out")
    if gone:
        line = f"{gone:,} of {len(before):,} held-out images are gone or changed since the start"
        if not options.skip_damaged:
            raise DataError(f"{line}: bring them back, or go on with --skip-damaged")
        lines.append(line)
    return test & known, tuple(lines)


def counted(digests: Tensor, labels: Tensor | None) -> Counter:
    """How often each digest (N, 32) occurs, with its label (N,) where these are given."""
    own = [0] * len(digests) if labels is None else labels.tolist()
    return Counter(zip(map(bytes, digests.tolist()), own, strict=True))


def rows_of(digests: Tensor) -> set[bytes]:
    """The digests (N, 32)."""
    return set(map(bytes, digests.tolist()))
