"""The floor: what real images score that are drawn as the samples are.

The samples of a conditional network have exact proportions of classes. Real images drawn without
regard to classes have not, and that alone sets them further apart than all else.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from evaluation.features import Features
from utils.seeding import generator

DRAWS = 5  # of real images, for the mean and the deviation of their scores; each takes seconds


@dataclass(frozen=True)
class Reference:
    """The training images that a set is compared with.

    spaces: the features of all of them, for the Fréchet distance; few: as many of them as there
    are samples, in their proportions of classes, for KID, precision and recall.
    """

    spaces: dict[str, Tensor]
    few: Features

    def without_images(self) -> Self:
        """The same features; the images, which take most of the memory, are not kept."""
        source = replace(self.few.source, images=self.few.source.images[:0].clone())
        return replace(self, few=replace(self.few, source=source))

    def without(self, index: Tensor) -> Self:
        """The reference of training images themselves, which are not among the few."""
        kept = torch.ones(len(next(iter(self.spaces.values()))), dtype=torch.bool)
        kept[index] = False
        return replace(self, spaces={name: own[kept] for name, own in self.spaces.items()})


@dataclass(frozen=True)
class Floor:
    """The reference, and draws of other real images: indices into the training and the test set."""

    reference: Reference
    train: list[Tensor]
    test: list[Tensor]

    @classmethod
    def of(
        cls,
        labels: Tensor,
        real: tuple[Features, Features],
        conditional: bool,
        most: int = DRAWS,
    ) -> Self:
        """Up to ``most`` draws of training and of test images, for samples of these labels (N,).

        In their proportions of classes; at random for an unconditional network.
        """
        train, test = real
        sets = [labels, train.source.labels, test.source.labels]
        of_samples, of_train, of_test = sets = [strata(own, conditional) for own in sets]
        wanted = of_samples.bincount(minlength=1 + int(torch.cat(sets).max()))
        half = of_train.bincount(minlength=len(wanted)) // 2  # the rest is for the floor
        counts = in_proportion(wanted, half)
        few, rest = draw(of_train, counts, "reference")
        known = [rest[index] for index in draws(of_train[rest], counts, "train", most)]
        unseen = draws(of_test, wanted, "test", most)
        return cls(Reference(train.spaces, train[few]), known, unseen)


def proportional_labels(labels: Tensor, n: int) -> Tensor:
    """n labels (n,) with the class proportions of ``labels``, sorted."""
    at = (torch.arange(n, device=labels.device) + 0.5) * len(labels) / n
    return labels.sort().values[at.long()]


def strata(labels: Tensor, conditional: bool) -> Tensor:
    """What is drawn in proportion: the classes (N,), or a single one for all images.

    On the CPU, so that the draws are the same on every device.
    """
    return labels.cpu() if conditional else torch.zeros(len(labels), dtype=torch.int64)


def in_proportion(wanted: Tensor, available: Tensor) -> Tensor:
    """How many images of each class (classes,): as wanted, or fewer where too few are available.

    Then all of them in proportion to what is wanted, to one image of a class.
    """
    share = ((available + 1) / wanted).min().clamp(max=1)  # infinite where none are wanted
    return (wanted * share).floor().long().minimum(available)


def draw(classes: Tensor, counts: Tensor, *keys: int | str) -> tuple[Tensor, Tensor]:
    """Keyed random indices of counts[k] images of every class k, and those of all others.

    classes: (N,), of which there are as many as counts asks for.
    """
    order = torch.randperm(len(classes), generator=generator("cpu", *keys))
    order = order[classes[order].argsort(stable=True)]  # by class, at random within each
    of_class = classes.bincount(minlength=len(counts))
    place = torch.arange(len(classes)) - (of_class.cumsum(0) - of_class)[classes[order]]
    chosen = place < counts[classes[order]]
    return order[chosen], order[~chosen]


def draws(classes: Tensor, wanted: Tensor, key: str, most: int) -> list[Tensor]:
    """Indices of up to ``most`` such draws, of images of each class as wanted and available.

    Only one where it takes all images, none where there are none.
    """
    counts = in_proportion(wanted, classes.bincount(minlength=len(wanted)))
    n = int(counts.sum())
    times = most if 0 < n < len(classes) else min(n, 1)
    return [draw(classes, counts, key, number)[0] for number in range(times)]
