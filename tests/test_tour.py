"""docs/tour.ipynb runs from top to bottom, and holds what its cells show."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest_plugins = "trained"
TOUR = Path(__file__).parent.parent / "docs" / "tour.ipynb"
SHORT = {
    '["--max-minutes", "2"]': '["--preset", "smoke", "--max-steps", "3"]',
    "NUM = 1000": "NUM = 50",
}
CELLS = [c for c in json.loads(TOUR.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, as a notebook shows it."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), TOUR.name, "exec"), names)
    return last and eval(compile(ast.Expression(last.value), TOUR.name, "eval"), names)


def run_all(sources: list[str], capsys) -> None:
    """Every cell, which shows a picture, or prints, where it has stored that it does."""
    names: dict[str, Any] = {}
    for source, cell in zip(sources, CELLS, strict=True):
        capsys.readouterr()
        value = run(source, names)
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert isinstance(value, Image.Image) == ("image/png" in kinds), source
        streams = [output for output in cell["outputs"] if output["output_type"] == "stream"]
        assert bool(capsys.readouterr().out) == bool(streams), source
        assert names.get("exit_code", 0) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("few_drawn")
def test_the_tour_runs_with_less_training(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained / "classifiers", tmp_path / "Logs_Checkpoints/classifiers")
    monkeypatch.chdir(tmp_path)
    first, *others = SOURCES
    for long, short in SHORT.items():
        assert long in first
        first = first.replace(long, short)
    run_all([first, *others], capsys)


@pytest.mark.slow
def test_the_tour_runs_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_all(SOURCES, capsys)


def test_what_cells_show_is_stored_and_nothing_of_the_machine_it_ran_on():
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    for source, cell in zip(SOURCES, CELLS, strict=True):
        shows = isinstance(ast.parse(source).body[-1], ast.Expr) or ".main(" in source
        assert bool(cell["outputs"]) == shows, source
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no progress, errors
    plain = [output.get("text") or output["data"]["text/plain"] for output in outputs]
    assert not re.search(r"(^|[\s'\"=(])(/|~|[A-Z]:\\)\w", "".join(map("".join, plain)))
    assert TOUR.stat().st_size < 500_000
