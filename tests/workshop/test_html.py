"""The pages of `make run`: an SVG has its alt text, and is as light as the page."""

from pathlib import Path

from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "embspace_helpers" / "workshop" / "html.j2"


def test_an_svg_has_its_alt_text_and_stays_light():
    output = new_output("display_data", {"image/svg+xml": "<svg/>", "image/png": "eA=="},
                        metadata={"image/svg+xml": {"alt": "E & F."}})
    notebook = new_notebook(cells=[new_code_cell("draw()", outputs=[output])])
    page, _ = HTMLExporter(template_file=str(PAGE)).from_notebook_node(notebook)
    (image,) = [part.split(">")[0] for part in page.split("<img ")[1:]]
    assert 'alt="E &amp; F."' in image
    assert 'style="color-scheme: light"' in image
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+' in image


def test_make_run_uses_the_page():
    makefile = (ROOT / "Makefile").read_text()
    assert f"PAGE := {PAGE.relative_to(ROOT).as_posix()}\n" in makefile
    assert "--to html --template-file $(PAGE) --output-dir build/html" in makefile
