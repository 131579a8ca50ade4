"""What a chat template reads beside the turns is fixed when a tokenizer is loaded: date and settings."""

import copy
import datetime

import pytest

from afintro.data.text import chat, encode_prompt, render, template_hash, tokenizer_hash
from afintro.errors import UserError
from afintro.lm import template_inputs
from afintro.lm.load import load_tokenizer
from afintro.lm.template_inputs import date_of, fix_inputs, today

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
# As of Llama 3.1: a date of one's own, today's date, or a default.
DATED = (
    "{{ bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}Today Date: {{ date_string }}\n" + TURNS
)
# As of Qwen3, with a macro as of GPT-OSS.
THINKS = (
    "{% macro end() %}{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endmacro %}"
    + TURNS
    + "{{ end() }}"
)


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Return a function that saves the tokenizer with a template."""

    def save(template):
        changed = copy.deepcopy(tokenizer)
        changed.chat_template = template
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        changed.save_pretrained(folder)
        return str(folder)

    return save


def test_golden_of_a_date(saved):
    tokenizer = load_tokenizer(saved(DATED), date="2026-03-05")
    assert render(tokenizer, chat("S", "U")) == "<|bos|>Today Date: 05 Mar 2026\n[system]S[user]U"
    assert date_of(tokenizer) == "2026-03-05"


def test_the_date_is_in_every_hash_and_in_the_saved_tokenizer(saved, tmp_path):
    directory = saved(DATED)
    first, again, later = (load_tokenizer(directory, date=day) for day in ("2026-03-05", "2026-03-05", "2026-03-06"))
    assert template_hash(first) == template_hash(again) != template_hash(later)
    assert tokenizer_hash(first) == tokenizer_hash(again) != tokenizer_hash(later)
    first.save_pretrained(tmp_path / "worker")  # as for the processes that tokenize
    worker = load_tokenizer(str(tmp_path / "worker"), date="2030-01-01")
    assert encode_prompt(worker, chat("S", "U")) == encode_prompt(first, chat("S", "U"))
    assert date_of(worker) == "2026-03-05"


def test_a_run_has_one_date_though_the_day_ends(saved, monkeypatch):
    days = iter([datetime.date(2026, 12, 31), datetime.date(2027, 1, 1)])

    class Calendar(datetime.date):
        @classmethod
        def today(cls):
            return next(days)

    monkeypatch.setattr(template_inputs, "date", Calendar)
    today.cache_clear()
    assert [date_of(load_tokenizer(saved(DATED))) for _ in range(2)] == ["2026-12-31"] * 2
    today.cache_clear()
    assert date_of(load_tokenizer(saved(DATED))) == "2027-01-01"
    today.cache_clear()


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %B %d, %Y", "%-d/%-m/%y", "%H:%M", "%j", "%F", "none"])
@pytest.mark.parametrize("call", ["strftime_now({!r})", "strftime_now({!r} ~ '')"])
def test_any_format_of_a_date(tokenizer, form, call):
    """Also a format that the template puts together, and a template whose first lines are white space."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "\n  {% if true %}{{ " + call.format(form) + " }}{% endif %}" + TURNS
    fix_inputs(changed, None, "2026-03-05")
    assert render(changed, chat("S", "U")) == f"\n{datetime.date(2026, 3, 5).strftime(form)}[system]S[user]U"


def test_a_template_without_date_and_settings_stays_as_it_is(saved, tokenizer):
    for template in (TURNS, {"default": TURNS, "tool_use": DATED}, None):
        loaded = load_tokenizer(saved(template), date="2026-03-05")
        assert loaded.chat_template == template
        assert date_of(loaded) is None


