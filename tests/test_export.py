"""Exported models: the same images here, and a program that runs without this repository."""

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_folders import write_run

import sample
import training.export
from config import Config
from evaluation.model_card import EVALUATE, model_card
from evaluation.run_folder import RunFolder
from sample import TrainedModel, load
from training.build import build
from training.export import Denoiser, description, exported_files, without_paths
from training.pretrained import find_pretrained
from training.resume import find_checkpoint
from training.trained import open_checkpoint
from utils import exported as files
from utils.checkpoint import CheckpointError
from utils.pytree import digest

pytest_plugins = "trained"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
NAMES = {WEIGHTS, CONFIG, "README.md", "denoiser.pt2", "generate.py", "grid.png"}
SIZES = (1, 3, 7)
SCALE = 50.0  # of guidance: after a few steps of training classes differ little
# In a process without the repository: the loader as a program, and what it holds as a module.
ELSEWHERE = """
import importlib.util, os, runpy, sys, torch
assert not any(map(importlib.util.find_spec, ("config", "models", "diffusion", "training")))
folder, path = sys.argv[1:]
loader = runpy.run_path(os.path.join(folder, "generate.py"), run_name="__main__")
given = torch.load(path)
at = [[own[:n] for own in given["at"]] for n in given["sizes"]]
given["x_0"] = [loader["denoiser"](*own) for own in at]
given["drawn"] = loader["sample"](*given["from"], scale=given["scale"])
torch.save(given, path)
"""


def export(*argv: object) -> int:
    """The exit code of sample.py on the CPU."""
    return sample.main([*map(str, argv), "--device", "cpu"])


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """The folder of the exported conditional run, without scores that other tests measured."""
    where = tmp_path_factory.mktemp("exported")
    folder, root = where / "model", where / "runs"
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("metrics.json"))
    flags = ["--ckpt", root / "checkpoints/version_0", "--num", 12]
    assert export(*flags, "--export", folder) == 0
    return folder


@pytest.fixture(scope="module")
def elsewhere(exported, model, tmp_path_factory) -> dict:
    """Inputs, and what a process in an empty folder computes from them."""
    where, empty = tmp_path_factory.mktemp("given") / "given.pt", tmp_path_factory.mktemp("empty")
    x_T = torch.randn(max(SIZES), *model.image_shape, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(2, model.diffusion.timesteps, len(x_T)).long()
    y = torch.arange(len(x_T)) + 4  # the last one is no class
    given = {"sizes": SIZES, "at": [x_T, t, y], "from": [x_T, y.clamp(max=9)], "scale": SCALE}
    torch.save(given, where)
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(exported), str(where)]
    subprocess.run(command, cwd=empty, check=True, timeout=120)
    assert os.listdir(empty) == ["images.png"]
    return torch.load(where) | {"picture": empty / "images.png"}


@pytest.fixture
def no_program(monkeypatch) -> None:
    """Exports are cheap."""
    monkeypatch.setattr(training.export, "program", lambda _: b"program")


def check_same_images(folder: Path, original: TrainedModel) -> None:
    """To the bit, from the folder and from the file of its weights."""
    again = load(folder, device="cpu")
    settings = {"num": 6, "seed": 3, "steps": 4}
    expected = original.sample(**settings)
    assert torch.equal(again.sample(**settings), expected)
    assert torch.equal(load(again.path, device="cpu").sample(num=6), original.sample(num=6))
    assert (again.step, again.class_names) == (original.step, original.class_names)
    assert again.config == without_paths(original.config)
    with torch.no_grad():  # the control: a weight that is a bit off
        next(again.network.parameters()).view(-1)[0] *= 1 + 2**-20
    assert not torch.equal(again.sample(**settings), expected)


def test_the_images_are_those_of_the_checkpoint(exported, model):
    check_same_images(exported, model)


