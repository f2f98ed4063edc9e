"""The drawn digits: always the same, balanced, with grey levels like MNIST's."""

import pytest
import torch
from torch import Tensor

from data.digits import CHUNK, distance_to_segments, draw_digits


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """A chunk of training digits and ten of the next one."""
    return draw_digits(True, CHUNK + 10)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_digits_are_the_same_for_any_size_and_number_of_threads(drawn, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    images, labels = draw_digits(True, 60)
    torch.set_num_threads(before)
    assert torch.equal(images, drawn[0][:60])
    assert torch.equal(labels, drawn[1][:60])


def test_chunks_and_training_and_test_digits_differ(drawn):
    """The control of the test above."""
    first = drawn[0][:10]
    assert not torch.equal(first, drawn[0][CHUNK:])
    assert not torch.equal(first, draw_digits(False, 10)[0])


def test_shape_balance_and_grey_levels(drawn):
    images, labels = drawn[0][:500], drawn[1][:500]
    assert images.shape == (500, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.bincount().tolist() == [50] * 10
    grey = images.float() / 255
    assert grey.mean().item() == pytest.approx(0.13, abs=0.03)
    assert grey.std().item() == pytest.approx(0.31, abs=0.04)
    assert grey.amax((1, 2, 3)).min() > 0.9  # every image has a stroke
    assert grey[:, :, [0, -1]].mean() < 0.01  # and a margin


def test_no_two_images_are_equal(drawn):
    assert len({image.numpy().tobytes() for image in drawn[0]}) == len(drawn[0])


def test_distances_equal_brute_force():
    torch.manual_seed(0)
    p, a, b = torch.rand(1, 50, 2), torch.rand(3, 7, 2), torch.rand(3, 7, 2)
    along = torch.linspace(0, 1, 2001).view(-1, 1, 1, 1)
    points = a + along * (b - a)  # (2001, 3, 7, 2), densely on each segment
    brute = (points[:, :, :, None] - p[:, None]).norm(dim=-1).amin((0, 2))
    torch.testing.assert_close(distance_to_segments(p, a, b), brute, rtol=0, atol=2e-3)
