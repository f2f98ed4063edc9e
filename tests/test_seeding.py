"""Randomness is a function of its keys, and leaves the global generator alone."""

import torch

from config import PRESETS
from training.build import build
from utils.seeding import generator, image_noise, mix, permutation


def test_the_hash_separates_what_a_sum_confuses():
    keys = [(seed, step) for seed in range(50) for step in range(50)]
    assert len({mix(*k) for k in keys}) == len(keys)
    assert len({seed + step for seed, step in keys}) < len(keys)  # control: seed + step
    assert mix(1, "noise", 2) != mix(1, "order", 2)
    assert mix(1, "23") != mix(12, "3")
    assert all(0 <= mix(i) < 2**63 for i in range(1000))


def test_a_permutation_holds_every_index_once_and_belongs_to_its_epoch():
    orders = [permutation(100, 0, epoch) for epoch in range(3)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(100))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[2], permutation(100, 0, 2))


def test_noise_of_an_image_does_not_depend_on_its_batch():
    device = torch.device("cpu")
    together = image_noise(7, range(5), (1, 4, 4), device)
    alone = image_noise(7, [3], (1, 4, 4), device)
    for _ in range(3):
        assert torch.equal(together()[3:4], alone())
    other_seed = image_noise(8, [3], (1, 4, 4), device)
    assert not torch.equal(image_noise(7, [3], (1, 4, 4), device)(), other_seed())  # control


def test_drawing_does_not_touch_the_global_state():
    before = torch.get_rng_state()
    generator("cpu", 1, "x").seed()
    permutation(10, 0, 0)
    image_noise(0, [0, 1], (1, 2, 2), torch.device("cpu"))()
    assert torch.equal(torch.get_rng_state(), before)


def test_building_a_network_does_not_touch_the_global_state():
    """Its weights depend on the seed alone."""
    smoke = PRESETS["smoke"].override(num_classes=10, image_channels=1)
    networks = []
    for seed, config in ((1, smoke), (2, smoke), (1, smoke.override(seed=1))):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        networks.append(build(config)[0].state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    first, second, other = (network["stem.weight"] for network in networks)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)  # control
