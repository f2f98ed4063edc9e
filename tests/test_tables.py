"""Tables line up, and say where a number is missing."""

from evaluation.tables import markdown, table


def test_columns_line_up_and_what_is_missing_is_a_dash():
    text = table("Scores", {"a": {"fid": 1.23456, "steps": 20}, "longer": {"recall@5000": 0.5}})
    title, head, first, second = text.split("\n")
    assert title == "Scores"
    assert {len(line) for line in (head, first, second)} == {len(head)}
    assert head.split() == ["fid", "steps", "recall@5000"]
    assert first.split() == ["a", "1.235", "20", "-"]
    assert second.split() == ["longer", "-", "-", "0.5"]


def test_whole_numbers_and_words_are_shown_in_full():
    rows = {"a": {"steps": 56250, "loss": 0.123456}, "b": {"steps": "many", "loss": 12345.6}}
    lines = table("Scores", rows).split("\n")
    assert [line.split() for line in lines[2:]] == [
        ["a", "56,250", "0.1235"],
        ["b", "many", "1.235e+04"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1


def test_what_stands_in_a_cell_of_markdown_stays_in_it():
    """Also a bar, a line break, or markup."""
    rows = {"a|b": {"_x_": 1.5, "y\nz": "<b> [c](d) `e` *f*"}}
    head, _, row = markdown(rows).split("\n")
    for line in (head, row):
        assert line.replace(r"\|", "").count("|") == 4
    assert "\\_x\\_" in head
    assert row == r"| a\|b | 1.5 | \<b\> \[c\](d) \`e\` \*f\* |"
