"""A figure as SVG that reads well on light and on dark pages, even after a cleaner went over it.

GitHub and nbviewer put an SVG into their page, and first take out styles, definitions and
references, without which matplotlib's own SVG has black boxes and no text. So everything here is a
plain path with its light colour as an attribute, text too. Dark colours are the one thing in a
style sheet: `prefers-color-scheme` asks for them, and where it is taken out the figure stays light.
The figure's ground is drawn, so that light and dark are legible on either page.
"""

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Transform
from matplotlib.typing import ColorType

LETTERS = {Path.MOVETO: "m", Path.LINETO: "l", Path.CURVE3: "q", Path.CURVE4: "c"}
FINE = 10  # units of the drawing in a point, 1/72 inch: coordinates are whole numbers
# Pixels of a page in a point: 9.5 inches take 820, and JupyterLab, which cuts an SVG that is too
# wide, has 848 in a window of 1280
PIXELS = 820 / (9.5 * 72)


def draw(figure: Figure, title: str, description: str, dark: Mapping[str, str]) -> str:
    """A figure as SVG with a title, a description, and for each light colour, #rrggbb, a dark one.

    Raises ValueError when the figure has a colour that `dark` lacks.
    """
    dpi, figure.dpi = figure.dpi, 72 * FINE
    width, height = (int(x) for x in figure.get_size_inches() * 72 * FINE)
    paths = Paths(width, height)
    try:
        figure.draw(paths)
    finally:
        figure.dpi = dpi
    dark = {light.lower(): colour for light, colour in dark.items()}
    if missing := sorted(paths.colours - dark.keys()):
        raise ValueError(f"no dark colour for {', '.join(missing)}")
    rules = "".join(f'.schematic [{kind}="{colour}"]{{{kind}:{dark[colour]}}}'
                    for colour in sorted(paths.colours) for kind in ("fill", "stroke"))
    scale = PIXELS / FINE
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" class="schematic" role="img" '
        f'width="{width * scale:.0f}" height="{height * scale:.0f}" '
        f'viewBox="0 0 {width} {height}">',
        f"<title>{escape(title)}</title>", f"<desc>{escape(description)}</desc>",
        f"<style>@media screen and (prefers-color-scheme:dark){{{rules}}}</style>",
        *paths.elements, "</svg>"])


class Paths(RendererBase):
    """A renderer that writes a path element for whatever it is given; text becomes its outline."""

    def __init__(self, width: int, height: int) -> None:
        """A drawing of so many units."""
        super().__init__()
        self.size = width, height
        self.elements: list[str] = []
        self.colours: set[str] = set()

    def get_canvas_width_height(self) -> tuple[float, float]:
        """Width and height in units."""
        return self.size

    def points_to_pixels(self, points: Any) -> Any:
        """Units of so many points."""
        return points * FINE

    def draw_path(self, gc: GraphicsContextBase, path: Path, transform: Transform,
                  rgbFace: ColorType | None = None) -> None:
        """Write a path filled with `rgbFace`, its line as `gc` says."""
        outline = outline_of(path, transform, self.size[1])
        fill = self._colour(rgbFace)
        width, line = gc.get_linewidth(), ""
        if width:
            line = f' stroke="{self._colour(gc.get_rgb())}" stroke-width="{width * FINE:.0f}"'
            dashes: Any = gc.get_dashes()[1]
            if dashes is not None:
                line += f' stroke-dasharray="{" ".join(f"{x * FINE:.0f}" for x in dashes)}"'
        if outline and (fill != "none" or line):
            self.elements.append(f'<path fill="{fill}"{line} d="{outline}"/>')

    def _colour(self, colour: ColorType | None) -> str:
        """A colour as #rrggbb, which is noted; `none` for none and for one that is clear."""
        if colour is None or (len(colour) == 4 and colour[3] == 0):
            return "none"
        self.colours.add(to_hex(colour))
        return to_hex(colour)


def outline_of(path: Path, transform: Transform, height: int) -> str:
    """A path as SVG writes it: whole numbers, each step from where the last ended, y downwards."""
    written, here, start = [], np.zeros(2, int), np.zeros(2, int)
    for points, code in path.iter_segments(transform, simplify=False):
        if code == Path.CLOSEPOLY:
            written.append("z")
            here = start
            continue
        places = np.rint(np.reshape(points, (-1, 2))).astype(int)
        places[:, 1] = height - places[:, 1]
        written.append(LETTERS[code] + " ".join(map(str, (places - here).ravel())))
        here = places[-1]
        start = here if code == Path.MOVETO else start
    return "".join(written).replace(" -", "-")
