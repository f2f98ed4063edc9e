"""The drawn digits: always the same, balanced, like MNIST in their grey levels."""

import pytest
import torch

from data.digits import CHUNK, distance_to_segments, draw_digits


def test_the_same_digits_every_time_and_for_any_number_of_threads():
    images, labels = draw_digits(True, 60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    again, again_labels = draw_digits(True, 60)
    torch.set_num_threads(threads)
    assert torch.equal(images, again)
    assert torch.equal(labels, again_labels)


def test_fewer_digits_are_the_first_of_more():
    few, many = draw_digits(True, 30), draw_digits(True, CHUNK + 10)
    assert torch.equal(few[0], many[0][:30])
    assert torch.equal(few[1], many[1][:30])
    assert not torch.equal(many[0][:10], many[0][CHUNK:])  # control: chunks differ


def test_training_and_test_digits_differ():
    assert not torch.equal(draw_digits(True, 10)[0], draw_digits(False, 10)[0])


def test_shape_balance_and_grey_levels():
    images, labels = draw_digits(True, 500)
    assert images.shape == (500, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.bincount().tolist() == [50] * 10
    grey = images.float() / 255
    assert grey.mean().item() == pytest.approx(0.13, abs=0.03)
    assert grey.std().item() == pytest.approx(0.31, abs=0.04)
    assert grey.amax((1, 2, 3)).min() > 0.9  # every image has ink
    assert grey[:, :, [0, -1]].mean() < 0.01  # and a margin


def test_no_two_images_are_alike():
    images, _ = draw_digits(True, 500)
    assert len({image.numpy().tobytes() for image in images}) == 500


def test_distances_are_distances():
    torch.manual_seed(0)
    p, a, b = torch.rand(1, 50, 2), torch.rand(3, 7, 2), torch.rand(3, 7, 2)
    along = torch.linspace(0, 1, 2001).view(-1, 1, 1, 1)
    points = a + along * (b - a)  # (2001, 3, 7, 2), finely on each segment
    brute = (points[:, :, :, None] - p[:, None]).norm(dim=-1).amin((0, 2))
    torch.testing.assert_close(distance_to_segments(p, a, b), brute, rtol=0, atol=2e-3)
