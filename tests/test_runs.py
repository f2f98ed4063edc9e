"""Run folders: one number for both trees, never shared."""

import json

import pytest
import torch

from utils import runs
from utils.errors import StoppedError


def test_versions_count_up_in_both_trees(tmp_path):
    first, second = runs.new_run(tmp_path), runs.new_run(tmp_path)
    assert first.logs == tmp_path / "Inference" / "version_0"
    assert first.checkpoints == tmp_path / "checkpoints" / "version_0"
    assert second.logs.name == second.checkpoints.name == "version_1"


def test_foreign_names_are_ignored_and_a_number_taken_in_one_tree_is_taken(tmp_path):
    for name in ("Inference/version_x", "Inference/.DS_Store", "checkpoints/version_4", "notes"):
        (tmp_path / name).mkdir(parents=True)
    assert runs.new_run(tmp_path).logs.name == "version_5"


def test_the_run_of_a_checkpoint_is_found_from_its_path(tmp_path):
    run = runs.new_run(tmp_path)
    assert runs.run_of(run.checkpoints / "step_00000001.pt") == run


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(runs.RunError, match="cannot make a run folder"):
        runs.new_run(tmp_path / "root")


def test_json_is_complete_or_absent(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"lr": 1e-4})
    with pytest.raises(TypeError):
        runs.write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == {"lr": 1e-4}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_lacks_is_not_written_and_is_named(tmp_path, value):
    with pytest.raises(StoppedError, match=r"a\.json: scores\.0\.fid is not finite"):
        runs.write_json(tmp_path / "a.json", {"scores": [{"fid": value}]})
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_plain_values():
    values = runs.environment(torch.device("cpu"))
    assert {type(v) for v in values.values()} <= {str, int}
    json.dumps(values)
