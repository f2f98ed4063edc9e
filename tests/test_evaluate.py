"""Evaluation from the command line, on drawn digits and with a network of a few steps."""

import functools
import json
import math
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults import opener
from PIL import Image

import evaluate
import sample
from data import DATASETS
from data.digits import draw_digits
from diffusion import Sampler, last, make_diffusion, uniform_grid
from diffusion.samplers import ddpm
from evaluation import features, likelihood
from evaluation.features import LabeledImages, load_or_train, shifted
from evaluation.floor import Reference
from evaluation.likelihood import BY_BAND, CODERS
from evaluation.memorization import memorization
from evaluation.scores import score
from evaluation.tasks import of_classes
from models import Classifier
from utils import checkpoint, progress
from utils.checkpoint import CheckpointError
from utils.images import to_uint8
from utils.pytree import digest
from utils.seeding import image_noise

pytest_plugins = "trained"
pytestmark = pytest.mark.usefixtures("few_drawn")
drawn = functools.cache(draw_digits)
CLASSES = of_classes(tuple("0123456789"))


@pytest.fixture
def measure(trained, capsys):
    """Evaluate with these flags; what was printed, and metrics.json."""

    def run(*argv, version=0):
        folder = trained / f"checkpoints/version_{version}"
        path = trained / f"Inference/version_{version}/metrics.json"
        path.unlink(missing_ok=True)
        assert evaluate.main(["--ckpt", str(folder), "--device", "cpu", *argv]) == 0
        return capsys.readouterr().out, json.loads(path.read_text())

    return run


@pytest.fixture
def bars(monkeypatch) -> list[tuple[str, int, int | None]]:
    """Of every progress bar that has ended: its title, what it counted, and what there was."""
    seen, leave = [], progress.Progress.__exit__

    def note(bar, *error):
        seen.append((bar.title, bar.n, bar.total))
        return leave(bar, *error)

    monkeypatch.setattr(progress.Progress, "__exit__", note)
    return seen


def test_everything_is_measured_counted_printed_and_kept(measure, trained, bars):
    out, found = measure("--num", "300", "--guidance", "1")
    assert {title for title, _, _ in bars} >= {
        "sampling", "features", "scoring samples", "scoring real images",
        "nearest training images", "held-out loss", "bits per dimension",
    }  # fmt: skip
    assert all(n == total for _, n, total in bars)
    assert found.keys() == {"scores", "memorization", "held_out", "bits_per_dim"}
    rows = found["scores"]["rows"]
    assert list(rows) == ["ddpm:5", "real train images", "real test images"]
    for name in ("fid_classifier", "kid_classifier", "precision", "recall", "accuracy"):
        assert all(math.isfinite(row[f"{name}@300"]) for row in list(rows.values())[:2])
        assert f"{name}@300" in out
    # Twelve steps of training: far from real images, which are near to each other.
    floor = rows["real train images"]["fid_classifier@300"]
    assert rows["ddpm:5"]["fid_classifier@300"] > 5 * floor
    assert sum(found["scores"]["class_shares"]["real test images"]) == pytest.approx(1)
    bits = found["bits_per_dim"]
    assert list(bits) == ["of", "50 steps", "5 steps", BY_BAND, CODERS]
    assert bits[BY_BAND]["all"]["total"] == pytest.approx(bits["50 steps"]["posterior"]["total"])
    assert all(0 < row["total"] < 8 for row in bits[CODERS].values())
    for chain in (bits["50 steps"], bits["5 steps"]):
        for parts in chain.values():
            assert parts["prior"] + parts["kl"] + parts["decoder"] == pytest.approx(parts["total"])
        assert chain["optimal"]["total"] < min(chain[k]["total"] for k in ("beta", "posterior"))
    assert found["memorization"]["verdict"] in out
    picture = Image.open(trained / "Inference/version_0/nearest_pairs.png")
    assert picture.size == (8 * 30 + 2, 2 * 30 + 2)


def test_other_samplers_stand_beside_the_first_with_their_cost(measure):
    out, found = measure("--num", "40", "--samplers", "ddim:3,dpmpp:2", "--only", "scores")
    rows = found["scores"]["rows"]
    assert list(rows) == ["ddpm:5", "ddim:3", "dpmpp:2", "real train images", "real test images"]
    assert all(name in out for name in rows)
    evaluations = [rows[name]["nfe"] for name in ("ddpm:5", "ddim:3", "dpmpp:2")]
    assert evaluations == [5 + 3, 3 + 2, 2 + 1]  # guided steps, 0.3 T <= t <= 0.8 T, have two


