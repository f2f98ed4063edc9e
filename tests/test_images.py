"""Pictures of batches."""

import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from utils import images


def test_the_range_maps_onto_all_256_values():
    x = torch.tensor([-1.0, 0.0, 1.0, -3.0, 3.0])
    assert images.to_uint8(x).tolist() == [0, 128, 255, 0, 255]
    values = torch.arange(256)
    assert torch.equal(images.to_uint8(values / 127.5 - 1), values.to(torch.uint8))


def test_a_grid_keeps_every_pixel_in_its_place():
    x = torch.rand(6, 1, 5, 5) * 2 - 1
    picture = images.grid(x, columns=3)
    assert picture.shape == (3, 2 * 7 + 2, 3 * 7 + 2)
    assert torch.equal(picture[0, 9:14, 2:7], images.to_uint8(x[3, 0]))


@pytest.mark.parametrize(("count", "columns", "channels"), [(6, 3, 1), (7, 3, 3), (2, 10, 3)])
def test_a_grid_is_that_of_torchvision(count, columns, channels):
    x = torch.rand(count, channels, 5, 4) * 2 - 1
    expected = make_grid(images.to_uint8(x), columns, padding=2, pad_value=64)
    assert torch.equal(images.grid(x, columns), expected)
    assert not torch.equal(images.grid(-x, columns), expected)  # control


def test_a_filmstrip_runs_from_the_first_state_to_the_last():
    states = [torch.full((2, 1, 4, 4), i / 10 - 1) for i in range(21)]
    strip = images.filmstrip(states, count=5)
    assert strip[0, 3, 3] == images.to_uint8(states[0])[0, 0, 0, 0]
    assert strip[0, 3, -4] == images.to_uint8(states[-1])[0, 0, 0, 0]
    assert strip.shape[2] == 5 * 6 + 2


def test_files_read_back(tmp_path):
    picture = images.grid(torch.rand(4, 1, 5, 5) * 2 - 1, columns=2)
    images.save_png(picture, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (16, 16)
    (tmp_path / "a.gif").write_bytes(images.gif([picture, picture // 2, picture // 3]))
    film = Image.open(tmp_path / "a.gif")
    assert (film.n_frames, film.size) == (3, (16, 16))