@pytest.mark.usefixtures("no_program")
def test_so_are_those_of_a_network_without_classes(trained, tmp_path):
    ckpt, folder = trained / "checkpoints/version_1", tmp_path / "model"
    assert export("--ckpt", ckpt, "--num", 2, "--export", folder) == 0
    check_same_images(folder, load(ckpt, device="cpu"))
    card = (folder / "README.md").read_text()
    assert "| classes | none: unconditional |" in card
    assert "a function (x_t, t) that" in card


def test_the_program_estimates_the_same_without_the_repository(elsewhere, model):
    """In a fresh process, with other numbers of images than it was made with."""
    denoiser = Denoiser(model.network, model.diffusion)
    for n, x_0 in zip(SIZES, elsewhere["x_0"], strict=True):
        x_t, t, y = (own[:n] for own in elsewhere["at"])
        expected = denoiser(x_t, t, y)
        torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-5)
        assert expected.abs().max() > 1  # it is not clipped
        for other in ((x_t, t - 1, y), (x_t, t, y - 1)):  # controls
            assert (x_0 - denoiser(*other)).abs().max() > 2e-5


def test_the_loader_draws_what_ddim_draws(elsewhere, model):
    x_T, labels = elsewhere["from"]
    settings = {"x": x_T, "classes": labels, "sampler": "ddim", "guidance": SCALE}
    drawn, expected = elsewhere["drawn"], model.sample(**settings)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    for other in ({"steps": 4}, {"guidance": 1.0}):  # controls
        assert (drawn - model.sample(**settings | other)).abs().max() > 1e-3
    assert Image.open(elsewhere["picture"]).size == (280, 56)


def test_the_loader_is_short_and_its_own(exported):
    lines = (exported / "generate.py").read_text().splitlines()
    assert len(lines) <= 30
    modules = {line.split()[1] for line in lines if line.startswith(("import", "from"))}
    assert modules == {"json", "pathlib", "torch", "PIL"}


def test_every_kind_of_output_becomes_the_clean_image(model, tmp_path, monkeypatch):
    """Also of colour images, without classes, and where the network has more outputs."""
    own = model.config.override(num_classes=0, channel_multipliers=(1,), attention_levels=())
    own = own.override(image_channels=3, image_size=(4, 8), prediction="x0", norm="group")
    own = own.override(discrete_pixels=True, learn_variance=True, zero_terminal=True, guidance=1.0)
    network, diffusion = build(own)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    parts = {"config": own, "network": network.eval(), "diffusion": diffusion}
    parts |= {"image_shape": own.image_shape, "num_classes": 0, "class_names": ()}
    colours = replace(model, **parts)
    for name, content in exported_files(colours, description(colours, {})).items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    loader = runpy.run_path("generate.py", run_name="__main__")
    assert Image.open("images.png").size == (80, 8)
    x_t, t = torch.randn(3, *own.image_shape), torch.tensor([1, 25, 50])
    expected = diffusion.denoise(network, x_t, t, clip=False)
    torch.testing.assert_close(loader["denoiser"](x_t, t), expected, rtol=0, atol=1e-5)
    assert (loader["denoiser"](x_t, t.flip(0)) - expected).abs().max() > 1e-3  # control
    drawn = colours.sample(x=x_t, sampler="ddim")
    torch.testing.assert_close(loader["sample"](x_t), drawn, rtol=0, atol=1e-4)


def test_what_is_written(exported):
    assert set(os.listdir(exported)) == NAMES
    assert Image.open(exported / "grid.png").format == "PNG"
    about = json.loads((exported / CONFIG).read_text())
    assert (about["format"], about["step"]) == ("ddpm-export", 12)
    card = (exported / "README.md").read_text()
    for words in ("![Samples](grid.png)", "digits: 700 training", "12 steps", "licence", EVALUATE):
        assert words in card
    assert "a function (x_t, t, y) that" in card
    assert "0 ... 9, or 10 for none" in card


