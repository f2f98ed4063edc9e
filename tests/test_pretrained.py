"""--init-from: another run's EMA weights, whatever fits of them, and nothing else of that run."""

import pytest
import torch
from faults import NETWORK, newest, result

import train
from config import Config
from training.build import build
from training.pretrained import Pretrained, find_pretrained
from utils import checkpoint

RUN = ["--epochs", "0", "--max-steps", "4"]


@pytest.fixture
def source(few_digits, capsys) -> Pretrained:
    """The weights of four steps, in version_0."""
    assert train.main([*NETWORK, *RUN]) == 0
    capsys.readouterr()
    return find_pretrained("latest", few_digits / "Logs_Checkpoints")


def network(**changes) -> torch.nn.Module:
    """That of the source, initialized."""
    small = {"base_channels": 8, "emb_channels": 16, "channel_multipliers": (1,), "heads": 2}
    small |= {
        "attention_levels": (),
        "patch_size": 7,
        "num_classes": 10,
        "image_size": (28, 28),
        "image_channels": 1,
    }
    return build(Config().override(**{**small, **changes}))[0]


@pytest.mark.parametrize(
    ("changes", "rest"),
    [
        ({}, set()),
        ({"num_classes": 3}, {"label.weight"}),
        ({"num_classes": 0}, set()),
        ({"image_channels": 3}, {"stem.weight", "head.weight", "head.bias"}),
    ],
)
def test_what_has_the_name_and_shape_is_taken_and_the_rest_is_named(source, capsys, changes, rest):
    model = network(**changes, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source.initialize(model)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name in rest else source.weights)[name])
        assert (name in line) == (name in rest)
    taken = sum(before[name].numel() for name in before if name not in rest)
    every = sum(value.numel() for value in before.values())
    assert f"{taken:,} of {every:,} weights taken" in line
    assert ("label.weight" in line) == ("num_classes" in changes)  # also where it has none


def test_the_run_starts_from_the_weights_with_all_else_fresh(source, few_digits):
    """At a learning rate of nearly 0 they stay what they are; from scratch they are others."""
    slow = [*NETWORK, *RUN, "--max-steps", "1", "--lr", "1e-12", "--seed", "1"]
    for flags, same in ((["--init-from", "latest"], True), ([], False)):
        assert train.main([*slow, *flags]) == 0
        ckpt = newest(few_digits)
        pairs = [(ckpt["ema"][f"module.{name}"], old) for name, old in source.weights.items()]
        assert all(torch.allclose(new, old, rtol=0, atol=1e-6) for new, old in pairs) == same
        assert ckpt["step"] == ckpt["ema"]["n_averaged"] == 1
        named = str(source.path.relative_to(few_digits)) if same else ""
        assert ckpt["config"]["train"]["init_from"] == named


def test_a_run_from_other_weights_resumes_to_the_bit_without_them(source, few_digits):
    flags = [*NETWORK, *RUN, "--init-from", str(source.path)]
    assert train.main(flags) == 0
    unbroken = result(few_digits)
    assert train.main([*flags, "--max-steps", "2", "--decay", "constant"]) == 0
    cut = newest(few_digits)
    assert train.main([*flags, "--decay", "constant"]) == 0
    constant = result(few_digits)
    path = few_digits / "Logs_Checkpoints/checkpoints/version_2" / checkpoint.filename(2)
    source.path.unlink()
    assert train.main(["--resume", str(path), "--max-steps", "4", "--device", "cpu"]) == 0
    assert cut["step"] == 2
    assert newest(few_digits)["config"]["train"]["init_from"] == str(source.path)
    assert constant != unbroken  # control


def test_resuming_takes_no_other_weights(source, few_digits, capsys):
    for resume in ("auto", str(source.path)):
        assert train.main(["--resume", resume, "--init-from", "latest", "--device", "cpu"]) == 2
        assert "--init-from and --resume exclude each other" in capsys.readouterr().err
    assert len(list(few_digits.glob("Logs_Checkpoints/*/version_*"))) == 2


def test_weights_that_are_absent_or_do_not_fit_are_one_line_and_leave_nothing(
    source, few_digits, capsys
):
    ckpt = checkpoint.load(source.path)
    other = few_digits / "other.pt"
    checkpoint.save(other, {**ckpt, "ema": {"module.layer": torch.zeros(2)}})
    odd = few_digits / "odd.pt"
    checkpoint.save(odd, {**ckpt, "ema": torch.zeros(2)})
    bad = {"absent.pt": "no checkpoint at", str(other): "no weights of", str(odd): "not a dict"}
    for path, words in bad.items():
        assert train.main([*NETWORK, *RUN, "--run-root", "new", "--init-from", path]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("train.py: error: ")
        assert captured.err.count("\n") == 1
        assert words in captured.err
        assert not (few_digits / "new").exists()


def test_a_dry_run_says_what_would_be_taken(source, few_digits, capsys):
    flags = ["--init-from", str(source.path), "--num-classes", "0", "--dry-run"]
    assert train.main([*NETWORK, *flags]) == 0
    assert "not taken: label.weight is unknown" in capsys.readouterr().out
    assert len(list(few_digits.glob("Logs_Checkpoints/*/version_*"))) == 2
