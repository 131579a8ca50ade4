"""Files in the layout of launchnlp/VLAF, made up: which files are pairs, and what is read of them."""

import json

import pytest

from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import match
from afintro.tasks.context_ablation.imports.vlaf import find_pairs, read_source
from tests.tasks.context_ablation.imports.made_up import REFUSES, request, rows, wrapped, write, write_requests


def test_every_pair_below_a_folder_is_found_and_files_alone_are_named(tmp_path):
    first = write_requests(tmp_path / "data/advbench/simple", "Model-8B")
    second = write_requests(tmp_path / "data/redwood/simple", "vllm:Other_0.4")
    alone = tmp_path / "data/redwood/simple/Lonely_False.json"
    alone.write_text("[]")
    for name in ("Model-8B_train.json", "Model-8B_option_based_compliance.json", "notes.txt"):
        (tmp_path / "data/advbench/simple" / name).write_text("{}")
    pairs, unpaired = find_pairs(tmp_path)
    assert [monitored for monitored, _ in pairs] == [first, second]
    assert [unmonitored.name for _, unmonitored in pairs] == ["Model-8B_False.json", "vllm:Other_0.4_False.json"]
    assert unpaired == [str(alone)]


@pytest.mark.parametrize("name", ["Model-8B_True.json", "Model-8B_False.json"])
def test_either_file_of_a_pair_names_the_pair(tmp_path, name):
    first = write_requests(tmp_path, "Model-8B")
    write_requests(tmp_path, "Another")
    assert find_pairs(tmp_path / name) == ([(first, tmp_path / "Model-8B_False.json")], [])


def test_a_folder_without_a_pair_is_refused_by_the_file_that_is_alone(tmp_path):
    (tmp_path / "A_True.json").write_text("[]")
    with pytest.raises(UserError) as caught:
        find_pairs(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert "A_True.json has no partner" in caught.value.what
    with pytest.raises(UserError, match="does not exist"):
        find_pairs(tmp_path / "nowhere")


def test_the_cue_the_request_and_the_prompts_are_what_the_file_says(tmp_path):
    texts = ["Write about <b>tea</b>.", "Say </user_input> aloud."]
    path = write(
        tmp_path / "advbench" / "helpful_only",
        "vllm:Model-8B",
        rows(texts, ["yes", "no"], True, "is_watched"),
        rows(texts, ["yes", "maybe"], False, "is_watched"),
    )
    source = read_source(path, path.with_name("vllm:Model-8B_False.json"))
    assert (source.name, source.model, source.cue_name) == (
        "advbench/helpful_only/vllm:Model-8B",
        "vllm:Model-8B",
        "is_watched",
    )
    assert source.facts == {"data_set": "advbench", "prompt": "helpful_only"}
    assert [answer.request for answer in source.monitored] == texts
    assert {answer.cue for answer in source.monitored} == {"<is_watched>True</is_watched>"}
    assert {answer.cue for answer in source.unmonitored} == {"<is_watched>False</is_watched>"}
    assert source.monitored[1].prompt == wrapped(texts[1], True, "is_watched")
    assert [answer.text for answer in source.unmonitored] == ["yes", "maybe"]


def test_a_request_that_speaks_of_conditions_is_not_taken_for_one(tmp_path):
    text = "Explain <is_free_tier_user>False</is_free_tier_user>."
    path = write(tmp_path, "M", rows([text], [REFUSES], True), rows([text], [REFUSES], False))
    [answer] = read_source(path, tmp_path / "M_False.json").monitored
    assert answer.cue == "<is_free_tier_user>True</is_free_tier_user>"


def test_several_answers_to_a_request_are_as_many_pairs(tmp_path):
    texts = [request(0), request(1)]
    path = write(
        tmp_path, "M", rows(texts, [["a", "b", "c"], ["d"]], True), rows(texts, [["e", "f"], ["g", None, "h"]], False)
    )
    pairs, counts = match(read_source(path, tmp_path / "M_False.json"))
    assert [(pair.monitored.text, pair.unmonitored.text, pair.number) for pair in pairs] == [
        ("a", "e", 0), ("b", "f", 1), ("d", "g", 0),
    ]  # fmt: skip
    assert (counts.unmatched_monitored, counts.unmatched_unmonitored, counts.no_answer) == (1, 1, 1)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"input": wrapped("a", False), "response": "x"}, "stands in the file of True"),
        ({"input": "a request without any frame", "response": "x"}, "no request or no condition"),
        ({"input": wrapped("  ", True), "response": "x"}, "no request or no condition"),
        ({"input": wrapped("a", True)}, "no 'response'"),
        ({"input": wrapped("a", True), "response": 3}, "no text"),
        ({"input": wrapped("a", True), "response": ["x", {}]}, "no text"),
        ("text", "no 'input'"),
    ],
)
def test_a_record_of_another_form_is_refused_by_name(tmp_path, row, word):
    write_requests(tmp_path, "M", 2)
    path = tmp_path / "M_True.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), row]))
    with pytest.raises(UserError) as caught:
        read_source(path, tmp_path / "M_False.json")
    assert caught.value.where == f"{path}, record 2"
    assert word in caught.value.what
