"""The store of tokenized examples returns what was stored, complete or not at all."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afintro.data.batch import Example
from afintro.data.example_store import DamagedStore, ExampleStore, StoredExamples, open_store
from afintro.data.text import Draft, chat, encode_answer, encode_prompt, token_ids, tokenizer_hash
from afintro.errors import UserError

DRAFTS = [
    Draft(
        f"u{i}", f"s{i // 2}", "ab"[i % 3 == 0], "System ü.", f"Question {i} \u2028 \U0001f600" * (1 + i % 4), f"Answer {i}",
        None if i % 2 else "copied", "t" * (i % 2), {"alpha": 0.1 * i, "layer": i},
    )
    for i in range(23)
]  # fmt: skip


def finish(draft: Draft, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> Example:
    return Example(
        draft.uid, draft.scenario_id, draft.question_type, draft.prompt, draft.answer, prompt_ids, answer_ids,
        copy_answer=draft.copy_answer, twins=draft.twins, notes=draft.notes,
    )  # fmt: skip


def made(folder: Path, tokenizer: Any, drafts: Any = DRAFTS, **more: Any) -> ExampleStore:
    return open_store(folder, tokenizer, lambda: drafts, lambda: {"n": len(drafts)}, **more)


def refuse() -> Any:
    raise AssertionError("it is there already")


def test_what_goes_in_comes_out(tmp_path: Path, tokenizer: Any) -> None:
    store = made(tmp_path / "a", tokenizer)
    assert (len(store), store.facts) == (23, {"n": 23})
    for index, draft in enumerate(DRAFTS):
        found, prompt, answer = store.read(index)
        assert found == draft
        assert list(prompt) == encode_prompt(tokenizer, chat(draft.system, draft.prompt))
        assert list(answer) == encode_answer(tokenizer, draft.answer)
        assert store.sizes[index].tolist() == [len(prompt), len(answer)]
        assert store.kind_names[store.kinds[index]] == draft.question_type
    again = open_store(tmp_path / "a", tokenizer, refuse, refuse)
    assert [again.read(i) for i in range(23)] == [store.read(i) for i in range(23)]
    assert {path.suffix for path in (tmp_path / "a").iterdir()} <= {".json", ".bin", ".npy"}


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "one", tokenizer)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    made(tmp_path / "two", tokenizer, chunk=2)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_views(tmp_path: Path, tokenizer: Any) -> None:
    examples = StoredExamples(made(tmp_path / "a", tokenizer), finish)
    expected = [finish(draft, *token_ids(tokenizer, draft)) for draft in DRAFTS]
    assert list(examples) == expected
    assert examples[2:5] == expected[2:5]
    assert examples[-1] == expected[-1]
    with pytest.raises(IndexError):
        examples[23]
    chosen = examples.of_kinds(lambda kind: kind == "b")
    assert [e.uid for e in chosen] == [d.uid for d in DRAFTS if d.question_type == "b"]
    assert chosen.sizes.tolist() == [[len(e.prompt_ids), len(e.answer_ids)] for e in chosen]
    taken = chosen.take(np.array([3, 0], np.int32))
    assert list(taken) == [chosen[3], chosen[0]]
    assert examples.of_kinds(lambda kind: True) is examples
    assert len(taken.of_kinds(lambda kind: kind == "a")) == 0
    assert [e.uid for e in taken.of_kinds(lambda kind: kind == "b")] == [e.uid for e in taken]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("ids.bin", cut), ("rows.bin", cut), ("rows.bin", Path.unlink), ("sizes.npy", flip), ("ends.npy", flip),
        ("kinds.npy", flip), ("checks.npy", cut), ("store.json", cut), ("store.json", Path.unlink),
        ("store.json", lambda path: path.write_text("[]")),
    ],
)  # fmt: skip
def test_a_damaged_store_is_made_again(tmp_path: Path, tokenizer: Any, name: str, harm: Any) -> None:
    made(tmp_path / "a", tokenizer)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    harm(tmp_path / "a" / name)
    with pytest.raises(DamagedStore):
        ExampleStore(tmp_path / "a")
    assert made(tmp_path / "a", tokenizer).read(3)[0] == DRAFTS[3]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


@pytest.mark.parametrize("name", ["ids.bin", "rows.bin"])
def test_a_changed_byte_of_an_example_is_noticed_when_it_is_read(tmp_path: Path, tokenizer: Any, name: str) -> None:
    store = made(tmp_path / "a", tokenizer)
    flip(tmp_path / "a" / name)
    assert store.read(0)[0] == DRAFTS[0]
    with pytest.raises(UserError, match="example 22"):
        store.read(22)


def test_nothing_is_left_where_a_draft_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    seen = []

    def check(draft: Draft, prompt_ids: tuple[int, ...]) -> None:
        seen.append(list(prompt_ids) == encode_prompt(tokenizer, chat(draft.system, draft.prompt)))
        if draft.uid == "u20":
            raise UserError("is wrong", where=draft.uid, remedy="mend it")

    with pytest.raises(UserError, match="u20"):
        made(tmp_path / "a", tokenizer, check=check)
    assert seen == [True] * 21
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def build_without_end(folder: Path, tokenizer: Any) -> None:
    def drafts() -> Iterator[Draft]:
        while True:
            time.sleep(0.01)
            yield DRAFTS[0]

    open_store(folder, tokenizer, drafts, dict)


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_is_read(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "a"
    process = multiprocessing.get_context("fork").Process(target=build_without_end, args=(folder, tokenizer))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob(".building-a/*.bin")):
        time.sleep(0.02)
    process.kill()
    process.join(timeout=60)
    assert list(tmp_path.glob(".building-a/*.bin"))
    assert not folder.exists()
    assert len(made(folder, tokenizer)) == 23
    assert not list(tmp_path.glob(".building-a"))


def test_the_hash_of_a_tokenizer_knows_its_template_and_vocabulary(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    known = tokenizer_hash(loaded)
    loaded("some text")
    assert tokenizer_hash(loaded) == known == tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path))
    loaded.chat_template += " "
    assert tokenizer_hash(loaded) != known
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["zzz"])
    assert tokenizer_hash(other) != known


def test_half_characters_survive(tmp_path: Path, tokenizer: Any) -> None:
    draft = replace(DRAFTS[0], uid="half \ud800")
    assert made(tmp_path / "a", tokenizer, [draft]).read(0)[0] == draft