def test_paths_of_this_machine_are_left_out(exported, tmp_path):
    about, run = json.loads((exported / CONFIG).read_text()), RunFolder.of(tmp_path)
    config = Config().override(data_root="/home/me/pets", init_from="/home/me/a/step_1.pt")
    shared = without_paths(config)
    assert (shared.data.data_root, shared.train.init_from) == ("pets", "step_1.pt")
    assert "home" in model_card(config, about, 1, "", run)  # control
    assert "home" not in model_card(shared, about, 1, "", run)
    assert without_paths(Config()) == Config()


def test_the_card_has_the_scores_of_these_weights_alone(exported, model, tmp_path):
    run = RunFolder.of(write_run(tmp_path))  # whose scores are of the weights "ab"
    about = json.loads((exported / CONFIG).read_text())
    card = model_card(model.config, about, 40_321, "ab", run)
    assert "| ddpm:12 | 12 | 18 | 1.5 | 0.75 |" in card
    assert "| real train images | - | - | 0.25 ± 0.031 | 0.875 |" in card
    assert "No sign of it." in card
    assert EVALUATE not in card
    assert "pets: 90 training images" in card
    other = model_card(model.config, about, 40_321, "cd", run)
    assert EVALUATE in other
    assert "ddpm:12" not in other


def test_the_same_weights_have_the_same_digest(exported, model):
    """By which metrics.json tells checkpoints apart."""
    opened = [open_checkpoint(own, "none", {}) for own in (exported, model.path)]
    assert len({digest(own.content["ema"]) for own in opened}) == 1


def test_an_export_is_no_run_to_resume_but_one_to_start_from(exported, model):
    taken, own = (
        find_pretrained(str(path), Path("none")).weights for path in (exported, model.path)
    )
    assert digest(dict(sorted(taken.items()))) == digest(dict(sorted(own.items())))
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        find_checkpoint(str(exported), Path("none"))


