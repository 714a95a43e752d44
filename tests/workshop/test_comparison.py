"""What a new output may differ in from the stored one, and what it may not."""

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_output

from embspace_helpers.reading.tables import WordTable
from embspace_helpers.workshop.comparison import compare, line_problem, read_table, settle

HOLDS = [
    ("loss 0.31", "loss 0.31"),
    ("loss 0.31", "loss 0.32"),
    ("loss 0.99", "loss 1.00"),
    ("{'a': 0.3}", "{'a': 0.31}"),  # as Python's round leaves them
    ("{'a': 0.3}", "{'a': 0.29}"),
    ("[1.   0.97]", "[0.99 0.98]"),  # as numpy prints them
    ("1,536.5 and more", "1,536.6 and more"),
    ("999.9", "1,000.0"),
    ("-0.00", "0.00"),
    ("−0.00", "+0.00"),
    ("tensor([ 0., -2.])", "tensor([-0., -2.])"),
    ("-0 %", "0 %"),
    ("0.00", "-0.01"),
    ("−0.01 (−0.02 to 0.00)", "−0.01 (−0.03 to −0.01)"),
    ("+0.03", "+0.04"),
    ("-0.04", "-0.03"),
    ("a    0.00  0.5", "a   -0.00  0.5"),
    ("±0.05", "±0.06"),
    ("(0.13 to 0.15)", "(0.14 to 0.14)"),
    ("0.10–0.23", "0.11–0.22"),
    ("0.10-0.23", "0.11-0.22"),
    ("38% and 95 %", "39% and 94 %"),
    ("3.5 MB, 12.5MB", "3.6 MB, 12.4MB"),
    ("at most 1e-06", "at most 2e-06"),
    ("at most 9.5e-07", "at most 1e-06"),
    ("0.0001", "9e-05"),
    ("ends with 0.49.", "ends with 0.50."),
]

BREAKS = [
    ("loss 0.31", "loss 0.33", "more than one step of 0.01, 0.31 → 0.33"),
    ("{'a': 0.3}", "{'a': 0.32}", "more than one step"),
    ("0.3", "0.5", "more than one step of 0.1"),
    ("loss 0.31", "gain 0.31", "the words differ"),
    ("L3N12 0.5", "L3N13 0.5", "the words differ"),
    ("torch 2.13.0", "torch 2.13.1", "the words differ"),
    ("60 blocks", "61 blocks", "a whole number changed, 60 → 61"),
    ("layer 1.5, of 60.", "layer 1.5, of 61.", "a whole number changed"),
    ("1,536 words", "1,537 words", "a whole number changed"),
    ("1,536 words", "1536 words", "a whole number changed"),
    ("{'a': -2}", "{'a': 2}", "a sign changed"),
    ("0.31", "-0.31", "a sign changed, 0.31 → -0.31"),
    ("-0.01", "0.01", "a sign changed"),
    ("−0.05", "0.05", "a sign changed"),
    ("+0.05", "-0.05", "a sign changed"),
    ("-0.05", "−0.05", "a sign changed"),
    ("0.00", "-0.02", "more than one step"),
    ("0.10-0.23", "0.10-0.25", "more than one step"),
    ("0.10–0.23", "0.10-0.23", "the words differ"),
    ("38%", "40%", "more than one step of 1, 38% → 40%"),
    ("38%", "38", "the words differ"),
    ("38", "38.0", "a whole number changed"),
    ("[1. 2.]", "[1. 3.]", "a whole number changed"),
    ("1e-06", "3e-06", "more than one step"),
    ("0.1", "1e-06", "more than one step"),
    ("12.5MB", "12.5GB", "the words differ"),
    ("a 1 2", "a 12", "the words differ"),
    ("0.31", "nan", "the words differ"),
    ("Exercise done", "Exercise 0.1 done", "the words differ"),
]


@pytest.mark.parametrize(("stored", "new"), HOLDS)
def test_line_holds(stored, new):
    assert line_problem(stored, new) is None
    assert line_problem(new, stored) is None


@pytest.mark.parametrize(("stored", "new", "rule"), BREAKS)
def test_line_breaks_a_rule(stored, new, rule):
    assert rule in line_problem(stored, new)
    assert line_problem(new, stored)


