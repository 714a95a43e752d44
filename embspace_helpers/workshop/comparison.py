"""Compare a stored notebook output with a new one, so that it holds on every processor.

Two processors add up in another order and differ in the last bits, so a printed number may round
to its neighbour. Text/plain, text/html and stdout are compared by these rules, all else as nbval
does:

- Text, words, rows and their order are compared exactly. Runs of spaces count as one, and a space
  before a number as none: a sign moves aligned columns. Lines, and the tags of HTML, stay exact.
- A number with decimals, an exponent or a percent sign may differ by one step of its last digit:
  0.31 and 0.32, 38% and 39%. If the two print different numbers of decimals, as `round` leaves
  them (0.3 and 0.31), the finer step counts; if both have an exponent, the coarser.
- Zero has no sign: -0.00 is 0.00. A number other than 0 keeps its sign, - and − included. So 0.00
  and -0.01 agree, -0.01 and 0.01 do not.
- A - or + after a digit is no sign but part of the text, as in 0.10-0.23; an en dash never is one.
- Whole numbers are exact, with or without thousands separators: 1,536. So are digits inside names
  (L29N1189) and versions (2.13.0). `1.`, as numpy prints it, is whole, but may meet 0.99.
- In a `WordTable` (and `Pairs`) words may change places within a column where the printed score is
  the same in the stored or in the new output. The scores are then compared place by place, and
  each word's own score may also differ by one step only.

A figure must be drawn where one is stored, and nowhere else; its bytes are not compared. A progress
bar, which only a slow machine shows, is no output.
"""

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from nbformat import NotebookNode

TEXTS = ("text/plain", "text/html", "stdout")
FIGURES = ("image/png", "image/jpeg", "image/svg+xml")
BAR = re.compile(r"\d+%\|.*\|\s*\d+/\d+ ?\[")  # what tqdm's widget is as text
SHOWN = 5  # differences of one output
WIDTH = 240  # of a shown line

# A sign does not stand after a digit; a number without one does not start inside a name. The
# possessive quantifiers (`++`, `?+`) keep the pattern from settling for a part of a number.
SIGN = r"(?:(?<![0-9])(?P<sign>[+\-−])(?=[0-9])|(?<![\w.]))"
VERSION = r"(?<![\w.])[+\-−]?[0-9]++(?:\.[0-9]++){2,}"
DIGITS = (r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"  # 1,536 or 1536
          r"(?:\.[0-9]*+)?+"
          r"(?:[eE][+\-−]?[0-9]++(?!\w))?+)")
TOKEN = rf"{VERSION}|{SIGN}{DIGITS}(?P<percent>\ ?%)?"
IN_TEXT = re.compile(TOKEN)
IN_HTML = re.compile(rf"<[^<>]*>|{TOKEN}")
PLACE = "\0"  # stands for a number in a line

CELL = re.compile(r"(?P<word>\S.*?) (?P<score>[+\-−]?[0-9]+\.[0-9]+)")
HTML_TABLE = re.compile(r"(?P<head><table>.*<tbody>)(?P<body>.*)</tbody></table>")
HTML_CELL = re.compile(r"(?P<td><td[^>]*>)(?P<word>[^<]*) (?P<span><span[^>]*>)"
                       r"(?P<score>[+\-−]?[0-9]+\.[0-9]+)</span></td>")

Column = list[tuple[str, str]]  # (word, printed score), from the top


@dataclass(frozen=True)
class Number:
    """A printed number: its sign ("", "+", "-", "−"), its digits, whether it is a percentage."""

    sign: str
    digits: str
    percent: bool = False

    @property
    def value(self) -> Decimal:
        """The number itself; a percentage as it stands."""
        value = Decimal(self.digits.replace(",", "").replace("−", "-"))
        return -value if self.sign in ("-", "−") else value

    @property
    def step(self) -> Decimal:
        """One unit of the last printed digit."""
        return Decimal(1).scaleb(int(self.value.as_tuple().exponent))

    @property
    def exponent(self) -> bool:
        """Whether it is written as 1e-06."""
        return "e" in self.digits.lower()

    @property
    def stepped(self) -> bool:
        """Whether it may move by a step; `1.` alone may not."""
        return self.percent or self.exponent or bool(re.search(r"\.[0-9]", self.digits))

    def __str__(self) -> str:
        return f"{self.sign}{self.digits}{'%' * self.percent}"


@dataclass(frozen=True)
class Table:
    """A printed `WordTable`: what stands above its rows, and its columns."""

    head: list[str]
    columns: list[Column]


def compare(kind: str, stored: str, new: str) -> list[str]:
    """Return what differs between two outputs of a kind of `TEXTS`: [] when the new one holds.

    Each difference is a text of three lines: the rule that is broken, the stored and the new line.
    """
    old_table, new_table = read_table(kind, stored), read_table(kind, new)
    if old_table and new_table:
        found = _compare_tables(old_table, new_table, kind)
    else:
        found = _compare_lines(_lines(kind, stored), _lines(kind, new), kind)
    if len(found) > SHOWN:
        found[SHOWN:] = [f"{kind}: and {len(found) - SHOWN} more differences"]
    return found


