"""metrics.json: sections are kept with what they are of."""

import json

from evaluation.metrics_file import write_sections

FIRST = {"checkpoint": "a.pt", "step": 7, "weights": "abc", "num": 5, "seed": 0}


def test_sections_are_merged_each_with_its_origin(tmp_path, capsys):
    path = tmp_path / "metrics.json"
    write_sections(
        path, {"bits_per_dim": {"5 steps": {"total": 2.0}}, "scores": {"rows": 1}}, FIRST
    )
    write_sections(path, {"scores": {"rows": 2}}, FIRST | {"num": 9})
    found = json.loads(path.read_text())
    assert found["bits_per_dim"]["5 steps"] == {"total": 2.0}
    assert found["scores"]["rows"] == 2
    assert found["bits_per_dim"]["of"] == FIRST | {"another_checkpoint": False}
    assert found["scores"]["of"] == FIRST | {"num": 9, "another_checkpoint": False}
    assert "another" not in capsys.readouterr().out


def test_a_section_of_other_weights_is_marked_until_it_is_measured_again(tmp_path, capsys):
    path, later = tmp_path / "metrics.json", FIRST | {"step": 8, "weights": "def"}
    write_sections(path, {"scores": {}, "held_out": {}}, FIRST)
    write_sections(path, {"scores": {}}, later)
    marks = {k: v["of"]["another_checkpoint"] for k, v in json.loads(path.read_text()).items()}
    assert marks == {"held_out": True, "scores": False}
    assert "kept: held_out (of step 7, another checkpoint)" in capsys.readouterr().out
    write_sections(path, {"held_out": {}}, later)
    found = json.loads(path.read_text())
    assert [own["of"] for own in found.values()] == [later | {"another_checkpoint": False}] * 2


def test_a_file_of_another_form_is_kept_under_another_name(tmp_path, capsys):
    path = tmp_path / "metrics.json"
    for content in ("{", "[]", '{"scores": {}, "step": 3}', '{"scores": {"of": {"step": 3}}}'):
        path.write_text(content)
        write_sections(path, {"scores": {}}, FIRST)
        assert json.loads(path.read_text()).keys() == {"scores"}
        assert "kept as metrics.json.replaced" in capsys.readouterr().out
    aside = sorted(tmp_path.glob("metrics.json.*"))
    assert len(aside) == 4
    assert aside[0].read_text() == "{"