@pytest.mark.parametrize(
    ("stored", "new", "rule"),
    [
        ("a 1\nb 2\n", "a 1\n", "3 lines are stored, 2 are printed now"),
        ("a 1\n", "a 1\nb 2\n", "2 lines are stored, 3 are printed now"),
        ("a 0.5\nb 0.5\n", "b 0.5\na 0.5\n", "the words differ"),
        ("a\nb", "a b", "2 lines are stored, 1 are printed now"),
    ],
)
def test_lines_are_compared_exactly(stored, new, rule):
    assert rule in compare("stdout", stored, new)[0]


def test_a_difference_shows_both_lines_and_there_are_few_of_them():
    stored, new = ("\n".join(f"row {i}: {i + add}.5" for i in range(9)) for add in (0, 2))
    found = compare("stdout", stored, new)
    assert found[1] == ("stdout: more than one step of 0.1, 1.5 → 3.5\n"
                        "  stored: row 1: 1.5\n  new:    row 1: 3.5")
    assert found[-1] == "stdout: and 4 more differences"
    long = compare("stdout", "a" * 500, "b" * 500)[0].splitlines()[1]
    assert long.endswith("…") and len(long) == 250


def both(table) -> dict[str, str]:
    return {"text/plain": repr(table), "text/html": table._repr_html_()}


def word_table(text: str, title: str = "L3N12") -> WordTable:
    """A table from columns apart by a bar: "a 4.3, b 4.2 | c 1.0, d 0.9"."""
    columns = [[(cell.rsplit(None, 1)[0], float(cell.rsplit(None, 1)[1]))
                for cell in column.split(",")] for column in text.split("|")]
    return WordTable({f"column {i}": [(word.strip(), score) for word, score in column]
                      for i, column in enumerate(columns)}, title)


@pytest.mark.parametrize("title", ["", "L3N12, 4.7 standard deviations"])
def test_word_table_is_read(title):
    for kind, text in both(word_table("-ed 4.3, (\"{} -0.1 | a → b 1.0, <b> 0.9", title)).items():
        table = read_table(kind, text)
        assert [[score for _, score in column] for column in table.columns] == [
            ["4.3", "-0.1"], ["1.0", "0.9"]
        ]
        assert table.columns[0][0][0] == "-ed"


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ("a 4.3, b 4.2, c 4.1", "a 4.3, b 4.2, c 4.1"),
        ("a 4.3, b 4.2, c 4.1", "a 4.4, b 4.2, c 4.0"),
        ("a 4.2, b 4.2, c 4.1", "b 4.2, a 4.2, c 4.1"),
        ("a 4.3, b 4.2, c 4.1", "b 4.3, a 4.3, c 4.1"),  # a tie in the new output alone
        ("a 4.3, b 4.2, c 4.2", "c 4.3, b 4.3, a 4.2"),  # a chain of ties
        ("x 0.1, y 0.0, z -0.0", "x 0.1, z -0.0, y -0.1"),
        ("a → b 4.2, a → c 4.2", "a → c 4.2, a → b 4.2"),
        ("a 4.2, b 4.2 | c 1.0, d 0.5", "b 4.2, a 4.2 | c 1.0, d 0.5"),  # one column alone
    ],
)
def test_words_of_a_tie_may_change_places(stored, new):
    for kind, text in both(word_table(stored)).items():
        assert compare(kind, text, both(word_table(new))[kind]) == []


