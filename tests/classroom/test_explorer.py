"""The widgets, driven as a learner would, and the plain functions behind them."""

import pandas as pd
import pytest
from ipywidgets import BoundedIntText, IntSlider, Textarea

from embspace_helpers.classroom.explorer import look_up, search_box, try_any


class Atlas:
    """Two groups, and lists that hold "sea" in one of them."""

    def __init__(self, groups=("K", "V")):
        self.groups = groups
        self.asked = []

    def search(self, *words, groups=None, n=10):
        self.asked.append((words, groups))
        if "zzz" in words:
            raise ValueError("'zzz' is not one token (it is cut into pieces)")
        found = "sea" in words and groups in (None, "V")
        return pd.DataFrame({"words": ["sea, ocean"] * found})


def test_a_look_up_takes_commas_and_repeats():
    atlas = Atlas()
    assert len(look_up(atlas, " sea, sea;ocean ", "V")) == 1
    assert atlas.asked == [(("sea", "ocean"), "V")]


@pytest.mark.parametrize("text, said", [
    ("New York", "2 words, each looked for by itself: New, York"),
    ("zzz", "'zzz' is not one token"),
    ("tax", "No list has tax among its words (group V)."),
    (" , ", "Type a word"),
])
def test_a_look_up_says_what_is_not_there(capsys, text, said):
    assert look_up(Atlas(), text, "V") is None
    assert said in capsys.readouterr().out


def parts(box):
    controls, shown = box.children
    return (*controls.children, shown)



def test_the_box_offers_the_groups_that_a_model_has():
    atlases = {"encoder": Atlas(("K", "V")), "decoder": Atlas(("V", "gate", "up"))}
    _, names, groups, _ = parts(search_box(atlases, "sea"))
    assert set(groups.options) == {"K", "V"} and groups.value == "V"
    names.value = "decoder"
    assert set(groups.options) == {"V", "gate", "up"} and groups.value == "V"
    groups.value = "gate"
    names.value = "encoder"
    assert groups.value in groups.options
    assert atlases["decoder"].asked[-1] == (("sea",), "gate")


def test_the_box_asks_anew_when_a_word_is_typed():
    atlases = {"one": Atlas()}
    words, *_ = parts(search_box(atlases, "sea"))
    words.value = "ocean"
    assert atlases["one"].asked[-1] == (("ocean",), "V")


def test_many_values_are_typed_few_are_slid():
    seen = []

    def report(layer=4, neuron=7):
        seen.append((layer, neuron))

    layer, neuron = try_any(report, layer=(0, 5), neuron=(0, 767)).children[0].children
    assert isinstance(layer, IntSlider) and isinstance(neuron, BoundedIntText)
    assert seen[-1] == (4, 7)
    neuron.value = 700
    assert seen[-1] == (4, 700)


def test_without_a_default_the_first_value_is_taken():
    seen = []

    def report(head):
        seen.append(head)

    try_any(report, head=(2, 5))
    assert seen == [2]


def test_a_text_has_a_box_to_type_in():
    seen = []

    def verdicts(review, layer=3):
        seen.append((review, layer))

    box, _ = try_any(verdicts, review="Loved it.", layer=(0, 6)).children[0].children
    assert isinstance(box, Textarea) and seen[-1] == ("Loved it.", 3)
    box.value = "Hated it."
    assert seen[-1] == ("Hated it.", 3)