def test_the_same_again_is_the_same_and_the_classifier_is_kept(measure, trained):
    kept = list((trained / "classifiers").iterdir())
    before = [path.read_bytes() for path in kept]
    flags = ("--num", "260", "--only", "scores", "--steps", "2")
    _, first = measure(*flags)
    _, batched = measure(*flags, "--batch-size", "37")
    _, other = measure(*flags, "--seed", "1")
    rows = [found["scores"]["rows"]["ddpm:2"] for found in (first, batched, other)]
    fid = [row["fid_classifier@260"] for row in rows]
    assert fid[0] == pytest.approx(fid[1], rel=1e-3)
    assert fid[0] != pytest.approx(fid[2], rel=1e-3)  # control
    assert [path.read_bytes() for path in kept] == before


def test_what_does_not_apply_is_said_with_the_reason(measure):
    out, found = measure("--num", "40", "--only", "scores", version=1)
    assert "no fid_classifier: 40 samples" in out
    assert "no accuracy: the network was trained without classes" in out
    assert "no kid_classifier: 40 samples" in out
    assert found["scores"]["rows"]["ddpm:5"].keys() == {
        "steps", "nfe", "s/1000", "precision@40", "recall@40"
    }  # fmt: skip
    out, _ = measure("--num", "300", "--only", "scores", "--steps", "1")
    assert "\nno " not in out.split("Share of each class")[1]  # control


def test_of_a_copy_elsewhere_everything_is_beside_it(trained, tmp_path, capsys):
    original = next((trained / "checkpoints/version_0").iterdir())
    copy = shutil.copy(original, tmp_path / "mine.pt")
    shutil.copytree(trained / "classifiers", tmp_path / "classifiers")
    flags = ["--ckpt", str(copy), "--device", "cpu", "--num", "20"]
    assert evaluate.main([*flags, "--only", "scores,memory"]) == 0
    assert f"loaded from {tmp_path / 'classifiers'}" in capsys.readouterr().out
    assert sample.main(flags) == 0
    names = {path.name.split("_")[0] for path in tmp_path.iterdir()}
    assert names == {"mine.pt", "metrics.json", "classifiers", "nearest", "samples"}


def test_a_place_that_the_extractor_cannot_have_is_found_out_before_any_work(
    trained, tmp_path, monkeypatch, capsys
):
    """Of a checkpoint whose errors of x_0, which take minutes, are not measured yet."""
    root = shutil.copytree(trained, tmp_path / "root")
    shutil.rmtree(root / "classifiers")
    (root / "classifiers").write_text("")  # in its way
    path = next((root / "checkpoints/version_0").iterdir())
    checkpoint.save(path, {**checkpoint.load(path), "x0_error": None})

    def measure(*_) -> None:
        raise KeyError("that is work")

    monkeypatch.setattr(likelihood, "measured_x0_error", measure)
    flags = ["--ckpt", str(path), "--run-root", str(root), "--device", "cpu", "--num", "20"]
    assert evaluate.main([*flags, "--only", "scores,bits"]) == 2
    assert f"cannot write to {root / 'classifiers'}: " in capsys.readouterr().err
    with pytest.raises(KeyError, match="work"):  # control: which trains no extractor
        evaluate.main([*flags, "--only", "bits"])


def test_the_report_alone_is_written_without_measuring(measure, trained, monkeypatch, capsys):
    _, found = measure("--only", "held-out")
    ckpt, logs = trained / "checkpoints/version_0", trained / "Inference/version_0"
    (logs / "report.html").unlink()
    monkeypatch.setattr(evaluate, "load_run_data", None)  # no images are needed
    argv = ["--ckpt", str(ckpt), "--device", "cpu", "--only"]
    assert evaluate.main([*argv, "report"]) == 0
    assert capsys.readouterr().out.strip() == str(logs / "report.html")
    assert "Held-out loss by t" in (logs / "report.html").read_text()
    assert json.loads((logs / "metrics.json").read_text()) == found
    assert evaluate.main([*argv, "report", "--samplers", "ddim:3"]) == 2
    assert "--samplers has no effect on --only report" in capsys.readouterr().err


def test_a_part_can_be_measured_alone(measure):
    _, found = measure("--only", "held-out")
    assert "held_out" in found
    assert not found.keys() & {"scores", "memorization", "bits_per_dim"}
    assert len(found["held_out"]) == likelihood.BANDS + 1 + len(["of"])


