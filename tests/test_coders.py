"""Lossless coders: their code lengths are those of a code."""

import math

import numpy as np
import pytest
import torch

from evaluation import coders
from evaluation.coders import coded_bits, context_bits


def noise(n, values=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(values, (n, 1, 12, 12), generator=g, dtype=torch.uint8)


def test_the_code_lengths_of_all_images_are_those_of_a_prefix_code():
    """Kraft: 2^-length sums to one over the values of a pixel, whatever stands before it."""
    train = torch.tensor([0, 51, 51], dtype=torch.uint8).view(1, 1, 1, 3)

    def bits(*pixels):
        image = torch.tensor(pixels, dtype=torch.uint8).view(1, 1, 1, -1)
        return len(pixels) * context_bits(train, image)

    assert sum(2 ** -bits(value) for value in range(256)) == pytest.approx(1)
    for before in (0, 51, 200):
        both = sum(2 ** -bits(before, value) for value in range(256))
        assert both == pytest.approx(2 ** -bits(before))
    assert bits(0, 51) < bits(0, 52)  # control: seen before


@pytest.mark.parametrize("values", [2, 16, 256])
def test_noise_costs_its_entropy(values):
    found = context_bits(noise(600, values), noise(50, values, seed=1))
    assert found == pytest.approx(math.log2(values), rel=0.08)
    assert found > math.log2(values) - 0.01


def test_what_follows_from_the_neighbours_is_nearly_free():
    rows = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1) // 6 * 255
    stripes = rows.repeat(200, 1, 1, 12)
    assert context_bits(stripes[:150], stripes[150:]) < 0.1
    mixed = stripes.flatten(1)[:, torch.randperm(144, generator=torch.Generator().manual_seed(0))]
    assert context_bits(stripes[:150], mixed.view_as(stripes)[150:]) > 0.5  # control


def test_the_context_looks_back_only():
    """Another value changes the context of the pixels behind it, of no other."""
    image = np.zeros((1, 6, 7), np.uint8)
    other = image.copy()
    other[0, 3, 3] = 200
    changed = coders.context(image, 6) != coders.context(other, 6)
    at = {tuple(p) for p in np.argwhere(changed.reshape(6, 7))}
    assert at == {(3, 4), (3, 5), (4, 3), (4, 4), (4, 2), (5, 3)}


def test_every_coder_shortens_what_repeats_and_none_shortens_noise():
    images = noise(1).repeat(60, 1, 1, 1)
    found = coded_bits(images, images)
    assert list(found) == [*coders.COMPRESSORS, "context"]
    assert all(found[name]["total"] < 1 for name in coders.COMPRESSORS)
    assert all(row["total"] > 7.9 for row in coded_bits(noise(60), noise(60, seed=1)).values())
