"""The committed notebooks: executed in order, complete, tidy, and the same on every machine."""

import re
from pathlib import Path

import nbformat
import pytest

from embspace_helpers.workshop.notebooks import normalise, tags, to_text

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
IGNORED = "nbval-ignore-output"
FIGURES = {"image/png", "image/svg+xml"}
REASONS = {"reason-timing", "reason-training", "reason-widget"}
TAGS = {"setup", "exercise", "exercise-check", "solution", IGNORED, *REASONS}
# An absolute path of POSIX or Windows, or a home folder; not a URL, not an HTML tag.
ABSOLUTE = re.compile(r"(?<![\w:/.<+*])(?:/[A-Za-z][\w.-]*){2,}|\b[A-Z]:\\\w|(?<!\w)~/\w|\$HOME")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture
def nb(path):
    return nbformat.read(path, as_version=4)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def printed(output) -> str:
    """All text of an output, without pictures that are part of HTML."""
    text = output.get("text", "")
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/"):
            text += f"\n{value}"
    return re.sub(r"data:image/[^\"')]*", "", text)


def test_there_are_notebooks():
    assert NOTEBOOKS, "the folder notebooks/ is empty: every other test here would pass on nothing"


def test_starts_with_a_title(nb):
    assert nb.cells[0].cell_type == "markdown"
    assert nb.cells[0].source.startswith("# ")


def test_was_executed_in_order(nb):
    counts = [cell.execution_count for cell in code_cells(nb)]
    assert counts == list(range(1, len(counts) + 1)), "run make notebooks"
    for cell in code_cells(nb):
        for output in cell.outputs:
            assert output.get("execution_count", cell.execution_count) == cell.execution_count


def test_is_as_the_tool_writes_it(nb, path):
    """Also: kernelspec, cell ids, no state of widgets, no metadata but tags."""
    assert path.read_text(encoding="utf-8") == to_text(normalise(nb)), "run make notebooks"


def test_no_error_no_warning_no_path_no_address_in_outputs(nb):
    for number, cell in enumerate(code_cells(nb)):
        for output in cell.outputs:
            text = printed(output)
            assert output.output_type != "error", f"Cell {number}: {output}"
            assert output.get("name") != "stderr", f"Cell {number}: {text}"
            found = ABSOLUTE.search(text) or ADDRESS.search(text)
            assert not found, f"Cell {number} prints {found.group()!r}"


def test_outputs_are_compared_unless_a_tag_gives_a_reason(nb):
    for number, cell in enumerate(code_cells(nb)):
        here = set(tags(cell))
        assert here <= TAGS, f"Cell {number}: unknown tags {here - TAGS}"
        assert (IGNORED in here) == bool(here & REASONS), (
            f"Cell {number}: {IGNORED} goes with one of {sorted(REASONS)}"
        )
        assert "NBVAL_" not in cell.source, f"Cell {number}: use a tag, not a comment"


def test_every_figure_says_in_words_what_it_shows(nb):
    for cell in code_cells(nb):
        for output in cell.outputs:
            for kind in FIGURES & output.get("data", {}).keys():
                alt = output.metadata.get(kind, {}).get("alt", "")
                assert len(alt.split()) > 4, cell.source
            svg = output.get("data", {}).get("image/svg+xml")
            assert not svg or all(f"<{part}>" in svg for part in ("title", "desc")), cell.source


def test_is_small(path):
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("saved to /home/ada/models", True),
        ("'/usr/lib/python3'", True),
        (r"C:\Users\ada", True),
        ("cache: ~/models", True),
        ("https://example.org/a/b", False),
        ("notebooks/data/x", False),
        ("key/value/head, and/or, 1/2", False),
        ("<b>a</b></td></tr>", False),
        ("/ and //", False),
    ],
)
def test_absolute_paths_are_told_apart(text, bad):
    assert bool(ABSOLUTE.search(text)) == bad
