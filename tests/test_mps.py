"""--device mps: no float64 goes to it. Pretended, as there is no such device here."""

from itertools import product

import pytest
import torch
from faults import DRAWN, NETWORK, count, opener, store_classifier
from pretend_mps import MPS, pretend_mps

import data.datasets
import evaluate
import sample
import train
from utils.devices import DeviceError, pick_device, real_dtype
from utils.distributed import joined

ON_MPS = ["--device", "mps"]


def test_training_sampling_and_evaluation_keep_float64_off_the_device(few_digits, monkeypatch):
    few = {part: (x[:20], y[:20]) for part, (x, y) in DRAWN.items()}
    monkeypatch.setitem(data.datasets.DATASETS, "digits", opener(few))
    store_classifier(few_digits / "Logs_Checkpoints", few)
    short = ["--timesteps", "10", "--variance", "optimal", "--loss", "kl"]
    latest = ["--ckpt", "latest", *ON_MPS, "--num", "4"]
    with pretend_mps() as violations:
        assert train.main([*NETWORK, *ON_MPS, "--max-steps", "2", *short]) == 0
        for own in (["ddpm"], ["ddim", "--eta", "1"], ["dpmpp"]):
            assert sample.main([*latest, "--sampler", *own, "--out", own[0]]) == 0
        assert evaluate.main(latest) == 0
    assert violations == []


CHOICES = list(product(("v", "eps", "x0"), ("muon", "adamw"), ("simple", "min-snr")))


@pytest.mark.slow
def test_no_choice_of_training_brings_float64_to_the_device(few_digits):
    seen = 0
    for i, (prediction, optimizer, loss) in enumerate(CHOICES):
        chosen = ["--prediction", prediction, "--optimizer", optimizer, "--loss", loss]
        run = ["--max-steps", "2", "--timesteps", "10", "--run-root", str(few_digits / str(i))]
        with pretend_mps() as violations:
            assert train.main([*NETWORK, *ON_MPS, *chosen, *run]) == 0
        assert violations == []
        seen += (few_digits / str(i) / "checkpoints/version_0/step_00000002.pt").exists()
    assert seen == len(CHOICES) == 12
    end = "no float64, nothing on two devices"
    count("--device mps, pretended: training with each kind of loss", 12, seen, end)


def test_what_goes_to_the_device_is_seen():
    """The control."""
    with pretend_mps() as violations:
        x = torch.ones(2, 3, device=MPS)
        assert x.device == (x + 1).device == MPS
        assert x.cpu().device == torch.device("cpu")
        assert violations == []
        for wrong in (
            lambda: x.double(),
            lambda: torch.ones(3, dtype=torch.float64).to(MPS),
            lambda: torch.zeros(2, dtype=torch.float64, device=MPS),
            lambda: x + torch.ones(3),
            lambda: torch.ones(3)[x[0].long()],
            lambda: x.numpy(),
        ):
            before = len(violations)
            wrong()
            assert len(violations) > before


def test_it_is_taken_where_there_is_one_and_refused_elsewhere():
    with pretend_mps():
        device = pick_device("mps")
        assert real_dtype(device) == torch.float32
        with pytest.raises(DeviceError, match="this machine has 1 MPS devices"):
            pick_device("mps:1")
    if not torch.backends.mps.is_available():
        with pytest.raises(DeviceError, match="this machine has 0 MPS devices; use cpu"):
            pick_device("mps")


def test_ranks_do_not_share_it(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(DeviceError, match="ranks cannot share it"), joined(MPS):
        pass
