"""The script that measures what is promised of a GPU: nothing twice, nothing lost, in time."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("benchmarks.on_gpu", exc_type=ImportError)  # without diffusers

from benchmarks import gpu_report, on_gpu
from benchmarks.gpu_items import ITEMS


@pytest.fixture
def rehearse(tmp_path, capfd):
    """The command, on a CPU: its exit code and what it printed."""
    where = ["--rehearse", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]

    def run(*flags: str) -> tuple[int, str]:
        code = on_gpu.main([*where, *flags])
        return code, capfd.readouterr().out

    return run


def content(tmp_path, name: str) -> dict:
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())


@pytest.mark.slow
def test_an_item_is_measured_once_and_written_at_once(rehearse, tmp_path):
    code, out = rehearse("--only", "fast-recipe")
    assert code == 0
    assert "[1/1] fast-recipe" in out
    found = content(tmp_path, "fast-recipe")
    assert found["found"]["plain"]["median"] > 0
    assert found["hardware"]["gpu"] == "none"
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 10_000
    assert "REHEARSAL" in out
    code, out = rehearse("--only", "fast-recipe")
    assert code == 0
    assert "[1/1]" not in out
    assert content(tmp_path, "fast-recipe") == found
    path = tmp_path / "out" / "fast-recipe.json"
    path.write_text(json.dumps(found | {"rehearsal": False}))
    args = on_gpu.parse(["--rehearse", "--out", str(path.parent)])
    assert not on_gpu.done(args, "fast-recipe")  # control: a rehearsal is not the real thing


@pytest.mark.slow
def test_an_item_that_fails_says_why_and_is_tried_again(rehearse, tmp_path):
    name = "good-mnist-many"  # before good-mnist
    code, out = rehearse("--only", name)
    assert code == 1
    assert f"FAILED: {name}" in out
    assert "no checkpoint" in content(tmp_path, name)["found"]
    code, out = rehearse("--only", name, "--minutes", "0.001")
    assert code == 1
    assert f"[1/1] {name}" in out


def test_the_minutes_are_kept(rehearse, tmp_path):
    code, out = rehearse("--minutes", "0.001")
    assert code == 1
    assert out.count("does not fit") == len(ITEMS)
    assert not (tmp_path / "out").exists()


def test_what_was_begun_is_stopped_with_all_that_it_started(rehearse, tmp_path, monkeypatch):
    """Nothing is written; the next call begins it again."""
    name, pids = "fast-recipe", tmp_path / "pids"
    monkeypatch.setattr(on_gpu.Pace, "seconds", lambda *_: 0.0)
    script = "import os, subprocess, time; p = subprocess.Popen(['sleep', '60']); "
    script += f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{p.pid}}'); time.sleep(60)"
    monkeypatch.setattr(on_gpu, "command_of", lambda *_: [sys.executable, "-c", script])
    code, out = rehearse("--only", name, "--minutes", "0.05")
    assert code == 1
    assert "stopped: the minutes are over" in out
    assert not (tmp_path / "out" / f"{name}.json").exists()
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            alive(int(pid))


def alive(pid: int) -> None:
    """ProcessLookupError where it is not, or only its entry is left."""
    os.kill(pid, 0)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    if state.stdout.startswith("Z") or not state.stdout:
        raise ProcessLookupError


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--only", "quick"], "no item begins with 'quick'"),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--device", "cuda:99"], "CUDA devices"),
    ],
)
def test_nonsense_is_one_line(flags, line, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        on_gpu.main([*flags, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_aim_is_met_missed_or_not_done():
    aim = gpu_report.Aim("speed", lambda found: found["item"]["its"], 60)
    assert aim.row({"item": {"its": 61}}) == "61 | yes"
    assert aim.row({"item": {"its": 59}}) == "59 | NO"
    assert aim.row({}) == "item is not done | "
    most = gpu_report.Aim("seconds", lambda found: found["item"]["its"], 60, most=True)
    assert most.row({"item": {"its": 61}}) == "61 | NO"


def with_graphs(**gains: float) -> dict:
    """What the items of speed found, where CUDA graphs gain so much."""
    rate = {"ours": {"median": 10.0}}
    found = {f"fast-{preset}-compiled": rate for preset in gains}
    return found | {f"fast-{p}-graphs": {"ours": {"median": 10 * g}} for p, g in gains.items()}


def test_cuda_graphs_are_taken_by_the_rule():
    for gains, word in (((1.3, 1.0, 1.0), "take"), ((1.05, 1, 1), "leave"), ((2, 0.9, 1), "leave")):
        found = with_graphs(**dict(zip(gpu_report.PRESETS, gains, strict=True)))
        assert f"So: {word} them." in gpu_report.graphs(found)[0]
    assert "is not done" in gpu_report.graphs({})[0]


@pytest.mark.slow
def test_the_whole_rehearsal(rehearse, tmp_path):
    """Every item, with every picture and every row of the table; then nothing is left."""
    code, out = rehearse("--minutes", "30")
    assert code == 0, out
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set(ITEMS)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "good-mnist.png",
        "good-original.png",
    }
    assert "not done" not in out
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 2**20
    assert rehearse("--minutes", "0.001")[0] == 0
