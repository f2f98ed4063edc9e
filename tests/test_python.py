"""The Python interface: what docs/python.md shows runs, and its verbs keep their laws."""

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian_world import GaussianWorld

import sample
from config import ConfigError
from diffusion import SAMPLERS, make_diffusion, uniform_grid
from sample import load
from training.resume import find_checkpoint
from training.state import TrainState
from training.trained import open_checkpoint
from utils.checkpoint import CheckpointError
from utils.devices import DeviceError
from utils.distributed import Ranks
from utils.images import to_uint8
from utils.pytree import walk
from utils.seeding import image_noise

pytest_plugins = "trained"
ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    """The blocks of Python in a document."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)


DOCUMENTS = ("README.md", "docs/python.md", "docs/troubleshooting.md")
BLOCKS = [(name, block) for name in DOCUMENTS for block in blocks(name)]
M, S = 0.3, 0.15


@pytest.fixture(scope="module")
def world(model):
    """The model with the ideal network for x_0 ~ N(M, S^2), and its true errors of x_0."""
    diffusion = make_diffusion(**asdict(model.config.diffusion))
    alpha_bar, ideal = diffusion.alpha_bar, GaussianWorld(diffusion, M, S)
    x0_error = S**2 * (1 - alpha_bar) / (alpha_bar * S**2 + 1 - alpha_bar)
    parts = {"diffusion": diffusion, "x0_error": x0_error}
    return replace(model, network=lambda x, t, _y: ideal(x, t), **parts)


@pytest.fixture(scope="module")
def images():
    """N(M, S^2), (64, 1, 28, 28)."""
    return M + S * torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(5))


def first_noise(model, num, seed=0):
    """x_T of the images 0 ... num - 1."""
    return image_noise(seed, range(num), model.image_shape, model.device)()


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_documented_code_runs(name, block, trained, tmp_path, monkeypatch):
    run = "Logs_Checkpoints/checkpoints/version_0"
    shutil.copytree(trained / "checkpoints/version_0", tmp_path / run)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), {})
    if "save_png" in block:
        assert (tmp_path / "estimates.png").stat().st_size > 0


def test_there_is_documented_code():
    """The control: what runs above is the code of every document, and wrong code fails."""
    assert {name for name, _ in BLOCKS} == set(DOCUMENTS)
    assert len(blocks("docs/python.md")) >= 3
    assert all("load(" in block for block in blocks("docs/python.md"))
    with pytest.raises(ImportError):
        exec(BLOCKS[0][1].replace("import load", "import lode"), {})


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddim", "eta": 0.5, "guidance": 3.0}])
def test_the_images_are_those_that_sample_py_writes(model, tmp_path, settings):
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    flags += ["--ckpt", str(model.path), "--device", "cpu", "--out", str(tmp_path), "--save", "npz"]
    assert sample.main([*flags, "--num", "6", "--classes", "3,1", "--seed", "4"]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        written = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    x = model.sample(num=6, classes=[3, 1], seed=4, **settings)
    assert x.shape == (6, *model.image_shape)
    assert torch.equal(to_uint8(x), written)
    for other in ({"seed": 5}, {"classes": [1, 3]}):  # controls
        changed = model.sample(**{"num": 6, "classes": [3, 1], "seed": 4, **settings, **other})
        assert not torch.equal(to_uint8(changed), written)


def test_the_number_of_images_and_their_classes(model):
    assert model.classes == tuple(range(10))
    assert len(model.sample(classes=[7] * 3)) == 3
    by_default = model.sample(num=12)
    assert torch.equal(by_default, model.sample(num=12, classes=range(10)))
    assert torch.equal(by_default, model.sample(x=first_noise(model, 12)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_batch_size_does_not_matter(model, sampler, guidance):
    """Up to the rounding of convolutions, which depends on it; to the bit in test_samplers.py."""
    settings = {"num": 7, "sampler": sampler, "guidance": guidance}
    whole = model.sample(**settings)
    for batch_size in (1, 3):
        parts = model.sample(**settings, batch_size=batch_size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    other = model.sample(**settings, seed=1)
    assert (other - whole).abs().max() > 0.1  # control


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_the_noise_at_T_it_is_plain_sampling(model, sampler):
    T, plain = model.diffusion.timesteps, model.sample(num=4, sampler=sampler, seed=3)
    noise = first_noise(model, 4, seed=3)
    assert torch.equal(model.sample(x=noise, start=T, sampler=sampler, seed=3), plain)
    other = first_noise(model, 4, seed=2)
    assert not torch.equal(model.sample(x=other, start=T, sampler=sampler, seed=3), plain)


@pytest.mark.parametrize("seed", [0, 1])
def test_from_x_t_at_start_come_images_of_the_distribution(world, images, seed):
    """With the optimal variance the chain is exact, up to the last step, which adds no noise.

    Also where the seed is that of the noise in x_t: sampling goes on with other noise.
    """
    x_t = world.noise(images, 30)  # of seed 0
    for steps in (3, 30):
        last = uniform_grid(world.diffusion, steps, start=30)[-2]
        settings = {"steps": steps, "start": 30, "variance": "optimal", "seed": seed}
        x_0 = world.sample(x=x_t, **settings)
        expected = (S**2 - world.x0_error[last].item()) ** 0.5
        assert x_0.mean().item() == pytest.approx(M, abs=0.003)
        assert x_0.std().item() == pytest.approx(expected, abs=0.002)
        wrong = world.sample(x=x_t + 1, **settings)
        assert wrong.mean().item() > M + 0.006  # control: x is what it starts from


def test_a_larger_start_changes_more(world, images):
    changed = []
    for start in (1, 10, 25, 40):
        x_0 = world.sample(x=world.noise(images, start), start=start, steps=1, seed=1)
        changed.append((x_0 - images).square().mean().item())
    assert changed == sorted(changed)
    assert changed[-1] > 5 * changed[0]


def test_denoising_gives_the_posterior_mean(world, images):
    """E[x_0 | x_t] of x_0 ~ N(M, S^2) and x_t ~ N(a x_0, b^2), from their joint distribution."""
    t = torch.arange(1, 51).repeat(2)[:64]
    x_t = world.noise(images, t)
    alpha_bar = world.diffusion.alpha_bar[t].view(-1, 1, 1, 1)
    covariance, variance = alpha_bar.sqrt() * S**2, alpha_bar * S**2 + 1 - alpha_bar
    expected = M + covariance / variance * (x_t - alpha_bar.sqrt() * M)
    torch.testing.assert_close(world.denoise(x_t, t), expected.float(), rtol=0, atol=1e-4)
    one = world.denoise(x_t[4:5], 5)
    torch.testing.assert_close(one, expected[4:5].float(), rtol=0, atol=1e-4)
    assert not torch.allclose(world.denoise(x_t[4:5], 6), one, atol=1e-4)  # control


def test_estimates_are_clipped_as_the_configuration_says(model):
    x_t = 3 * first_noise(model, 2)
    loose = replace(model, config=model.config.override(clip=False))
    assert model.denoise(x_t, 25, classes=[1, 2]).abs().max() == 1
    unclipped = loose.denoise(x_t, 25, classes=[1, 2])
    assert unclipped.abs().max() > 1  # control
    assert not torch.equal(unclipped, loose.denoise(x_t, 25, classes=[1, 3]))


def test_noise_has_the_moments_of_q(model):
    x_0, t = torch.full((64, 1, 28, 28), 0.5), torch.tensor([1, 10, 25, 50]).repeat(16)
    x_t = model.noise(x_0, t)
    for n in (1, 10, 25, 50):
        alpha_bar, own = model.diffusion.alpha_bar[n].item(), x_t[t == n]
        assert own.mean().item() == pytest.approx(0.5 * alpha_bar**0.5, abs=0.03)
        assert own.std().item() == pytest.approx((1 - alpha_bar) ** 0.5, rel=0.03)
    assert torch.equal(model.noise(x_0[:2], 10), model.noise(x_0[:2], torch.tensor([10, 10])))
    assert torch.equal(model.noise(x_0, 25)[:3], model.noise(x_0[:3], 25))
    assert not torch.equal(model.noise(x_0, 25, seed=1), model.noise(x_0, 25))  # control


@pytest.mark.parametrize(
    "settings",
    [
        {"num": 0},
        {"batch_size": 0},
        {"classes": [10]},
        {"classes": 7},
        {"classes": "7"},
        {"classes": torch.tensor(7)},
        {"classes": [[1], [2, 3]]},
        {"classes": [1, 2, 3], "num": 2},
        {"steps": 51},
        {"sampler": "magic"},
        {"sampler": "heun", "churn": 1e-9},
        {"restart": 1, "restart_interval": (0.5, 0.51)},
        {"spacing": "sigma"},
        {"eta": 0.5},
        {"lr": 0.1},
        {"start": 10},
        {"x": torch.zeros(2, 3, 28, 28)},
        {"x": torch.zeros(2, 1, 28, 28), "start": 51},
        {"x": torch.zeros(2, 1, 28, 28), "start": 3, "steps": 4},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_bad_values_of_sampling_are_one_line(model, settings):
    with pytest.raises(ConfigError) as error:
        model.sample(**settings)
    assert str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("t", "shape"),
    [(0, (2, 1, 28, 28)), (51, (2, 1, 28, 28)), (2.0, (2, 1, 28, 28)), (5, (2, 3, 28, 28))],
)
def test_bad_values_of_denoising_are_one_line(model, t, shape):
    for bad in (t, torch.tensor([1, 2, 3])):
        with pytest.raises(ConfigError) as error:
            model.denoise(torch.zeros(shape), bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [0, 1])
def test_varying_is_noising_and_sampling_from_there(model, seed):
    x_0, T = torch.rand(3, 1, 28, 28), model.diffusion.timesteps
    x = x_0.repeat_interleave(2, dim=0)
    noisy = model.noise(x, T // 2, seed)
    expected = model.sample(x=noisy, start=T // 2, seed=seed, classes=[4], steps=3)
    assert torch.equal(model.vary(x_0, 0.5, [4], num=2, seed=seed, steps=3), expected)
    other = model.vary(x_0, 0.5, [4], num=2, seed=seed + 1, steps=3)
    assert not torch.equal(other, expected)  # control


def test_noise_that_was_added_is_removed(world, images):
    """E[x_0 | y] of x_0 ~ N(M, S^2) and y = x_0 + sigma noise; the sample has its variance too."""
    t = 30
    sigma = (world.diffusion.sigma[t] / world.diffusion.signal[t]).item()
    y = world.add_noise(images, sigma, seed=1)
    assert (y - images).std().item() == pytest.approx(sigma, rel=0.02)
    estimate, sample = world.remove_noise(y, sigma, steps=30, variance="optimal")
    expected = M + S**2 / (S**2 + sigma**2) * (y - M)
    torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-4)
    assert estimate.std() < 0.8 * S
    last = S**2 - world.x0_error[uniform_grid(world.diffusion, 30, start=t)[-2]].item()
    assert sample.std().item() == pytest.approx(last**0.5, rel=0.02)
    wrong, _ = world.remove_noise(y, 2 * sigma, steps=3)
    assert not torch.allclose(wrong, expected, atol=0.02)  # control


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("vary", {"strength": 0.0}),
        ("vary", {"num": 0}),
        ("vary", {"x_0": torch.zeros(2, 3, 28, 28)}),
        ("vary", {"seed": -1}),
        ("vary", {"seconds": 3}),
        ("reconstruct", {"sampler": "ddpm"}),
        ("reconstruct", {"eta": 0.5}),
        ("reconstruct", {"restart": 1}),
        ("interpolate", {"num": 1}),
        ("interpolate", {"classes": [1, 2, 3]}),
        ("inpaint", {"mask": torch.zeros(28, 28)}),
        ("inpaint", {"mask": torch.zeros(14, 28, dtype=torch.bool)}),
        ("inpaint", {"jump": 0}),
        ("inpaint", {"restart": 1}),
        ("remove_noise", {"sigma": 0.0}),
        ("remove_noise", {"sigma": 1e9}),
        ("classify", {"batch_size": 0}),
    ],
    ids=str,
)
def test_bad_values_of_editing_are_one_line(model, verb, arguments):
    x_0 = torch.zeros(2, 1, 28, 28)
    good = {
        "vary": {"x_0": x_0},
        "reconstruct": {"x_0": x_0},
        "interpolate": {"a": x_0[:1], "b": None},
        "inpaint": {"x_0": x_0, "mask": torch.ones(28, 28, dtype=torch.bool)},
        "remove_noise": {"y": x_0},
        "classify": {"x_0": x_0},
    }
    with pytest.raises(ConfigError) as error:
        getattr(model, verb)(**{**good[verb], **arguments})
    assert "\n" not in str(error.value)


def test_a_model_is_found_by_file_folder_and_latest(trained, model):
    folder = trained / "checkpoints/version_0"
    for where in (folder, str(folder), model.path, str(model.path)):
        assert load(where, device="cpu").path == model.path
    for root in (trained, str(trained)):
        latest = load(run_root=root, device="cpu")
        assert latest.path.parent.name == "version_1"
        assert latest.classes == ()
        with pytest.raises(ConfigError, match="without classes"):
            latest.sample(classes=[1])
    assert (model.step, model.device) == (12, torch.device("cpu"))


def test_what_cannot_be_loaded_is_one_line(trained, tmp_path):
    for error, options in (
        (CheckpointError, {"where": tmp_path / "nowhere.pt"}),
        (CheckpointError, {"run_root": tmp_path}),
        (DeviceError, {"where": trained / "checkpoints/version_0", "device": "cuda:99"}),
    ):
        with pytest.raises(error) as raised:
            load(**options)
        assert "\n" not in str(raised.value)


def test_the_weights_of_a_checkpoint_are_in_memory_once(trained):
    """What was restored is taken out of the content of the file."""
    folder, cpu = trained / "checkpoints/version_0", torch.device("cpu")
    resumed, opened = find_checkpoint(str(folder), trained), open_checkpoint(folder, trained, {})
    contents = (resumed.ckpt, opened.content)
    restored = opened.config, 700, cpu, Ranks(), resumed
    assert min(map(numbers_in, contents)) > 10_000  # control
    TrainState.create(*restored)
    opened.model(cpu)
    assert max(map(numbers_in, contents)) < 100


def numbers_in(content) -> int:
    return sum(value.numel() for _, value in walk(content) if isinstance(value, torch.Tensor))


def test_nothing_touches_the_random_numbers_of_the_caller(model):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    x_0 = load(model.path, device="cpu").sample(num=2)
    model.denoise(model.noise(x_0, 10), 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)  # control
