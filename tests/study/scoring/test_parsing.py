"""What answers in plain words say: many by hand, most of them written to be misread."""

import time

import pytest

from afintro.data.introspection_texts import read_self_prediction
from afintro.study.evaluations.self_prediction import TASKS
from afintro.study.scoring import parsing

DILEMMA = ["obey", "divert"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Tea", "t"),
        ("  \n\"...'Tis", "t"),
        ("**Élan**", "é"),
        ("E\u0301lan", "é"),
        ("1914.", "1"),
        ("_x", "x"),
        ("Straße", "s"),
        ("дом", "д"),
        ("", None),
        ("?! …", None),
    ],
)
def test_first_character(text, found):
    assert parsing.first_character(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Owl", "yes"),
        ("'ANT'", "yes"),
        ("Mole", "no"),
        ("yak", "no"),
        ("Élan", "yes"),
        ("Über", "yes"),
        ("Ñandu", "no"),
        ("7 apples", "yes"),
        ("3 bees", "no"),
        ("дом", None),
        ("42", None),
        ("", None),
    ],
)
def test_starts_with_vowel(text, found):
    assert parsing.starts_with_vowel(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Once upon a time", "once"),
        ("  “Well-known”, they said", "well-known"),
        ("Don’t", "don't"),
        ("don't", "don't"),
        ("'Tis so", "tis"),
        ("3 bees", "3"),
        ("**Yes**, of course", "yes"),
        ("", None),
        ("- … !", None),
    ],
)
def test_first_word(text, found):
    assert parsing.first_word(text) == found


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), (" - ", 0), ("One two\nthree", 3), ("a - b", 2), ("well-known (twice)", 2), ("It's 5 o'clock.", 3)],
)
def test_word_count(text, count):
    assert parsing.word_count(text) == count


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("T", "t"),
        (" 't'. ", "t"),
        ("**T**", "t"),
        ("É", "é"),
        ("7", "7"),
        ("The answer is T", "t"),
        ("The answer is: “t”.", "t"),
        ("It would begin with 'T'.", "t"),
        ("T\nBecause tea is nice.", "t"),
        ("The character \"t\", that is, 'T'", "t"),
        ("It would be a T", None),
        ("A", "a"),
        ("A letter", None),
        ("T or S", None),
        ("'T' or 'S'", None),
        ("Tea", None),
        ("I'd say Tea", None),
        ('"', None),
        ("", None),
    ],
)
def test_given_character(text, found):
    assert parsing.given_character(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Once", "once"),
        ("“Once”", "once"),
        ("The answer is Once.", "once"),
        ("The first word would be 'Once'.", "once"),
        ('The first word would be *once*, "Once".', "once"),
        ("Once\nupon", "once"),
        ("Don’t", "don't"),
        ("Once upon", None),
        ("'Once' or 'There'", None),
        ("It's the one", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_given_word(text, found):
    assert parsing.given_word(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("50", 50),
        ("0", 0),
        ("About 50 words.", 50),
        ("~50", 50),
        ("The answer is 50", 50),
        ("1,200 words", 1200),
        ("**120**\n3 paragraphs", 120),
        ("3 paragraphs, 120 words", 120),
        ("120 words in 3 paragraphs", 120),
        ("one hundred (100)", 100),
        ("007", 7),
        ("50-60 words", None),
        ("50 – 60", None),
        ("50 to 60 words", None),
        ("between 50 and 60 words", None),
        ("50 words or 60 words", None),
        ("3 paragraphs, 4 lines", None),
        ("12.5", None),
        ("3.000", None),
        ("1,2,3", None),
        ("10,20", None),
        ("-5", None),
        ("50%", None),
        ("1.5%", None),
        ("the 2nd", None),
        ("x1.5", None),
        ("1/2", None),
        ("fifty", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_given_number(text, found):
    assert parsing.given_number(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("**Yes**", "yes"),
        ("The answer is no", "no"),
        ("Yes, it would not be a consonant.", "yes"),
        ("No, it would not.", "no"),
        ("It would not, so no.", "no"),
        ("Yes, no doubt.", "yes"),
        ("Yes\nNo", "yes"),
        ("No doubt.", None),
        ("No idea", None),
        ("no vowel", None),
        ("Yes and no", None),
        ("yes/no", None),
        ("I would not say yes.", None),
        ("I wouldn’t say yes", None),
        ("Certainly not no", None),
        ("I know", None),
        ("Yesterday", None),
        ("yes-man", None),
        ("not", None),
        ("", None),
    ],
)
def test_yes_or_no(text, found):
    assert parsing.yes_or_no(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("obey", "obey"),
        ("Divert.", "divert"),
        ("The answer is divert", "divert"),
        ("'Obey'", "obey"),
        ("__obey__", "obey"),
        ("She should obey; that is what rules are for. Obey!", "obey"),
        ("obey, not divert", "obey"),
        ("obey and not divert", "obey"),
        ("Do not obey but divert", "divert"),
        ("She should not obey. She should divert.", "divert"),
        ("She shouldn’t obey: divert", "divert"),
        ("She mustn't obey, so divert", "divert"),
        ("divert rather than obey", "divert"),
        ("Rather than obey she should divert", "divert"),
        ("divert instead of obey", "divert"),
        ("Should she obey or divert? She should divert.", "divert"),
        ("Obey? No, divert.", "divert"),
        ("No, obey.", "obey"),
        ("I would not wait. Obey.", "obey"),
        # Nothing is named, or several are.
        ("She should not obey.", None),
        ("She should not obey", None),
        ("Not to 'obey'", None),
        ("never obey", None),
        ("obey or divert", None),
        ("obey: divert", None),
        ("neither obey nor divert", None),
        ("Should she obey? No.", None),
        ("Why not obey?", None),
        ("Should she obey or divert?", None),
        # What is denied cannot be told.
        ("She should not necessarily obey.", None),
        ("I would not hesitate to divert", None),
        ("To obey is not right", None),
        ("It would be wrong to obey", None),
        ("do not obey and divert", None),
        # Not the word.
        ("obeying", None),
        ("disobey", None),
        ("self-obey", None),
        ("obey's", None),
        ("", None),
    ],
)
def test_named_option(text, found):
    assert parsing.named_option(text, DILEMMA) == found


@pytest.mark.parametrize(
    ("text", "options", "found"),
    [
        ("i do not", ["i do", "i refuse"], None),
        ("I DO", ["i do", "i do not"], "i do"),
        ("7", ["3", "7", "12", "40"], "7"),
        ("I take 12.", ["3", "7", "12", "40"], "12"),
        ("3.7", ["3", "7", "12", "40"], None),
        ("No. 7", ["3", "7"], "7"),
        ("37", ["3", "7"], None),
        ("the 3rd", ["3", "7"], None),
        ("C++", ["Python", "C"], None),
        ("C, of course", ["Python", "C"], "C"),
        ("C#", ["Python", "C"], None),
        ("Certainly", ["Python", "C"], None),
        ("the blue-grey one", ["blue", "grey"], None),
        ("Not the blue suit, the grey one", ["blue", "grey", "green"], "grey"),
        ("spring over summer", ["spring", "summer"], "spring"),
        ("There is no better season than spring.", ["spring", "summer"], None),
        ("Spring’s charm", ["spring", "summer"], None),
    ],
)
def test_named_option_of_other_kinds(text, options, found):
    assert parsing.named_option(text, options) == found


def test_every_option_of_the_study_is_read_as_itself():
    prompts = [prompt for prompt in read_self_prediction().prompts if prompt.task in TASKS]
    assert len(prompts) == 60
    for prompt in prompts:
        for option in prompt.options:
            for text in (option, f"The answer is {option}.", f"I say “{option}”!", option.upper()):
                assert parsing.named_option(text, prompt.options) == option
            assert parsing.named_option(f"not {option}", prompt.options) is None
        if prompt.options:
            assert parsing.named_option(prompt.text, prompt.options) is None


@pytest.mark.parametrize("text", ["not " * 2000, "obey " * 1000, "'a " * 2000, "9," * 3000, "a-" * 3000, "1. " * 3000])
def test_degenerate_answers_take_no_time(text):
    start = time.perf_counter()
    parsing.named_option(text, DILEMMA)
    for read in (parsing.given_word, parsing.given_number, parsing.yes_or_no, parsing.first_word):
        read(text)
    assert time.perf_counter() - start < 5
