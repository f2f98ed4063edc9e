"""The options of the preset `likelihood`, from training to evaluation."""

import math
import shutil

import pytest
import torch
from faults import AGAIN, SMALL, STEPS, checkpoints, folder, newest, run

import evaluate
import sample
from config import ConfigError
from sample import load
from training.setup import parse_args
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.pytree import digest

BOUND = [
    *("--prediction", "x0", "--loss", "kl", "--schedule", "log-snr", "--guidance", "1"),
    *("--discrete-pixels", "--importance-sampling", "--learn-variance", "--variance", "learned"),
]


def result(ckpt) -> str:
    return digest({name: ckpt[name] for name in checkpoint.RESULT})


def test_a_run_that_is_stopped_and_resumed_has_the_same_bits():
    """The moments of the losses decide what t is drawn; they and the counts are restored."""
    with folder() as where:
        assert run(where, [*SMALL, *BOUND]).code == 0
        unbroken = newest(where)
    with folder() as where, folder() as without:
        assert run(where, [*AGAIN, *BOUND], "sabotage.stop_at", 8).code == 143
        assert newest(where)["step"] == 8
        shutil.copytree(where / "Logs_Checkpoints", without / "Logs_Checkpoints")
        ended = run(where, [*AGAIN, *BOUND])
        assert ended.code == 0, ended.err
        assert result(newest(where)) == result(unbroken)
        path = checkpoints(without)[8]  # control: without the moments
        ckpt = torch.load(path, weights_only=True)
        ckpt["loss_moments"].zero_()
        del ckpt["sha256"]
        checkpoint.save(path, ckpt)
        assert run(without, [*AGAIN, *BOUND]).code == 0
        assert newest(without)["step"] == STEPS
        assert result(newest(without)) != result(unbroken)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The path of a checkpoint."""
    root = tmp_path_factory.mktemp("bound")
    with folder() as where:
        assert run(where, [*SMALL, *BOUND]).code == 0
        path = root / checkpoint.filename(STEPS)
        path.write_bytes(checkpoints(where)[STEPS].read_bytes())
    return path


def test_samples_are_values_of_pixels(trained):
    """In the last step the estimate is drawn to the nearest one, but where it lies between two."""
    model = load(trained, device="cpu")
    assert (model.diffusion.value_prior.exp().sum() - 1).abs() < 1e-6
    assert model.diffusion.value_prior[0] > model.diffusion.value_prior[100] + 2  # mostly black
    x = model.sample(num=4, steps=50)
    index = (x + 1) * 127.5
    assert ((index - index.round()).abs() < 0.02).float().mean() > 0.9  # 0.04 of any numbers
    assert x.abs().max() <= 1


def test_the_bits_are_evaluated_with_the_learned_variance(trained, few_digits, capsys):
    flags = ["--ckpt", str(trained), "--device", "cpu", "--only", "bits", "--out", str(few_digits)]
    assert evaluate.main(flags) == 0
    out = capsys.readouterr().out
    assert "learned" in out
    assert "xz -9e" in out


@pytest.mark.parametrize("prior", [None, "abc", torch.zeros(255).double(), torch.zeros(256)])
def test_a_checkpoint_without_its_counts_is_refused(prior, trained, tmp_path):
    ckpt = torch.load(trained, weights_only=True)
    del ckpt["sha256"]
    path = tmp_path / trained.name
    checkpoint.save(path, ckpt | {"value_prior": prior})
    with pytest.raises(CheckpointError, match="value_prior"):
        load(path, device="cpu")
    checkpoint.save(path, ckpt)  # control
    assert load(path, device="cpu").step == STEPS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--variance", "learned"], "--learn-variance"),
        (["--discrete-pixels"], "no effect"),
        (["--log-snr", "9", "-3"], "no effect"),
        (["--schedule", "log-snr", "--log-snr", "1", "2"], "fall"),
        (["--schedule", "log-snr", "--log-snr", "1"], "two numbers"),
        (["--prediction", "eps", "--zero-terminal"], "no signal"),
        (["--prediction", "eps", "--no-clip"], "multiplies"),
        (["--alphas", *["0.5"] * 400, "--prediction", "eps"], "no signal"),
        (["--alphas", *["0.45"] * 1000], "vanishes"),
    ],
)
def test_choices_that_cannot_be_are_one_line(flags, message):
    with pytest.raises(ConfigError, match=message) as e:
        parse_args(flags, "")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("flags", "visible"), [(["--alphas", *["0.99"] * 10], True), (["--timesteps", "50"], False)]
)
def test_an_image_that_stays_visible_at_T_is_warned_of(flags, visible, capsys):
    parse_args(flags, "")
    assert ("leaves the image visible" in capsys.readouterr().err) == visible


def test_zero_terminal_snr_trains_and_samples():
    with folder() as where:
        assert run(where, [*SMALL, "--zero-terminal"]).code == 0
        path = checkpoints(where)[STEPS]
        for sampler in ("ddpm", "ddim", "dpmpp"):
            x = load(path, device="cpu").sample(num=2, sampler=sampler, steps=5)
            assert x.isfinite().all()
        assert newest(where)["best"]["loss"] < math.inf


def test_a_network_that_is_not_finite_is_no_black_picture(trained, tmp_path, capsys):
    ckpt = torch.load(trained, weights_only=True)
    ckpt["ema"] = {k: v * 1e30 if v.is_floating_point() else v for k, v in ckpt["ema"].items()}
    del ckpt["sha256"]
    path, out = tmp_path / trained.name, tmp_path / "out"
    checkpoint.save(path, ckpt)
    flags = ["--ckpt", str(path), "--device", "cpu", "--num", "2", "--out", str(out)]
    assert sample.main(flags) == 1
    assert "not finite from step 1" in capsys.readouterr().err
    assert not out.exists()