@pytest.mark.parametrize(
    ("stored", "new", "rule"),
    [
        ("a 4.3, b 4.2", "b 4.3, a 4.2", "row 1: words of different scores changed places"),
        ("a 4.2, b 4.2, c 4.1", "c 4.2, b 4.2, a 4.1", "words of different scores changed"),
        ("a 4.3, b 4.2", "a 4.3, c 4.2", "column 1, row 2: a word changed"),
        ("a 4.2, b 4.2", "a 4.2, c 4.2", "row 2: a word changed"),
        ("a 4.2, b 4.2", "a 4.2, b 4.0", "row 2: more than one step of 0.1, 4.2 → 4.0"),
        ("a 4.5, b 4.4, c 4.4, d 4.3, e 4.3", "b 4.5, d 4.5, a 4.4, c 4.4, e 4.3",
         "the score of 'd' moved by more than one step"),
        ("a 4.3, b 4.2", "a 4.3", "the table has another size"),
        ("a 4.3", "a 4.3, b 4.2", "the table has another size"),
        ("a 4.3", "a 4.3 | b 4.2", "the words differ"),
        ("a 4.3, b -0.1", "a 4.3, b 0.1", "a sign changed"),
    ],
)
def test_word_tables_keep_their_words_and_order(stored, new, rule):
    for kind, text in both(word_table(stored)).items():
        found = "\n".join(compare(kind, text, both(word_table(new))[kind]))
        assert rule in found and kind in found


def test_names_and_titles_of_word_tables_are_compared():
    stored, new = (both(word_table("a 4.3, b 4.2", title)) for title in ("L3N12", "L3N13"))
    for kind in stored:
        assert "the words differ\n  stored: L3N12" in compare(kind, stored[kind], new[kind])[0]
    found = compare("text/html", stored["text/html"], stored["text/html"].replace("85%", "86%"))
    assert "the words differ" in found[0]


def test_data_frames_move_by_a_step_and_keep_their_rows():
    frame = pd.DataFrame({"n": [3, 4], "share": [0.5, 0.5]}, index=["keys", "values"])
    stored = {"text/plain": repr(frame), "text/html": frame._repr_html_()}
    for change, holds in [
        (frame.assign(share=[0.4, 0.6]), True),
        (frame.assign(share=[0.5, 0.7]), False),
        (frame.assign(n=[3, 5]), False),
        (frame.iloc[::-1], False),
        (frame.iloc[:1], False),
    ]:
        new = {"text/plain": repr(change), "text/html": change._repr_html_()}
        for kind in stored:
            assert (compare(kind, stored[kind], new[kind]) == []) == holds, new[kind]


def test_frame_columns_widen_with_a_sign():
    stored, new = (pd.DataFrame({"a": [0.00, 0.17], "b": [x, 0.02]}, index=["K", "W"])
                   for x in (0.00, -0.00))
    assert repr(stored.map("{:.2f}".format)) != repr(new.map("{:.2f}".format))
    assert compare("text/plain", repr(stored.map("{:.2f}".format)),
                   repr(new.map("{:.2f}".format))) == []


def figure(data: str = "bytes") -> nbformat.NotebookNode:
    return new_output("display_data", {"image/png": data, "text/plain": "<Figure with 1 Axes>"})


def printed(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text=text)


def test_a_progress_bar_is_no_output():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
    shown = "text:  38%|###8      | 3/8 [00:20<00:33,  6.7s/batch]"
    bar = new_output("display_data", {"text/plain": shown, **view})
    text = new_output("stream", name="stdout", text="38%| of 3/8 |")
    assert settle([text], [bar, text]) == ([text], [text], [])
    assert settle([text], [bar])[2] == ["stdout: 1 stored, 0 now"]
    data = new_output("display_data", {"text/plain": "a table"})
    assert settle([text], [text, data])[2]


def test_settle_takes_over_what_holds_and_nothing_else():
    stored = [printed("a 0.31\n"), figure("old"), figure()]
    new = [printed("a 0.32\n"), figure("new"), figure()]
    settled = settle(stored, new)
    assert settled[0] == settled[1] and settled[2] == []
    assert stored[0].text == "a 0.31\n" and new[1].data["image/png"] == "new"  # copies
    left, right, differences = settle([printed("a 0.31")], [printed("a 0.35")])
    assert left != right and "0.31 → 0.35" in differences[0]


@pytest.mark.parametrize(
    ("stored", "new", "difference"),
    [
        ([figure()], [], "image/png: 1 stored, 0 now"),
        ([], [figure()], "image/png: 0 stored, 1 now"),
        ([printed("a")], [], "stdout: 1 stored, 0 now"),
    ],
)
def test_settle_counts_outputs(stored, new, difference):
    assert difference in settle(stored, new)[2]
