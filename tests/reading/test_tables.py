"""Word lists as text and as HTML."""

from embspace_helpers.reading.tables import WordTable

TABLE = WordTable({"L1N2": [("<b>&", 2.345), ("film", -1.0)], "a < b": [("x", 10.0), ("yy", 0.04)]},
                  "A & B")


def test_text_of_a_table():
    assert repr(TABLE) == ("A & B\n"
                           "L1N2       a < b\n"
                           "<b>& 2.3   x 10.0\n"
                           "film -1.0  yy 0.0")
    assert repr(WordTable({"n": [("word", 1.0)]})) == "n\nword 1.0"


def test_html_of_a_table_is_escaped():
    page = TABLE._repr_html_()
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page
    assert "a &lt; b</th>" in page and ">A &amp; B</caption>" in page
    assert page.count("<tr>") == 3 and page.count("<td") == 4 and page.count("<th ") == 2
    assert page.index("2.3") < page.index("10.0") < page.index("-1.0") < page.index("yy")
    assert "<caption" not in WordTable(TABLE.columns)._repr_html_()


def test_a_table_of_words_alone():
    words = WordTable(TABLE.columns, "A & B", scores=False)
    assert repr(words) == ("A & B\n"
                           "L1N2  a < b\n"
                           "<b>&  x\n"
                           "film  yy")
    page, scored = words._repr_html_(), TABLE._repr_html_()
    assert "span" not in page and "2.3" not in page
    assert page.count("<td") == 4 and "&lt;b&gt;&amp;</td>" in page and "span" in scored
