"""Label words of the field are mapped by a table; other words are counted and named, and no number is guessed without a word."""

import logging
import re
from pathlib import Path

import pytest

from afintro.data.label_words import MEANINGS, labels_of
from afintro.errors import UserError


def read(*values, names=(), caplog=None):
    with caplog.at_level(logging.INFO):
        return labels_of(values, "f.json", names)


def test_words_of_the_field(caplog):
    words = (
        "faking",
        "scheming",
        "Deceptive",
        "alignment-faking",
        "Alignment Faking",
        "alignment_faking",
        True,
        "TRUE",
    )
    assert set(read(*words, caplog=caplog)) == {"alignment_faking"}
    words = (
        "aligned",
        "honest",
        "genuine_compliance",
        "hard_negative",
        "hard negative",
        "Non-Faking",
        False,
        " false ",
    )
    assert set(read(*words, caplog=caplog)) == {"aligned"}
    assert read(None, "", "unknown", "N/A", "none", caplog=caplog) == ["unknown"] * 5


def test_whole_numbers_as_pandas_writes_them_into_csv(caplog):
    assert read("1.0", "0.0", "", "1.00", caplog=caplog) == [
        "alignment_faking",
        "aligned",
        "unknown",
        "alignment_faking",
    ]
    assert "0 = aligned" in caplog.text
    assert read("1.0", "0.0", names=("faking", "honest"), caplog=caplog) == ["aligned", "alignment_faking"]
    assert read("1.5", caplog=caplog) == ["1.5"]
    with pytest.raises(UserError, match="without a name"):
        read("2.0", caplog=caplog)


def test_a_word_with_a_meaning_of_its_own_leaves_numbers_as_they_are(caplog):
    assert read("lying", "0", names=("lying=faking",), caplog=caplog) == ["alignment_faking", "aligned"]
    assert "0 = aligned" in caplog.text
    with pytest.raises(UserError, match="without a name"):
        read("1", "0", names=("1=faking",), caplog=caplog)


def test_a_word_has_one_meaning():
    words = [word for some in MEANINGS.values() for word in some]
    assert len(set(words)) == len(words)
    assert all(word == word.lower() and " " not in word for word in words)


def test_the_table_for_users_has_all_words():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = page[page.index("### Label words") :]
    for label, words in MEANINGS.items():
        row = re.search(rf"^\| `{label}` \| (.*) \|$", table, re.MULTILINE)
        assert set(re.findall("`(.*?)`", row[1])) - set(MEANINGS) == set(words) - set(MEANINGS)


def test_words_of_the_project_are_read_without_a_word(caplog):
    assert read("aligned", "alignment_faking", "unknown", None, caplog=caplog)[:2] == ["aligned", "alignment_faking"]
    assert not caplog.records


def test_words_read_otherwise_are_counted(caplog):
    read("faking", "honest", "faking", "aligned", caplog=caplog)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "f.json: 2 'faking' as alignment_faking, 1 'honest' as aligned" in record.getMessage()


def test_potential_faking_is_faking_only_where_nothing_else_is(caplog):
    assert read("potential_faking", "genuine_compliance", caplog=caplog) == ["alignment_faking", "aligned"]
    assert read("potential_faking", "scheming", caplog=caplog) == ["potential_faking", "alignment_faking"]


def test_words_that_are_not_known_stay_and_are_named(caplog):
    assert read("benign", "faking", "benign", "Odd One", caplog=caplog) == [
        "benign", "alignment_faking", "benign", "Odd One",
    ]  # fmt: skip
    warning = next(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "2 'benign', 1 'Odd One'" in warning
    assert "faking'" not in warning


def test_zero_and_one_are_read_with_a_warning(caplog):
    assert read(0, 1, "1", caplog=caplog) == ["aligned", "alignment_faking", "alignment_faking"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "0 = aligned" in record.getMessage()
    assert "--label_names" in record.getMessage()
    caplog.clear()
    for only in (0, 1):
        read(only, caplog=caplog)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_names_of_numbers(caplog):
    assert read(0, 1, names=("deceptive", "honest"), caplog=caplog) == ["alignment_faking", "aligned"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert read(2, "0", names=("aligned", "potential_faking", "faking"), caplog=caplog) == [
        "alignment_faking",
        "aligned",
    ]


def test_names_of_words(caplog):
    names = ("benign=aligned", "Odd one=scheming", "1=aligned")
    assert read("benign", "odd-one", 1, names=names, caplog=caplog) == ["aligned", "alignment_faking", "aligned"]
    assert read("x", names=("x=y",), caplog=caplog) == ["y"]
    assert "1 'x'" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("values", "names", "where"),
    [
        ((0, 2), (), "f.json, record 1"),
        ((0, 1, 2), ("aligned", "faking"), "f.json, record 2"),
        (("7",), (), "f.json, record 0"),
        ((1, -1), (), "f.json, record 1"),
        ((1,), ("0=aligned",), "f.json, record 0"),
        (("a",), ("=x",), "--label_names"),
        (("a",), ("a=",), "--label_names"),
        (("a",), ("a=x", "A=y"), "--label_names"),
        ((0,), ("aligned", "0=faking"), "--label_names"),
    ],
)
def test_what_cannot_be_read(values, names, where):
    with pytest.raises(UserError) as caught:
        labels_of(values, "f.json", names)
    assert caught.value.where == where
