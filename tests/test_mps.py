"""--device mps: no float64 goes to it. Pretended, as there is no such device here."""

import pytest
import torch
from faults import DRAWN, NETWORK, opener, store_classifier
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