def test_a_part_measured_later_stands_beside_the_first(measure, trained, capsys):
    _, first = measure("--only", "held-out")
    flags = ["--num", "4", "--steps", "1", "--only", "scores", "--device", "cpu"]
    assert evaluate.main(["--ckpt", str(trained / "checkpoints/version_0"), *flags]) == 0
    both = json.loads((trained / "Inference/version_0/metrics.json").read_text())
    assert both.keys() == {"held_out", "scores"}
    assert both["held_out"] == first["held_out"]
    assert [own["of"]["num"] for own in both.values()] == [5000, 4]
    assert [own["of"]["sample"]["steps"] for own in both.values()] == [5, 1]
    assert "kept: held_out (of step 12)" in capsys.readouterr().out


def test_a_report_is_written_after_the_metrics(trained, measure):
    logs = trained / "Inference/version_0"
    (logs / "report.html").unlink()  # that of the training
    measure("--only", "held-out")
    assert not (logs / "report.html").exists()  # control
    out, found = measure("--only", "held-out", "--report")
    assert out.splitlines()[-1] == str(logs / "report.html")
    page = (logs / "report.html").read_text(encoding="utf-8")
    assert f"{found['held_out']['all']['loss']:.4g}" in page


def test_a_report_needs_the_folder_of_a_run(trained, tmp_path, capsys):
    original = checkpoint.find("version_0", trained)
    copy = shutil.copy(original, tmp_path / "mine.pt")
    for argv in (["--ckpt", str(copy)], ["--ckpt", str(original), "--out", str(tmp_path / "out")]):
        assert evaluate.main([*argv, "--report", "--only", "held-out"]) == 2
        assert "--report" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt"]


def test_inception_features_stand_beside_those_of_the_classifier(extractor):
    """Of a network that stands for it: its distances have columns of their own."""
    images = digits(0, 200)
    e = SimpleNamespace(inception=lambda images: images.flatten(1)[:, 300:303].float())
    found = evaluate.extract(e, extractor, images)
    assert found[:50].inception.shape == (50, 3)
    row = score(found[:100], Reference(found.spaces, found[100:]), True)
    assert {"fid_inception@100", "kid_inception@100", "kid_classifier@100"} <= row.keys()
    alone = evaluate.extract(SimpleNamespace(inception=None), extractor, images)  # control
    assert alone.spaces.keys() == {"classifier"}


@pytest.mark.slow
def test_all_terms_agree_with_those_sampled(trained):
    model = sample.load(trained / "checkpoints/version_1", device="cpu")
    sampler = Sampler(**asdict(model.config.sample))
    train, test = LabeledImages(*drawn(True, 32)), LabeledImages(*drawn(False, 40))
    some, every = (
        likelihood.bits_per_dim(model, sampler, train, test, all_terms)
        for all_terms in (False, True)
    )
    assert list(every) == ["49 steps", "5 steps", BY_BAND, CODERS]
    a, b = (found["49 steps"]["posterior"] for found in (some, every))
    assert a["kl"] != b["kl"]
    assert a["total"] == pytest.approx(b["total"], abs=4 * math.hypot(a["se"], b["se"]))
    flags = ["--ckpt", str(trained / "checkpoints/version_1"), "--only", "bits"]
    assert evaluate.parse_args([*flags, "--all-terms"]).all_terms
    assert not evaluate.parse_args(flags).all_terms