def number_problem(stored: Number, new: Number) -> str | None:
    """Return the rule that a new number breaks, None when it holds."""
    a, b = stored.value, new.value
    if a and b and stored.sign != new.sign:
        return f"a sign changed, {stored} → {new}"
    if stored.digits == new.digits:
        return None
    may_move = (stored.stepped or new.stepped) and all(
        number.stepped or "." in number.digits for number in (stored, new)
    )
    if not may_move:
        return f"a whole number changed, {stored} → {new}"
    coarser = stored.exponent and new.exponent
    step = max(stored.step, new.step) if coarser else min(stored.step, new.step)
    return None if abs(a - b) <= step else f"more than one step of {step}, {stored} → {new}"


def line_problem(stored: str, new: str, kind: str = "text/plain") -> str | None:
    """Return the rule that a new line breaks, None when it holds."""
    old_text, old_numbers = _read_line(stored, kind)
    new_text, new_numbers = _read_line(new, kind)
    if old_text != new_text or len(old_numbers) != len(new_numbers):
        return "the words differ"
    problems = map(number_problem, old_numbers, new_numbers)
    return next((problem for problem in problems if problem), None)


def _read_line(line: str, kind: str) -> tuple[str, list[Number]]:
    """Return a line with its numbers masked and its spaces collapsed, and the numbers."""
    numbers = []

    def mask(found: re.Match) -> str:
        if found["digits"] is None:  # a version or a tag
            return found[0]
        numbers.append(Number(found["sign"] or "", found["digits"], bool(found["percent"])))
        return PLACE + (found["percent"] or "")

    masked = (IN_HTML if kind == "text/html" else IN_TEXT).sub(mask, line)
    return re.sub(f" +({PLACE})", r"\1", re.sub(" +", " ", masked.rstrip(" "))), numbers


def _lines(kind: str, text: str) -> list[str]:
    """Return a text's lines; the rows of an HTML table count as lines."""
    return (text.replace("</tr>", "</tr>\n") if kind == "text/html" else text).split("\n")


def _compare_lines(stored: list[str], new: list[str], kind: str) -> list[str]:
    """Return the differences line by line; of two lengths only the first line that differs."""
    pairs = [(a, b, line_problem(a, b, kind)) for a, b in zip(stored, new)]
    found = [_show(kind, rule, a, b) for a, b, rule in pairs if rule]
    if len(stored) == len(new):
        return found
    rule = f"{len(stored)} lines are stored, {len(new)} are printed now"
    first = next((i for i, pair in enumerate(pairs) if pair[2]), len(pairs))
    rest = [" ".join(lines[first : first + 1]) or "(nothing)" for lines in (stored, new)]
    return [_show(kind, rule, *rest)]


def _show(kind: str, rule: str, stored: str, new: str) -> str:
    """Write a difference; of HTML the text alone, unless only the tags differ."""
    lines = [stored, new]
    if kind == "text/html":
        plain = [" ".join(re.sub("<[^<>]*>", " ", line).split()) for line in lines]
        lines = plain if plain[0] != plain[1] else lines
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines]
    return f"{kind}: {rule}\n  stored: {lines[0]}\n  new:    {lines[1]}"


def read_table(kind: str, text: str) -> Table | None:
    """Read an output as a `WordTable`; None when it is none."""
    if kind == "text/html":
        return _read_html_table(text)
    return _read_text_table(text) if kind == "text/plain" else None


def _read_text_table(text: str) -> Table | None:
    """Read lines of cells `word 3.4` two spaces apart, below a header and maybe a title."""
    lines = text.split("\n")
    rows = [_read_cells(line) for line in lines]
    for head in (1, 2):
        body = rows[head:]
        if body and body[0] and len({len(row) for row in body}) == 1:
            return _table(lines[:head], body)
    return None


def _read_cells(line: str) -> list[re.Match]:
    """Return the matched cells of a line; [] when one of them is no `word 3.4`."""
    parts = re.split("  +", line)
    cells = [cell for cell in map(CELL.fullmatch, parts) if cell]
    return cells if len(cells) == len(parts) else []


def _read_html_table(text: str) -> Table | None:
    """Read a table whose cells are all `<td>word <span>3.4</span></td>`."""
    found = HTML_TABLE.fullmatch(text)
    if not found:
        return None
    parts = re.findall("<tr>(.*?)</tr>", found["body"])
    rows = [list(HTML_CELL.finditer(part)) for part in parts]
    others = found["body"] != "".join(f"<tr>{part}</tr>" for part in parts) or any(
        HTML_CELL.sub("", part) for part in parts
    )
    if others or len({len(row) for row in rows}) != 1 or not rows[0]:
        return None
    styles = sorted({cell["td"] + cell["span"] for row in rows for cell in row})
    return _table([found["head"], *styles], rows)


