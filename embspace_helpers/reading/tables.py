"""Word lists as a reader sees them: tables in a notebook, aligned text in a terminal."""

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class WordTable:
    """Named lists of (word, score), side by side: HTML in a notebook, text in a terminal.

    Without `scores`, only the words are shown.
    """

    columns: dict[str, list[tuple[str, float]]]
    title: str = ""
    scores: bool = True

    def __repr__(self) -> str:
        """Return columns of `word score`, aligned, under their names."""
        cells = {name: [f"{word} {score:.1f}" if self.scores else word for word, score in rows]
                 for name, rows in self.columns.items()}
        widths = [max(len(name), *map(len, rows)) for name, rows in cells.items()]
        lines = ["  ".join(n.ljust(w) for n, w in zip(cells, widths)).rstrip()]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
                  for row in zip(*cells.values())]
        return "\n".join([self.title, *lines] if self.title else lines)

    def _repr_html_(self) -> str:
        def after(score: float) -> str:
            style = "opacity:.55;font-size:85%"
            return f' <span style="{style}">{score:.1f}</span>' if self.scores else ""

        head = "".join('<th scope="col" style="text-align:left;padding:2px 14px 2px 4px">'
                       f"{html.escape(name)}</th>" for name in self.columns)
        rows = "".join(
            "<tr>" + "".join(
                '<td style="text-align:left;padding:1px 14px 1px 4px">'
                f"{html.escape(word)}{after(score)}</td>"
                for word, score in row) + "</tr>"
            for row in zip(*self.columns.values()))
        caption = ('<caption style="text-align:left;white-space:nowrap">'
                   f"{html.escape(self.title)}</caption>" if self.title else "")
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
