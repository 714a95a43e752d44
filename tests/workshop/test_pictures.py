"""The README's picture: well-formed, with its words as text and as a title."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from embspace_helpers.workshop import pictures

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("theme", pictures.THEMES)
def test_picture_shows_every_word_and_says_them_in_its_title(theme):
    lists = {"through E": ["<s>", "others"], "through the dictionary": ["stay", "remain"]}
    root = ET.fromstring(pictures.draw("What does it look for?", lists, theme))
    shown = [node.text for node in root.iter(f"{SVG}text")]
    assert shown == ["What does it look for?", "through E", "<s>", "others",
                     "through the dictionary", "stay", "remain"]
    assert root.find(f"{SVG}title").text == (
        "What does it look for? through E: <s>, others. through the dictionary: stay, remain.")


def test_command_writes_both_themes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "read_neuron", lambda: {"one": ["a"], "two": ["b"]})
    assert pictures.main(["--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["neuron-dark.svg",
                                                                "neuron-light.svg"]
    assert "neuron-light.svg" in capsys.readouterr().out


@pytest.mark.parametrize("theme", pictures.THEMES)
def test_readme_shows_the_picture_that_is_there(theme):
    name = f".github/neuron-{theme}.svg"
    assert name in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / name).read_text(encoding="utf-8").count("<text") >= 15
