"""Output that nobody reads, or that must be ASCII, and commands to be pasted into a shell."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import (
    AGAIN,
    ROOT,
    SECONDS,
    SMALL,
    STEPS,
    checkpoints,
    count,
    folder,
    newest,
    run,
    two_at_a_time,
    write_pictures,
)

import evaluate
import sample
import train
from utils import checkpoint
from utils.process import Steady, StopSignal, command, exit_code

pytest_plugins = "trained"


@pytest.mark.parametrize("hook", ["close_output", "leave_output"])
@pytest.mark.parametrize("number", [1, 2])
def test_nobody_has_to_listen_to_a_training(hook, number):
    with folder() as where:
        assert run(where, AGAIN, f"sabotage.{hook}", number).code == 0
        assert newest(where)["step"] == STEPS


def deaf() -> io.TextIOWrapper:
    """A stream that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.usefixtures("few_drawn")
@pytest.mark.parametrize("make", [deaf, lambda: None], ids=["left", "closed"])
def test_nobody_has_to_listen_to_an_evaluation(trained, tmp_path, monkeypatch, make):
    metrics = trained / "Inference/version_0/metrics.json"
    metrics.unlink(missing_ok=True)
    flags = ["--ckpt", str(trained / "checkpoints/version_0"), "--device", "cpu", "--num", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", make())
        patch.setattr(sys, "stderr", make())
        assert evaluate.main([*flags, "--only", "held-out"]) == 0
        assert sample.main([*flags, "--out", str(tmp_path / "out")]) == 0
    assert "held_out" in json.loads(metrics.read_text())
    assert (tmp_path / "out/grid.png").exists()


def test_a_stream_that_nobody_reads_fails_otherwise():
    """The control."""
    stream = deaf()
    with pytest.raises(BrokenPipeError):
        print("text", file=stream, flush=True)
    steady = Steady(stream)
    print("text", file=steady, flush=True)
    steady.close()


def test_an_ascii_terminal_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with pytest.raises(UnicodeEncodeError):  # control
        print("müde", file=stream)
    print("müde", file=Steady(stream), flush=True)
    assert raw.getvalue() == b"m\\xfcde\n"


HOSTILE = [
    "it's a folder",
    'a "b" $HOME `c` \\',
    "ein Übungsordner",
    "\udcff no text",
    "a\n\tb",
    "*",
]


def pasted(line: str, where: Path) -> list[str]:
    """The words that bash makes of a line."""
    script = f"set -- {line}; printf '%s\\0' \"$@\""
    options = {"cwd": where, "env": {"LC_ALL": "C"}, "check": True, "capture_output": True}
    out = subprocess.run(["bash", "-c", script], **options).stdout
    return [os.fsdecode(word) for word in out.split(b"\0")[:-1]]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_command_survives_the_shell_and_the_terminal(tmp_path, monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Steady(io.TextIOWrapper(raw, encoding)))
    print(command("sample.py", *HOSTILE), flush=True)
    assert pasted(os.fsdecode(raw.getvalue().strip()), tmp_path)[2:] == HOSTILE
    assert pasted(shlex.join(HOSTILE).encode("ascii", "replace").decode(), tmp_path) != HOSTILE


def test_a_command_names_the_script_and_the_interpreter_that_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")  # in an activated environment `python` would be the one
    assert command("train.py") == f"{sys.executable} {ROOT / 'train.py'}"
    monkeypatch.chdir(ROOT)
    (tmp_path / "python").symlink_to("python3")
    (tmp_path / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))  # as typed
    assert command("train.py") == f"{tmp_path / 'python3'} train.py"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("train.py") == "python train.py"


