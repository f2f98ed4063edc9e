"""Which images are held out, and whether those of a resumed run are still the same."""

import zlib
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from data.errors import DataError
from data.image_set import ImageSet
from data.listing import ImageFile
from data.options import DataOptions, Loading
from utils.errors import listed, number

HELD_OUT_EVERY, MIN_IMAGES, MIN_CLASS = 10, 20, 5  # one in ten; from so many images, a class on


def split(kept: Sequence[ImageFile], labels: Tensor, digests: Tensor, loading: Loading) -> Tensor:
    """Which images are held out, (N,) bool: those of a test folder; those that were; a tenth."""
    named = torch.tensor([file.test for file in kept], dtype=torch.bool)
    if named.any():
        return named
    trained = trained_before(labels, digests, loading)
    return ~trained if trained.any() else choose_held_out(labels, digests)


def trained_before(labels: Tensor, digests: Tensor, loading: Loading) -> Tensor:
    """Which images a run was begun with, (N,) bool; a copy that is new is none of them.

    Of copies in several classes those that have the class of the start.
    """
    if loading.digests is None:
        return torch.zeros(len(digests), dtype=torch.bool)
    own = labels if loading.labels is not None else torch.zeros_like(labels)
    before = counted(loading.digests, loading.labels)
    images = list(zip(map(bytes, digests.tolist()), own.tolist(), strict=True))
    found = taken(images, before)
    left = Counter({digest: n for (digest, _), n in before.items() if n > 0})
    others = taken([digest for digest, _ in images], left)  # of another class by now
    return torch.tensor([a or b for a, b in zip(found, others, strict=True)], dtype=torch.bool)


def taken(images: Sequence[Hashable], left: Counter) -> list[bool]:
    """Whether each is one of those that are left; it then is not any more."""
    found = []
    for image in images:
        found.append(left[image] > 0)
        left[image] -= found[-1]
    return found


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
    check_same_classes(train_set.source, train_set.class_names, loading)
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


def check_same_classes(source: str, class_names: Sequence[str], loading: Loading) -> None:
    """DataError unless these are the classes a run was begun with."""
    names = loading.class_names
    if loading.fingerprint and names is not None and list(class_names) != list(names):
        raise DataError(
            f"the classes of {source} are {listed(class_names) or 'none'}, but this run was "
            f"trained on {listed(names) or 'none'}"
        )


def trained_too(trained: Tensor, held_out: Tensor) -> list[str]:
    """A line where test images are copies of training images, as a test folder may have them."""
    known = rows_of(trained)
    copies = sum(row in known for row in map(bytes, held_out.tolist()))
    what = number(copies, "held-out image is", "held-out images are")
    return [f"{what} trained on, too, as byte-by-byte copies"] if copies else []


def check_held_out(
    test: Tensor, digests: Tensor, options: DataOptions, loading: Loading
) -> tuple[Tensor, tuple[str, ...]]:
    """Which images are held out, (N,) bool, of those that were when the run began; lines to print.

    Images that came later are left out. DataError where some are gone, unless damaged ones may be.
    """
    if loading.held_out is None:
        return test, ()
    before = rows_of(loading.held_out)
    images = list(map(bytes, digests.tolist()))
    left = Counter(map(bytes, loading.held_out.tolist()))
    known = torch.tensor(taken(images, left), dtype=torch.bool)
    new, gone = int((test & ~known).sum()), len(before - rows_of(digests[test]))
    lines = []
    if new:
        what = number(new, "image is", "images are")
        lines.append(f"{what} new since the start of the run: left out")
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