def _table(head: list[str], rows: list[list[re.Match]]) -> Table:
    """Turn rows of matched cells into columns."""
    return Table(head, [[(cell["word"], cell["score"]) for cell in column]
                        for column in zip(*rows)])


def _compare_tables(stored: Table, new: Table, kind: str) -> list[str]:
    """Return the differences of two word lists: their heads, then each column's first one."""
    found = _compare_lines(stored.head, new.head, kind)
    sizes = [(len(table.columns), len(table.columns[0])) for table in (stored, new)]
    if sizes[0] != sizes[1]:
        old, now = (f"{rows} rows of {columns} words" for columns, rows in sizes)
        return [*found, _show(kind, "the table has another size", old, now)]
    for number, (a, b) in enumerate(zip(stored.columns, new.columns), 1):
        problem = column_problem(a, b)
        if problem:
            rule, place = problem
            found.append(_show(kind, f"column {number}, row {place + 1}: {rule}",
                               " ".join(a[place]), " ".join(b[place])))
    return found


def column_problem(stored: Column, new: Column) -> tuple[str, int] | None:
    """Return the rule that a column of a word list breaks, and at which place; None if it holds."""
    for place, (a, b) in enumerate(zip(stored, new)):
        rule = number_problem(_score(a), _score(b))
        if rule:
            return rule, place
    for places in _ties(stored, new):
        old, now = (sorted(column[i] for i in places) for column in (stored, new))
        if [word for word, _ in old] != [word for word, _ in now]:
            moved = Counter(w for w, _ in stored) == Counter(w for w, _ in new)
            rule = "words of different scores changed places" if moved else "a word changed"
            return rule, next(i for i in places if stored[i][0] != new[i][0])
        for a, b in zip(old, now):
            rule = number_problem(_score(a), _score(b))
            if rule:
                return f"the score of {a[0]!r} moved by {rule}", stored.index(a)
    return None


def _score(row: tuple[str, str]) -> Number:
    """Return a row's score."""
    digits = row[1].lstrip("+-−")
    return Number(row[1].removesuffix(digits), digits)


def _ties(stored: Column, new: Column) -> list[list[int]]:
    """Group a column's places: together are those of one score in the stored or the new column.

    A chain of ties makes one group: 4.3 4.2 4.2 and 4.3 4.3 4.2 are one of three places.
    """
    group = list(range(len(stored)))
    for column in (stored, new):
        first: dict[Decimal, int] = {}
        for place, row in enumerate(column):
            mine, other = group[place], group[first.setdefault(_score(row).value, place)]
            group = [other if g == mine else g for g in group]
    return [[i for i, g in enumerate(group) if g == name] for name in sorted(set(group))]


def settle(stored: list[NotebookNode], new: list[NotebookNode]) -> tuple[list, list, list[str]]:
    """Prepare a cell's outputs for nbval, which compares exactly; return both and what differs.

    Of the copies returned, a new text that holds is the stored one, and a figure has no bytes.
    """
    stored, new = without_bars(copy.deepcopy(stored)), without_bars(copy.deepcopy(new))
    differences = [f"{kind}: {before} stored, {now} now"
                   for kind, (before, now) in _counts(stored, new).items() if before != now]
    for holder, key, kind in _places([*stored, *new]):
        holder[key] = "a figure" if kind in FIGURES else holder[key]
    waiting: dict[str, list[str]] = defaultdict(list)
    for holder, key, kind in _places(stored):
        waiting[kind].append(holder[key])
    for holder, key, kind in _places(new):  # paired by kind, as nbval does
        old = waiting[kind].pop(0) if waiting[kind] else holder[key]
        found = compare(kind, old, holder[key])
        differences += found
        holder[key] = holder[key] if found else old
    return stored, new, differences


def without_bars(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Leave out the outputs that are nothing but a progress bar."""
    return [output for output in outputs
            if not (output.output_type == "display_data"
                    and BAR.search(output.get("data", {}).get("text/plain", "")))]


def _places(outputs: list[NotebookNode]) -> Iterator[tuple[NotebookNode, str, str]]:
    """Go through the texts and figures of outputs: where each stands, its key there, its kind."""
    for output in outputs:
        if output.output_type == "stream" and output.name in TEXTS:
            yield output, "text", output.name
        for key in output.get("data", {}):
            if key in TEXTS + FIGURES:
                yield output.data, key, key


def _counts(*both: list[NotebookNode]) -> dict[str, list[int]]:
    """Count the texts and figures of each kind, in the stored and in the new outputs."""
    counts = [Counter(kind for _, _, kind in _places(outputs)) for outputs in both]
    return {kind: [count[kind] for count in counts] for kind in TEXTS + FIGURES}