def shell(line: str, where: Path, terminal: dict[str, str]) -> subprocess.Popen[bytes]:
    """A line that is typed there."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **terminal}
    pipe = subprocess.PIPE
    return subprocess.Popen(["bash", "-c", line], cwd=where, env=environment, stdout=pipe)


def last_command(process: subprocess.Popen[bytes]) -> str:
    """What the last line that it prints says to do."""
    out = os.fsdecode(process.communicate(timeout=SECONDS)[0])
    return out.splitlines()[-1].partition(": ")[2]


TERMINALS = [
    {"LC_ALL": "C.UTF-8"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.slow
def test_every_command_that_a_run_prints_can_be_pasted(tmp_path):
    """Stopped by a signal, gone on with, sampled from: in a terminal that shows only some names."""
    write_pictures(tmp_path)
    flags = [*SMALL, "--max-steps", "60", "--save-minutes", "0", "--min-epoch-images", "9600"]
    flags += ["--dataset", "folder", "--data-root", str(tmp_path)]

    def chain(i: int) -> None:
        where, root, terminal = tmp_path / f".{i}", HOSTILE[i // 2], TERMINALS[i % 3]
        where.mkdir()
        line = shlex.join([sys.executable, str(ROOT / "train.py"), *flags, "--run-root", root])
        process = shell(f"exec {line}", where, terminal)
        while not checkpoint.steps(where / root / "checkpoints/version_0"):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        on = last_command(process)
        assert process.returncode == 128 + signal.SIGTERM
        draw = last_command(shell(on, where, terminal))
        assert shell(f"{draw} --num 2", where, terminal).wait(SECONDS) == 0
        assert list((where / root).glob("Inference/version_0/*/grid.png"))

    two_at_a_time(chain, 12)
    count("a printed command pasted, paths that need quotes or are no text", 24, 24, "it runs")


def test_the_commands_that_a_run_prints_work_for_a_run_root_with_spaces(few_digits, capsys):
    assert train.main([*SMALL, "--max-steps", "3", "--run-root", "it's a folder"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    _, script, *words = shlex.split(line.partition("draw images: ")[2])
    assert script == str(ROOT / "sample.py")
    assert sample.main([*words, "--num", "2", "--device", "cpu", "--out", "out"]) == 0
    assert (few_digits / "out/grid.png").exists()


def script(name: str, *argv: str, isolated: str, where: Path) -> str:
    """What it prints, on an ASCII terminal, without its folder on Python's path."""
    words = [sys.executable, *isolated.split(), str(ROOT / name), *argv]
    bare = {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "ascii", "PATH": os.environ["PATH"]}
    options = {"env": bare, "cwd": where, "timeout": SECONDS, "capture_output": True}
    return subprocess.run(words, check=True, text=True, **options).stdout


def test_it_runs_where_python_has_no_path_to_it(tmp_path):
    assert "--resume" in script("train.py", "--help", isolated="-I", where=tmp_path)
    assert "--lr" in script("config.py", isolated="-I", where=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("isolated", ["-I", "", "-P", "-I -B"])  # "": PYTHONSAFEPATH
def test_every_script_runs_where_python_has_no_path_to_it(tmp_path, isolated):
    options = {"isolated": isolated, "where": tmp_path}
    out = script("train.py", *SMOKE.split(), "--run-root", "ein Übungsordner", **options)
    *_, root = shlex.split(out.splitlines()[-1].partition("draw images: ")[2])
    assert root.isascii() == ("-I" not in isolated)  # -I ignores what the terminal can show
    latest = ["--ckpt", "latest", "--run-root", "ein Übungsordner", "--num", "4"]
    assert "metrics.json" in script("evaluate.py", *latest, "--only", "held-out", **options)
    assert "grid.png" in script("sample.py", *latest, **options)
    count("python -I, -P or PYTHONSAFEPATH, from another folder", 3, 3, "all three scripts finish")


def test_a_signal_handler_is_left_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code("x", lambda: 7, "") == 7
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_cuts_short_what_may_be_lost_and_no_more():
    done = []
    with StopSignal() as stop:
        with stop.cuts_short():
            done.append("before")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("never")
        done.append("after")
        assert stop.number == signal.SIGTERM
    assert done == ["before", "after"]


def test_without_a_signal_nothing_is_cut_short_and_the_next_is_recorded():
    with StopSignal() as stop:
        with stop.cuts_short():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM


SMOKE = "--preset smoke --device cpu --max-steps 4 --steps 2"


@pytest.mark.slow
@pytest.mark.parametrize("deafness", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -1"])
def test_a_shell_may_close_any_of_them(deafness):
    with folder() as where:
        for script, flags, made in (
            ("train", SMOKE, "checkpoints/version_0/step_00000004.pt"),
            ("evaluate", "--ckpt latest --only held-out", "Inference/version_0/metrics.json"),
            ("sample", "--ckpt latest --num 4 --out out", "../out/grid.png"),
        ):
            python, path = shlex.quote(sys.executable), shlex.quote(str(ROOT / f"{script}.py"))
            line = f"{python} {path} {flags} {deafness}"
            subprocess.run(
                ["bash", "-o", "pipefail", "-c", line], cwd=where, timeout=SECONDS, check=True
            )
            assert (where / "Logs_Checkpoints" / made).exists()
        assert len(checkpoints(where)) == 1
    count("stdout or stderr closed, or left by its reader", 3, 3, "all three scripts finish")