@pytest.mark.usefixtures("no_program")
def test_typed_settings_are_those_of_the_exported_model(trained, tmp_path):
    ckpt, folder = trained / "checkpoints/version_0", tmp_path / "a/b"
    flags = ["--ckpt", ckpt, "--num", 2, "--sampler", "dpmpp", "--steps", 3]
    assert export(*flags, "--export", folder) == 0
    settings = load(folder, device="cpu").config.sample
    assert (settings.sampler, settings.steps) == ("dpmpp", 3)
    assert export("--ckpt", folder, "--num", 2, "--export", tmp_path / "again") == 0  # of an export
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.usefixtures("no_program")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save", "png"], "--save has no effect on --export"),
        (["--out", "x"], "--out has no effect on --export"),
        (["--export", "full"], "full is not empty"),
        (["--export", "full", "--overwrite"], "full holds no exported model"),
        (["--export", "full/a"], "cannot write to --export full/a"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_exported_is_one_line(trained, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    ckpt = ["--ckpt", trained / "checkpoints/version_0", "--num", 1]
    assert export(*ckpt, "--export", "new", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["full", "full/a"]


@pytest.mark.usefixtures("no_program")
def test_a_failure_leaves_nothing_or_the_earlier_export(trained, tmp_path, monkeypatch, capsys):
    flags = ["--ckpt", trained / "checkpoints/version_0", "--num", 1, "--export", tmp_path / "a/b"]
    with monkeypatch.context() as patch:
        patch.setattr(sample, "generate_with_progress", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(*flags)
        patch.undo()
        patch.setattr(training.export, "program", lambda _: "no bytes")  # the third file
        with pytest.raises(TypeError):
            export(*flags)
    assert list(tmp_path.iterdir()) == []
    assert export(*flags) == 0
    folder = tmp_path / "a/b"
    before = {name: (folder / name).read_bytes() for name in NAMES}
    assert export(*flags, "--seed", 1) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert export(*flags, "--seed", 1, "--overwrite") == 0
    after = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert {name for name in NAMES if before[name] != after[name]} == {"grid.png"}


def flip(path: Path) -> None:
    """One bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"cosine"', '"linear"'))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (WEIGHTS, lambda path: path.write_bytes(path.read_bytes()[:-100]), "no safetensors"),
        (WEIGHTS, lambda path: path.write_bytes(b"\xff" * 100), "no safetensors"),
        (WEIGHTS, lambda path: path.write_bytes(b""), "no safetensors"),
        (WEIGHTS, flip, "does not match its SHA-256"),
        (WEIGHTS, Path.unlink, "no checkpoint step_*.pt"),
        (WEIGHTS, pipe, "not a file"),
        (CONFIG, Path.unlink, "No such file"),
        (CONFIG, pipe, "not a file"),
        (CONFIG, edit, "does not match its SHA-256"),
        (CONFIG, lambda path: path.write_text("{"), "no JSON"),
        (CONFIG, lambda path: path.write_text("[1]"), "no JSON object"),
        (CONFIG, lambda path: path.write_text("{}"), "not a checkpoint of this program"),
        (CONFIG, lambda path: path.write_text("[" * 10**5), "no JSON"),
        (CONFIG, lambda path: path.write_text("[" * 500 + "]" * 500), "no JSON"),
        (CONFIG, lambda path: path.write_bytes(bytes(2**23 + 1)), "is larger than"),
    ],
)
def test_damaged_exports_are_one_line(exported, tmp_path, capsys, name, change, words):
    folder = shutil.copytree(exported, tmp_path / "copy")
    change(folder / name)
    check_refused(folder, capsys, words)


def check_refused(folder: Path, capsys, words: str) -> None:
    """In one line with these words, exit code 2, by sample.py and in Python."""
    assert sample.main(["--ckpt", str(folder), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def weight(content: dict, change) -> None:
    """Change a weight of more than one dimension."""
    name = next(name for name, value in content["ema"].items() if value.dim() > 1)
    content["ema"][name] = change(content["ema"][name])


def configured(section: str, **values: object):
    return lambda content: content["config"][section].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: weight(content, lambda w: w[:1].clone()), "instead of"),
        (lambda content: weight(content, torch.Tensor.double), "instead of float32"),
        (lambda content: weight(content, lambda w: w * math.nan), "is not finite"),
        (lambda content: weight(content, torch.Tensor.half), "no safetensors"),
        (lambda content: content["ema"].popitem(), "is missing"),
        (lambda content: content["ema"].update(colour=torch.zeros(1)), "is unknown"),
        (lambda content: content.update(x0_error=torch.zeros(3)), "x0_error"),
        (lambda content: content.update(config=[1]), "config has another form"),
        (lambda content: content.update(config={"model": 1}), "config has another form"),
        (lambda content: content.update(config={}), "does not fit this program"),
        (lambda content: content.update(step="many"), "step has another form"),
        (lambda content: content.update(data={"class_names": [1]}), "data has another form"),
        (lambda content: content.update(data={"class_names": ["1"]}), "1 class names"),
        (lambda content: content.pop("step"), "lacks step"),
        (configured("model", base_channels=10**400), "number has another form"),
        (configured("model", base_channels=4096), "instead of"),
        (configured("model", channel_multipliers=(1,) * 1000), "too few weights"),
        (configured("model", norm=["layer"]), "must be one of"),
        (configured("data", image_size=(0, 0)), "does not fit"),
        (configured("diffusion", timesteps="x"), "must not be"),
        (configured("diffusion", colour=1), "colour"),
    ],
)
def test_hostile_exports_are_one_line(exported, tmp_path, capsys, change, words):
    """Of other content, with a hash that fits it, as no accident writes them."""
    content = files.load(exported / WEIGHTS)
    change(content)
    for name, data in files.encode(content).items():
        (tmp_path / name).write_bytes(data)
    check_refused(tmp_path, capsys, words)


def test_the_untouched_content_is_taken(exported, model, tmp_path):
    """The control of the test above."""
    content = files.load(exported / WEIGHTS)
    for name, data in files.encode(content).items():
        (tmp_path / name).write_bytes(data)
        assert data == (exported / name).read_bytes()
    expected = model.sample(num=2)
    assert torch.equal(load(tmp_path, device="cpu").sample(num=2), expected)