@pytest.mark.parametrize(
    "argv",
    [
        ["--only", "score"],
        ["--samplers", "magic:3"],
        ["--samplers", "ddim:51"],
        ["--all-terms", "--only", "scores,memory"],
        ["--dataset", "digits"],
        ["--inception", "nowhere.pth"],
        ["--inception", "nowhere.pth", "--only", "bits"],
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
    other = opener({part: drawn(True, 699) for part in (True, False)})
    monkeypatch.setitem(DATASETS, "digits", other)
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


def digits(start, stop, train=True):
    """These drawn digits."""
    return LabeledImages(*drawn(train, 1300 if train else 200))[start:stop]


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    """Trained for a few steps on 1,000 digits."""
    path = tmp_path_factory.mktemp("classifiers") / "digits.pt"
    return load_or_train(digits(0, 1000), digits(0, 200, train=False), CLASSES, path, 40)


def test_the_feature_extractor_learns_and_its_training_is_repeatable(extractor, tmp_path):
    assert extractor.accuracy > 0.25  # of ten classes
    some = digits(0, 300), digits(0, 100, train=False)
    first, second, longer = (
        load_or_train(*some, CLASSES, tmp_path / f"{name}.pt", steps)
        for name, steps in (("a", 5), ("b", 5), ("c", 6))
    )
    a, b, c = (digest(dict(e.model.state_dict())) for e in (first, second, longer))
    assert a == b
    assert a != c  # control
    again = load_or_train(*some, CLASSES, tmp_path / "a.pt", steps=5)
    assert "loaded from" in again.source
    assert torch.equal(again.extract(some[0]).features, first.extract(some[0]).features)


def test_a_damaged_classifier_is_trained_anew(tmp_path, capsys):
    some, path = (digits(0, 300), digits(0, 100, train=False)), tmp_path / "a.pt"
    load_or_train(*some, CLASSES, path, steps=5)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "trained" in load_or_train(*some, CLASSES, path, steps=5).source
    assert "damaged" in capsys.readouterr().out
    checkpoint.load(path, features.KIND, ())
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
def train_set(extractor):
    return extractor.extract(digits(0, 1000))


@pytest.fixture(scope="module")
def test_set(extractor):
    return extractor.extract(digits(0, 200, train=False))


def test_copies_of_training_images_are_recognized(extractor, train_set, test_set, tmp_path):
    others, picture = digits(1000, 1300), tmp_path / "pairs.png"
    found = memorization(extractor.extract(others), train_set, test_set, picture)
    assert found["verdict"] == "no sign of memorization"
    hundred = digits(0, 1000)[torch.arange(300) % 100]
    noise = torch.randint(-6, 7, hundred.images.shape, generator=torch.Generator().manual_seed(0))
    copied = LabeledImages((hundred.images + noise).clamp(0, 255).to(torch.uint8), hundred.labels)
    found = memorization(extractor.extract(copied), train_set, test_set, picture)
    assert found["verdict"] == "copies training images"
    pairs = torch.from_numpy(np.array(Image.open(picture))).float()
    above, below = pairs[2:30], pairs[32:60]
    assert (above - below).abs().mean() < 6  # every sample above its original
    assert (above - below.roll(30, dims=1)).abs().mean() > 20  # control


def memorized(images, n=120, steps=20):
    """n samples of the network that minimises the loss on these images alone."""
    diffusion = make_diffusion("cosine", 1000, prediction="x0")
    known = images.flatten(1).float() / 127.5 - 1

    def network(x, t):
        """Their mean given x_t: weights are the densities of x_t around each of them."""
        signal = diffusion.alpha_bar[t][:, None]
        apart = x.flatten(1)[:, None] - signal[..., None].sqrt() * known
        near = -apart.square().sum(-1) / (2 * (1 - signal))
        return (near.double().softmax(1).float() @ known).view_as(x)

    randn = image_noise(0, range(n), images.shape[1:], torch.device("cpu"))
    x_0 = last(ddpm(network, diffusion, randn(), uniform_grid(diffusion, steps), randn))
    return LabeledImages(to_uint8(x_0), torch.zeros(n))


def test_a_network_that_memorized_a_hundred_images_is_recognized(
    extractor, train_set, test_set, tmp_path
):
    """The same network of images outside the training set is the control."""
    for start, expected in ((0, "copies training images"), (1000, "no sign of memorization")):
        samples = extractor.extract(memorized(digits(start, start + 100).images))
        assert (
            memorization(samples, train_set, test_set, tmp_path / "pairs.png")["verdict"]
            == expected
        )


def test_few_samples_have_few_pairs(extractor, train_set, test_set, tmp_path):
    memorization(extractor.extract(digits(1000, 1003)), train_set, test_set, tmp_path / "pairs.png")
    assert Image.open(tmp_path / "pairs.png").size == (3 * 30 + 2, 2 * 30 + 2)


def test_damaged_images_score_worse(extractor, train_set):
    others = digits(1000, 1300)
    noise = torch.randint(0, 2, others.images.shape, generator=torch.Generator().manual_seed(0))
    bright = others.images.bitwise_or((100 * noise).to(torch.uint8))
    damaged = LabeledImages(bright, others.labels)
    reference = Reference(train_set.spaces, train_set[500:])
    good, bad = (score(extractor.extract(some), reference, True) for some in (others, damaged))
    assert good["fid_classifier@300"] < bad["fid_classifier@300"] / 10
    assert good["kid_classifier@300"] < bad["kid_classifier@300"] / 10
    assert good["precision@300"] > bad["precision@300"]
    assert good["accuracy@300"] > bad["accuracy@300"]
