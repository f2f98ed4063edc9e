"""A run root, and a tiny data set, for every test that needs one."""

import os
import signal
from pathlib import Path

import faults
import pytest

import data.datasets
import train

# A shell's background jobs, as CI's may be, ignore Ctrl-C, and all that is started here would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup has it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """The data root that holds MNIST, from $MNIST_ROOT or ../shared/data; else the test skips."""
    for root in (os.environ.get("MNIST_ROOT"), ROOT.parent / "shared" / "data"):
        if root and (Path(root) / "MNIST" / "raw").is_dir():
            return Path(root)
    pytest.skip("needs MNIST: set MNIST_ROOT")


@pytest.fixture
def trial(request) -> int:
    """The number of a repetition, for faults.a_dozen_times."""
    return request.param


@pytest.fixture
def few_digits(monkeypatch, tmp_path) -> Path:
    """An empty folder to run in, where `digits` has 100 images and --dry-run times few steps."""
    monkeypatch.setitem(data.datasets.DATASETS, "digits", faults.few_digits)
    monkeypatch.setattr(train, "FORECAST_SECONDS", faults.FORECAST_SECONDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_sessionfinish(session) -> None:
    """A worker hands over what it broke."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = faults.ROWS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """The counts of all workers, in one table."""
    faults.ROWS.extend(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_terminal_summary(terminalreporter, config) -> None:
    """What was broken how often, and what came of it; also into the file $FAULT_TABLE.

    Not after the fast tier, whose counts are small: ``pytest -m ""`` gives them all.
    """
    lines = faults.table()
    if faults.ROWS and config.option.markexpr != "not slow":
        for line in lines:
            terminalreporter.write_line(line)
    if path := os.environ.get("FAULT_TABLE"):
        Path(path).write_text("\n".join(lines) + "\n")
