from itertools import pairwise

import pytest
import yaml

from afintro.data.yaml_text import load_yaml

LETTERS = "abcdefghijklmnopqrstuvw"
DOUBLED = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{m}, *{m}]\n" for m, n in pairwise(LETTERS))


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "outer: {a: 1, a: 2}\n", '{"a": 1, "a": 1}', "- {1: x, 1: y}\n"]
)
def test_key_named_twice_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="twice"):
        load_yaml(text)


def test_plain_values_are_read() -> None:
    assert load_yaml("a: {x: 1}\nb: [1, {x: 2}]\n") == {"a": {"x": 1}, "b": [1, {"x": 2}]}


def test_merged_mapping_may_be_overwritten() -> None:
    assert load_yaml("base: &base {a: 1, b: 2}\nown: {<<: *base, a: 3}\n")["own"] == {"a": 3, "b": 2}


def test_no_object_is_made() -> None:
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_bytes_with_a_byte_order_mark(encoding):
    assert load_yaml("{a: naïve}".encode(encoding)) == {"a": "naïve"}
    with pytest.raises(yaml.YAMLError):
        load_yaml(b"a: caf\xe9")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (DOUBLED, "aliases"),
        ("a: &a [*a]", "alias"),
        ("[" * 100_000, "deep"),
    ],
)  # fmt: skip
def test_aliases_that_make_a_huge_value_are_refused(text: str, word: str) -> None:
    with pytest.raises(yaml.YAMLError, match=word):
        load_yaml(text)


def test_aliases_are_read_where_they_stand() -> None:
    assert load_yaml("a: &a {x: [1, 2]}\nb: [*a, *a]") == {"a": {"x": [1, 2]}, "b": [{"x": [1, 2]}] * 2}
