"""Evaluation from the command line, on drawn digits and with a network of a few steps."""

import functools
import json
import math
import shutil

import pytest
import torch
from PIL import Image

import bound
import data.datasets
import evaluate
import judge
import sample
import train
from data.digits import draw_digits
from diffusion import last, make_diffusion
from diffusion.samplers import ddpm
from judge import Photos, judge_of, shifted
from models import Classifier
from scores import Read, memorisation, score
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.images import to_uint8
from utils.seeding import image_noise

TRAIN = ["--preset", "smoke", "--max-steps", "12", "--device", "cpu"]
SIZES = {True: 700, False: 300}


@functools.cache
def drawn(train, n):
    return draw_digits(train, size=n)


def digits(_root, _size, train, _download):
    return data.datasets.TensorSet("", "drawn", 10, *drawn(train, SIZES[train]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run root with a conditional (version_0) and an unconditional (version_1) run."""
    root = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setitem(data.datasets.DATASETS, "digits", digits)
        patch.setattr(judge, "STEPS", 30)
        patch.setattr(bound, "BITS", 100)
        assert train.main(TRAIN) == 0
        assert train.main([*TRAIN, "--num-classes", "0", "--first-timestep", "2"]) == 0
        yield root / "Logs_Checkpoints"


@pytest.fixture
def measure(trained, capsys):
    """Evaluate with these flags; what was printed, and metrics.json."""

    def run(*argv, version=0):
        folder = trained / f"checkpoints/version_{version}"
        assert evaluate.main(["--ckpt", str(folder), "--device", "cpu", *argv]) == 0
        path = trained / f"Inference/version_{version}/metrics.json"
        return capsys.readouterr().out, json.loads(path.read_text())

    return run


def test_everything_is_measured_printed_and_kept(measure, trained):
    out, found = measure("--num", "300", "--samplers", "ddim:3,dpmpp:2")
    assert {"scores", "memorisation", "held_out", "bits_per_dim", "environment"} <= found.keys()
    rows = found["scores"]
    assert list(rows) == ["ddpm:5", "ddim:3", "dpmpp:2", "real train images", "real test images"]
    calls = [rows[name]["calls"] for name in ("ddpm:5", "ddim:3", "dpmpp:2")]
    assert calls == [5 + 3, 3 + 2, 2 + 1]  # guided steps, 0.3 T <= t <= 0.8 T, have two
    for name in ("fid_classifier@300", "precision@300", "recall@300", "accuracy@300"):
        assert all(math.isfinite(row[name]) for row in rows.values())
        assert name in out
    # Twelve steps of training: far from real images, which are near to each other.
    assert rows["ddpm:5"]["fid_classifier@300"] > 5 * rows["real test images"]["fid_classifier@300"]
    assert sum(found["class_shares"]["real test images"]) == pytest.approx(1)
    assert list(found["bits_per_dim"]) == ["50 steps", "5 steps"]
    for chain in found["bits_per_dim"].values():
        for parts in chain.values():
            assert parts["prior"] + parts["kl"] + parts["decoder"] == pytest.approx(parts["total"])
        assert chain["optimal"]["total"] < min(chain[k]["total"] for k in ("beta", "posterior"))
    assert found["memorisation"]["verdict"] in out
    picture = Image.open(trained / "Inference/version_0/nearest_pairs.png")
    assert picture.size == (8 * 30 + 2, 2 * 30 + 2)


def test_the_same_again_is_the_same_and_the_classifier_is_kept(measure, trained):
    kept = list((trained / "classifiers").iterdir())
    before = [path.read_bytes() for path in kept]
    flags = ("--num", "260", "--only", "scores")
    _, first = measure(*flags)
    _, batched = measure(*flags, "--batch-size", "37")
    _, other = measure(*flags, "--seed", "1")
    fid = [found["scores"]["ddpm:5"]["fid_classifier@260"] for found in (first, batched, other)]
    assert fid[0] == pytest.approx(fid[1], rel=1e-3)
    assert fid[0] != pytest.approx(fid[2], rel=1e-3)  # control
    assert [path.read_bytes() for path in kept] == before


def test_what_does_not_apply_is_said_with_the_reason(measure):
    out, found = measure("--num", "40", "--only", "scores", version=1)
    assert "no fid_classifier: 40 samples" in out
    assert "no accuracy: the network was trained without classes" in out
    assert found["scores"]["ddpm:5"].keys() == {
        "steps", "calls", "s/1000", "precision@40", "recall@40"
    }  # fmt: skip
    out, _ = measure("--num", "300", "--only", "scores")
    assert "no " not in out.split("Share of each class")[1]  # control


def test_of_a_copy_elsewhere_everything_is_beside_it(trained, tmp_path):
    original = next((trained / "checkpoints/version_0").iterdir())
    copy = shutil.copy(original, tmp_path / "mine.pt")
    flags = ["--ckpt", str(copy), "--device", "cpu", "--num", "20"]
    assert evaluate.main([*flags, "--only", "scores,memory"]) == 0
    assert sample.main(flags) == 0
    names = {path.name.split("_")[0] for path in tmp_path.iterdir()}
    assert names == {"mine.pt", "metrics.json", "classifiers", "nearest", "samples"}


def test_a_part_can_be_measured_alone(measure):
    _, found = measure("--only", "held-out")
    assert "held_out" in found
    assert not found.keys() & {"scores", "memorisation", "bits_per_dim"}
    assert len(found["held_out"]) == bound.BANDS + 1


def test_all_terms_agree_with_those_drawn(measure):
    _, drawn = measure("--only", "bits", version=1)
    _, every = measure("--only", "bits", "--all-terms", version=1)
    assert list(every["bits_per_dim"]) == ["49 steps", "5 steps"]
    a, b = (found["bits_per_dim"]["49 steps"]["posterior"] for found in (drawn, every))
    assert a["total"] == pytest.approx(b["total"], abs=4 * math.hypot(a["se"], b["se"]))


@pytest.mark.parametrize(
    "argv",
    [
        ["--num", "0"],
        ["--steps", "51"],
        ["--only", "score"],
        ["--samplers", "ddpm"],
        ["--samplers", "heun:3"],
        ["--samplers", "ddim:51"],
        ["--samplers", "ddim:5", "--only", "memory"],
        ["--all-terms", "--only", "scores,memory"],
        ["--sampler", "ddim", "--variance", "beta"],
        ["--device", "cuda:99"],
        ["--ckpt", "nowhere"],
        ["--dataset", "digits"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_code_2(trained, capsys, argv):
    try:
        code = evaluate.main(["--ckpt", str(trained / "checkpoints/version_0"), *argv])
    except SystemExit as e:
        code = e.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: error: ")
    assert error.count("\n") == 1


def test_other_images_than_those_trained_on_are_refused(trained, capsys, monkeypatch):
    monkeypatch.setitem(SIZES, True, 699)
    assert evaluate.main(["--ckpt", str(trained / "checkpoints/version_0")]) == 2
    assert "not those this run was trained on" in capsys.readouterr().err


def test_the_optimal_variance_comes_with_the_checkpoint(trained, tmp_path, capsys):
    flags = ["--num", "2", "--variance", "optimal", "--out", str(tmp_path / "out")]
    path = checkpoint.find(str(trained / "checkpoints/version_0"), trained)
    assert sample.main(["--ckpt", str(path), *flags]) == 0
    state = checkpoint.load(path)
    assert state["x0_error"].shape == (51,)
    for lacking in (["--no-clip"], []):
        if not lacking:
            path = tmp_path / "old.pt"
            checkpoint.save(path, {k: v for k, v in state.items() if k != "x0_error"})
        assert sample.main(["--ckpt", str(path), *flags, "--overwrite", *lacking]) == 2
        assert "lacks the network's errors" in capsys.readouterr().err


def photos(start, stop, train=True):
    """These drawn digits."""
    return Photos(*drawn(train, 1300 if train else 200))[torch.arange(start, stop)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A judge of 1,000 digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "STEPS", 40)
        path = tmp_path_factory.mktemp("judge") / "digits.pt"
        return judge_of(photos(0, 1000), photos(0, 200, train=False), 10, path)


def test_the_judge_learns_and_its_training_is_repeatable(reader, tmp_path, monkeypatch):
    assert reader.accuracy > 0.25  # of ten classes
    monkeypatch.setattr(judge, "STEPS", 5)
    some = photos(0, 300), photos(0, 100, train=False)
    first, second = (judge_of(*some, 10, tmp_path / f"{name}.pt") for name in "ab")
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    again = judge_of(*some, 10, tmp_path / "a.pt")
    assert "from" in again.source
    assert torch.equal(again.read(some[0].images)[0], first.read(some[0].images)[0])


def test_a_damaged_classifier_is_trained_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(judge, "STEPS", 5)
    some, path = (photos(0, 300), photos(0, 100, train=False)), tmp_path / "a.pt"
    judge_of(*some, 10, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "trained" in judge_of(*some, 10, path).source
    assert "damaged" in capsys.readouterr().out
    checkpoint.load(path, judge.KIND, ())
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(path)  # a classifier is not taken for a run's checkpoint


def test_shifts_reach_two_pixels_each_way_and_keep_the_size():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    seen = {tuple((shifted(x, key)[0, 0] == 1).nonzero()[0].tolist()) for key in range(25)}
    assert seen == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_any_size_and_colour_can_be_classified():
    for channels, side in ((1, 8), (3, 17), (3, 64)):
        model = Classifier(channels, 3)
        assert model(torch.zeros(2, channels, side, side)).shape == (2, 3)
        assert model.features(torch.zeros(2, channels, side, side)).shape == (2, 128)


@pytest.fixture(scope="module")
def train_read(reader):
    return Read.by(reader, photos(0, 1000))


def test_copies_of_training_images_are_found_out(reader, train_read):
    test, fresh = (
        Read.by(reader, some) for some in (photos(0, 200, train=False), photos(1000, 1300))
    )
    found, _ = memorisation(fresh, train_read, test)
    assert found["verdict"] == "no sign of memorisation"
    hundred = photos(0, 1000)[torch.arange(300) % 100]
    noise = torch.randint(-6, 7, hundred.images.shape, generator=torch.Generator().manual_seed(0))
    copied = (hundred.images + noise).clamp(0, 255).to(torch.uint8)
    found, picture = memorisation(Read.by(reader, Photos(copied, hundred.labels)), train_read, test)
    assert found["verdict"] == "copies training images"
    above, below = picture[:, 2:30].float(), picture[:, 32:60].float()
    assert (above - below).abs().mean() < 6  # every sample above its original
    assert (above - below.roll(30, dims=2)).abs().mean() > 20  # control


def learnt_by_heart(images, n=300, steps=20):
    """n samples of the network that minimises the loss on these images alone."""
    settings = ("cosine", 1000, (), "x0", False, "simple", 1)
    diffusion = make_diffusion(*settings)
    known = images.flatten(1).float() / 127.5 - 1

    def network(x, t):
        """Their mean given x_t: weights are the densities of x_t around each of them."""
        signal = diffusion.alpha_bar[t][:, None]
        apart = x.flatten(1)[:, None] - signal[..., None].sqrt() * known
        near = -apart.square().sum(-1) / (2 * (1 - signal))
        return (near.double().softmax(1).float() @ known).view_as(x)

    randn = image_noise(0, range(n), images.shape[1:], torch.device("cpu"))
    x_0 = last(ddpm(network, diffusion, randn(), steps, randn))
    return Photos(to_uint8(x_0), torch.zeros(n))


def test_a_network_that_learnt_a_hundred_images_by_heart_is_found_out(reader, train_read):
    """The same network of images outside the training set is the control."""
    test = Read.by(reader, photos(0, 200, train=False))
    for start, expected in ((0, "copies training images"), (1000, "no sign of memorisation")):
        samples = learnt_by_heart(photos(start, start + 100).images)
        found, _ = memorisation(Read.by(reader, samples), train_read, test)
        assert found["verdict"] == expected


def test_few_samples_have_few_pairs(reader, train_read):
    some = Read.by(reader, photos(1000, 1003))
    _, picture = memorisation(some, train_read, Read.by(reader, photos(0, 200, train=False)))
    assert picture.shape[1:] == (2 * 30 + 2, 3 * 30 + 2)


def test_damaged_images_score_worse(reader, train_read):
    fresh = photos(1000, 1300)
    noise = torch.randint(0, 2, fresh.images.shape, generator=torch.Generator().manual_seed(0))
    damaged = Photos(fresh.images.bitwise_or((100 * noise).to(torch.uint8)), fresh.labels)
    good, bad = (score(Read.by(reader, some), train_read, True) for some in (fresh, damaged))
    assert good["fid_classifier@300"] < bad["fid_classifier@300"] / 10
    assert good["precision@300"] > bad["precision@300"]
    assert good["accuracy@300"] > bad["accuracy@300"]
