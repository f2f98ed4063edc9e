"""Runs beside each other: what differs is shown, what does not compare is said."""

import json

import pytest
from PIL import Image
from run_folders import FLOOR, change, validation, write_history, write_run

import evaluate
from evaluation.charts import COLOURS
from evaluation.compare import differing_settings, ends, evaluations, notes, read_runs

A, B = "first (version_0)", "version_1"


@pytest.fixture
def root(tmp_path):
    """With two runs of different learning rates."""
    write_run(tmp_path, 0, "first", lr=0.5)
    write_run(tmp_path, 1, lr=0.25)
    return tmp_path


@pytest.fixture
def two(root):
    """Read them again, as they are by now."""
    return lambda: read_runs([root / "Inference" / f"version_{number}" for number in (0, 1)])


def test_the_settings_that_differ_are_shown_and_no_others(root, two):
    assert differing_settings(two()) == {"--lr": {A: "0.5", B: "0.25"}}
    change(root / "Inference/version_1/environment.json", gpu="H100", command="train.py")
    assert list(differing_settings(two())) == ["--lr", "gpu"]
    (root / "Inference/version_1/config.json").unlink()
    assert differing_settings(two())["--lr"] == {A: "0.5", B: "-"}
    assert "--seed" in differing_settings(two())


def test_what_does_not_compare_is_said_with_the_reason(root, two):
    assert notes(two()) == []
    config = root / "Inference/version_1/config.json"
    own = json.loads(config.read_text())
    change(config, diffusion=own["diffusion"] | {"loss": "kl"})
    assert len(notes(two())) == 1
    assert "Held-out losses" in notes(two())[0]
    assert "(--loss)" in notes(two())[0]
    change(config, data=own["data"] | {"classes": ["3", "8"], "data_root": "elsewhere"})
    change(root / "Inference/version_1/environment.json", gpu="H100")
    assert [line.split()[0] for line in notes(two())] == ["Trained", "Held-out", "Trained"]
    assert "(--classes)" in notes(two())[0]
    for number in (0, 1):
        path = root / f"Inference/version_{number}/config.json"
        own = json.loads(path.read_text())["data"]
        change(path, data=own | {"dataset": "folder"})
    assert (
        "(--classes, --data-root)" in notes(two())[0]
    )  # of own images it is what tells them apart
    config.unlink()
    assert len(notes(two())) == 1  # of the machines alone: nothing is known of the settings


def test_the_ends_are_those_of_the_histories(root, two):
    write_history(root / "Inference/version_1", [validation(100), validation(50) | {"step": 150}])
    rows = ends(two())
    assert rows["steps"] == {A: 400, B: 150}
    assert rows["minutes"] == {A: 100 / 60, B: 12.5 / 60}
    assert rows["held-out loss"][A] == validation(400)["held_out"]
    assert rows["best held-out loss"][B] == validation(100)["held_out"]
    assert rows["at step"][B] == 100
    assert rows["precision"] == {A: 0.75}  # the other was not scored


def test_floors_stand_once_where_they_are_the_same(root, two):
    name = "real train images"
    rows = evaluations(two())
    assert list(rows) == [f"{A}, ddpm:12", f"{B}, ddpm:12", name]
    assert rows[name] == FLOOR | {"fid_classifier@600": "0.25 ± 0.031"}
    path = root / "Inference/version_1/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["scores"]["rows"][name] = {"fid_classifier@600": 0.5}
    change(path, **metrics)
    assert list(evaluations(two()))[2:] == [f"{A}, {name}", f"{B}, {name}"]


def compare(root, *words: str) -> int:
    """The exit code of evaluate.py."""
    try:
        return evaluate.main(["--compare", *words, "--run-root", str(root)])
    except SystemExit as e:
        return e.code


def test_tables_a_picture_and_markdown_are_written(root, capsys):
    folder = root / "comparisons" / "first_vs_version_1"
    for words in (["first", "1"], ["version_0", str(root / "checkpoints/version_1")]):
        (root / "checkpoints/version_1").mkdir(parents=True, exist_ok=True)
        assert compare(root, *words) == 0  # again: what it wrote itself is replaced
    out = capsys.readouterr().out
    text = (folder / "comparison.md").read_text()
    for word in ("--lr", "0.25", "held-out loss", "0.25 ± 0.031", "minutes"):
        assert word in out
        assert word in text
    assert "](comparison.png)" in text
    assert out.splitlines()[-1] == str(folder / "comparison.md")
    picture = Image.open(folder / "comparison.png")
    colours = {colour for _, colour in picture.getcolors(2**20)}
    for colour in COLOURS[:2]:
        assert tuple(bytes.fromhex(colour[1:])) in colours
    assert tuple(bytes.fromhex(COLOURS[2][1:])) not in colours  # control
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.md", "comparison.png"]


def test_two_roots_may_have_the_same_version(root, tmp_path_factory, capsys):
    other = write_run(tmp_path_factory.mktemp("other"), 1, lr=0.125)
    assert compare(root, "1", str(other), "--out", str(root / "out")) == 0
    assert str(other) in capsys.readouterr().out
    assert (root / "out" / "comparison.md").is_file()


BAD = {
    "first": "two runs or more",
    "first version_0": "each of them once",
    "first nobody": "no run nobody",
    "first 2": "has no history.jsonl",
    "same 0": "is the name of version_3, version_4",
    "0 1 --num 3": "--num: no effect on --compare",
    "0 1 --steps 3 --report": "--report, --steps: no effect on --compare",
    "0 1 --ckpt latest": "not allowed with",
    "0 1 --out {root}/Inference/version_0/run.json": "cannot write to",
    f"0 {'x' * 300}": "no run xxx",
}


@pytest.mark.parametrize("words", BAD, ids=[words[:30] for words in BAD])
def test_bad_input_is_one_line_and_exit_code_2(root, capsys, words):
    (write_run(root, 2) / "history.jsonl").unlink()
    for number in (3, 4):
        write_run(root, number, "same")
    before = sorted(root.rglob("*"))
    assert compare(root, *words.format(root=root).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: error: ")
    assert error.count("\n") == 1
    assert BAD[words] in error
    assert sorted(root.rglob("*")) == before


def test_runs_without_any_curve_are_refused(root, capsys):
    for number in (0, 1):
        write_history(root / f"Inference/version_{number}", [{"step": 1, "seconds": 2}])
    assert compare(root, "0", "1") == 2
    assert "neither losses nor scores" in capsys.readouterr().err
    assert not (root / "comparisons").exists()