def test_golden_of_settings(saved):
    messages = chat("S", "U")
    directory = saved(THINKS)
    rendered = [
        render(load_tokenizer(directory, chat_template_kwargs=settings), messages)
        for settings in (None, {}, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    assert rendered == [*["[system]S[user]U"] * 3, "[system]S[user]U<think></think>"]


@pytest.mark.parametrize(
    "value",
    [True, False, None, 3, -2.5, 1e30, 'it\'s "so" %} {{ x }} \\ ü 🙂\n', ["a", None], {"a": [1, {"b": False}]}],
)
def test_settings_of_any_json_type(tokenizer, value):
    """A setting in the template is what it is as an argument of apply_chat_template."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ effort | tojson }}{{ effort is none }}" + TURNS
    messages = chat("S", "U")
    expected = changed.apply_chat_template(messages, tokenize=False, effort=value)
    fix_inputs(changed, {"effort": value}, None)
    assert render(changed, messages) == expected


def test_newer_settings_win_over_those_of_a_saved_tokenizer(saved, tmp_path):
    """An explainer's base that is written beside its adapter has the explainer's settings in its template."""
    messages = chat("S", "U")
    settings = {"enable_thinking": False, "effort": "low"}
    load_tokenizer(saved(THINKS + "{{ effort }}"), chat_template_kwargs=settings).save_pretrained(tmp_path / "base")
    again = [
        render(load_tokenizer(str(tmp_path / "base"), chat_template_kwargs=newer), messages)
        for newer in (None, {"enable_thinking": True}, {"enable_thinking": True, "effort": "high"})
    ]
    assert again == ["[system]S[user]U<think></think>low", "[system]S[user]Ulow", "[system]S[user]Uhigh"]


def test_the_order_of_settings_does_not_count(saved):
    directory = saved(THINKS + "{{ effort }}")
    orders = ({"enable_thinking": False, "effort": "low"}, {"effort": "low", "enable_thinking": False})
    first, second = (load_tokenizer(directory, chat_template_kwargs=settings) for settings in orders)
    assert template_hash(first) == template_hash(second)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("nan")]}, {"set"}])
def test_a_setting_that_is_no_json_value_is_refused_by_name(tokenizer, value):
    """Jinja would read nan as a name that is not defined."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ effort }}" + TURNS
    with pytest.raises(UserError, match="JSON") as refused:
        fix_inputs(changed, {"effort": value}, None)
    assert refused.value.where == "chat_template_kwargs, effort"


def test_a_date_of_ones_own(saved):
    """Llama's template takes a date as a setting, and then prints no other."""
    tokenizer = load_tokenizer(saved(DATED), chat_template_kwargs={"date_string": "1 May 1900"}, date="2026-03-05")
    assert render(tokenizer, chat("S", "U")).startswith("<|bos|>Today Date: 1 May 1900\n")


@pytest.mark.parametrize("name", ["enable_thinkin", "thinking", "content", "messages", "add_generation_prompt"])
def test_a_setting_that_the_template_does_not_read_is_refused_by_name(saved, name):
    directory = saved(THINKS)
    with pytest.raises(UserError, match=name) as refused:
        load_tokenizer(directory, chat_template_kwargs={"enable_thinking": False, name: 1})
    assert "chat_template_kwargs" in refused.value.where
    assert directory in refused.value.where


def test_settings_for_another_base_are_left_out_where_nothing_reads_them(saved):
    settings = {"enable_thinking": False, "effort": "low"}
    known = load_tokenizer(saved(THINKS), chat_template_kwargs=settings, known_only=True)
    assert render(known, chat("S", "U")).endswith("<think></think>")
    assert "effort" not in known.chat_template
    assert load_tokenizer(saved(None), chat_template_kwargs=settings, known_only=True).chat_template is None
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(saved(None), chat_template_kwargs=settings)


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b'] | random }}", "{% set x = lipsum() %}"])
def test_a_template_that_draws_is_refused(saved, drawn):
    with pytest.raises(UserError, match="random"):
        load_tokenizer(saved(TURNS + drawn))
    load_tokenizer(saved(TURNS + "random lipsum() {{ '| random' }}"))


def test_what_is_no_date_is_refused(saved):
    with pytest.raises(UserError, match="yesterday") as refused:
        load_tokenizer(saved(DATED), date="yesterday")
    assert refused.value.where == "prompt_date"
