"""Tables line up, and say where a number is missing."""

from evaluation.tables import table


def test_columns_line_up_and_what_is_missing_is_a_dash():
    text = table("Scores", {"a": {"fid": 1.23456, "steps": 20}, "longer": {"recall@5000": 0.5}})
    title, head, first, second = text.split("\n")
    assert title == "Scores"
    assert {len(line) for line in (head, first, second)} == {len(head)}
    assert head.split() == ["fid", "steps", "recall@5000"]
    assert first.split() == ["a", "1.235", "20", "-"]
    assert second.split() == ["longer", "-", "-", "0.5"]
