"""Language models as judges: grades, the reply cache, a model run here, and an endpoint with all its ways to fail."""

import itertools
import json
import logging
import multiprocessing
import pickle
import shutil
import sqlite3
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from filelock import FileLock
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import afintro.evaluation.lm_judges as lm_judges
from afintro.errors import UserError
from afintro.evaluation.judges import Rubric
from afintro.evaluation.lm_judges import EndpointJudge, LocalJudge
from afintro.servers.reply_cache import ReplyCache

KEY = "sk-never-to-be-written-down"
SHORT = Rubric("short", "{reference}|{candidate}")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache of the test's own, and no endpoint of the person who runs it."""
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return tmp_path / "cache"


def pairs_of(*candidates):
    return [("r", candidate) for candidate in candidates]


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The cache


def test_cache_keeps_raw_replies_by_judge_and_prompt(cache_folder):
    assert not cache_folder.exists()
    with ReplyCache(["one", 1]) as cache:
        assert cache.read(["a", "b"]) == {}
        cache.write("a", "Score: 4\n")
        cache.write("a", "Scöre: 5\n")
        cache.write("c", "")
    with ReplyCache(["one", 1]) as cache:
        assert cache.read(["a", "b", "c"]) == {"a": "Scöre: 5\n", "c": ""}
    for other in (["one", 2], ["one"], ["one", "1"]):
        with ReplyCache(other) as cache:
            assert cache.read(["a"]) == {}
    with sqlite3.connect(cache_folder / "judges.sqlite") as connection:  # others read on while one writes
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_cache_that_is_no_database_is_a_user_error(cache_folder):
    cache_folder.mkdir()
    (cache_folder / "judges.sqlite").write_text("not a database, but longer than a header would be" * 9)
    with pytest.raises(UserError, match="AFINTRO_CACHE"), ReplyCache(["x"]) as cache:
        cache.read(["a"])


def write_often(name):
    for i in range(5):
        with ReplyCache([name]) as cache:
            cache.write(str(i), name)


def test_processes_write_to_one_cache_at_once():
    names = [f"p{n}" for n in range(8)]
    workers = [multiprocessing.get_context("fork").Process(target=write_often, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    for name in names:
        with ReplyCache([name]) as cache:
            assert len(cache.read(["0", "1", "2", "3", "4"])) == 5


def test_a_cache_is_opened_by_one_process_at_a_time(cache_folder):
    """Without the lock, one of twelve processes that made the file together failed in every fourth trial."""
    cache_folder.mkdir()
    with ThreadPoolExecutor() as pool:
        with FileLock(cache_folder / "judges.sqlite.lock"):
            writing = pool.submit(write_often, "x")
            with pytest.raises(TimeoutError):
                writing.result(0.3)
        writing.result(20)


def test_threads_share_a_cache():
    with ReplyCache(["threads"]) as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.write(str(i), "t"), range(60)))
        assert len(cache.read([str(i) for i in range(60)])) == 60


# A model run here


def crc_grade(reply):
    return 1 + zlib.crc32(reply.encode()) % 5


def test_local_judge_reads_the_greedy_reply_to_each_prompt(model_directories, tokenizer, plain_model, monkeypatch):
    """Against transformers' own generation, one prompt at a time; the grade stands for the whole text of the reply."""
    monkeypatch.setattr(lm_judges, "parse_grade", crc_grade)
    pairs = [("reference", "a" * n) for n in (3, 40, 1, 17, 17, 90)] + [("b {candidate}", "c"), ("x", "y")]
    model = plain_model(model_directories["llama"])
    expected = []
    for pair in pairs:
        messages = [{"role": "user", "content": SHORT.fill(pair)}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        tokens = model.generate(ids, max_new_tokens=7, do_sample=False)[0, ids.shape[1] :]
        expected.append((crc_grade(tokenizer.decode(tokens, skip_special_tokens=True)) - 1) / 4)
    judge = LocalJudge(model_directories["llama"], batch_size=3, max_new_tokens=7)
    assert judge.score(pairs, SHORT) == expected
    assert len(set(expected)) > 1
    assert judge.name == "local:llama"


def test_local_judge_maps_grades_to_0_1(tmp_path, tokenizer):
    """A model without layers that matter: after the assistant's token it says "4", a special token, and stops."""
    four = tokenizer.encode("4", add_special_tokens=False)[0]
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False, **ids,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj, model.lm_head):
            weight.weight[:] = 0
        said = [prompt[-1], four, tokenizer.bos_token_id, tokenizer.eos_token_id]
        for before, after in itertools.pairwise(said):
            model.lm_head.weight[after] = model.model.embed_tokens.weight[before]
    model.save_pretrained(tmp_path / "four")
    tokenizer.save_pretrained(tmp_path / "four")
    assert LocalJudge(str(tmp_path / "four")).score(pairs_of("a", "b", "a"), SHORT) == [0.75] * 3


def counted(monkeypatch):
    """The prompts that reach the model."""
    asked, generate = [], lm_judges.generate_greedy
    monkeypatch.setattr(
        lm_judges,
        "generate_greedy",
        lambda model, prompts, **how: asked.extend(prompts) or generate(model, prompts, **how),
    )
    return asked


def test_a_judge_whose_context_is_shorter_than_its_prompt_gives_none_and_not_0(
    model_directories, tokenizer, monkeypatch, caplog
):
    """Known mistake: such prompts were cut, or scored 0. The boundary is exact: 512 tokens with the reply."""
    monkeypatch.setattr(lm_judges, "parse_grade", lambda reply: 5)
    asked = counted(monkeypatch)
    empty = tokenizer.apply_chat_template([{"role": "user", "content": "r|"}], add_generation_prompt=True)["input_ids"]
    fits = "x" * (512 - 10 - len(empty))
    judge = LocalJudge(model_directories["llama"], max_new_tokens=10)
    scores = judge.score(pairs_of(fits, f"{fits}x", "short", f"{fits}x", f"{fits}yy"), SHORT)
    assert scores == [1.0, None, 1.0, None, None]
    assert sorted(map(len, asked)) == [len(empty) + 5, 502]
    [warning] = warnings_in(caplog)
    assert "3 of 5" in warning
    assert "context of 512" in warning


def templated(directory, folder, template):
    """A copy of a model with another chat template."""
    shutil.copytree(directory, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_local_judge_with_settings_of_its_chat_template(model_directories, tmp_path, monkeypatch):
    """They are in the prompt, and replies with other settings are other replies."""
    asked = counted(monkeypatch)
    model = templated(
        model_directories["llama"], tmp_path / "m", "{{ messages[0].content }}{% if thinking is false %}!{% endif %}"
    )
    pairs = pairs_of("a<|eos|>")
    for settings in (None, {"thinking": False}, {"thinking": True}):
        LocalJudge(model, max_new_tokens=1, chat_template_kwargs=settings).score(pairs, SHORT)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert [tokenizer.decode(ids) for ids in asked] == ["r|a<|eos|>", "r|a<|eos|>!", "r|a<|eos|>"]
    assert all(tokenizer.eos_token_id not in ids for ids in asked)
    with pytest.raises(UserError, match="'thinkin'"):
        LocalJudge(model, chat_template_kwargs={"thinkin": 1}).score(pairs, SHORT)


def test_local_judge_whose_template_loses_the_question_is_refused(model_directories, tmp_path):
    model = templated(model_directories["llama"], tmp_path / "m", "{{ messages | length }}")
    with pytest.raises(UserError, match="leaves out") as refused:
        LocalJudge(model).score(pairs_of("a"), SHORT)
    assert model in refused.value.where


def test_local_judge_asks_equal_pairs_once_and_nothing_twice(model_directories, monkeypatch):
    monkeypatch.setattr(lm_judges, "parse_grade", crc_grade)
    asked = counted(monkeypatch)
    pairs = pairs_of("a", "b", "a", "a", "b")
    scores = LocalJudge(model_directories["llama"], max_new_tokens=3).score(pairs, SHORT)
    assert len(asked) == 2
    monkeypatch.setattr(lm_judges, "load_model", None)  # what is known needs no weights
    assert LocalJudge(model_directories["llama"], max_new_tokens=3, batch_size=1).score(pairs, SHORT) == scores
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("which", "changed"), [("llama", {"max_new_tokens": 4}), ("qwen3", {}), ("llama", {"dtype": "float64"})]
)
def test_another_model_or_setting_is_another_judge(model_directories, monkeypatch, which, changed):
    LocalJudge(model_directories["llama"], max_new_tokens=3).score(pairs_of("a"), SHORT)
    asked = counted(monkeypatch)
    LocalJudge(model_directories[which], **{"max_new_tokens": 3, **changed}).score(pairs_of("a"), SHORT)
    assert len(asked) == 1


def test_a_judge_by_the_name_of_an_embedded_model(model_directories, monkeypatch):
    monkeypatch.setattr(lm_judges, "parse_grade", crc_grade)
    pairs = pairs_of("a", "b")
    expected = LocalJudge(model_directories["llama"], max_new_tokens=3).score(pairs, SHORT)
    monkeypatch.setattr(lm_judges, "ensure_built", lambda name: {"toy": model_directories["llama"]}[name])
    judge = LocalJudge("toy", max_new_tokens=3)
    assert judge.name == "local:toy"
    assert judge.score(pairs, SHORT) == expected


def test_a_model_that_cannot_be_loaded_is_a_user_error(tmp_path):
    judge = LocalJudge(str(tmp_path / "nothing"))
    assert judge.score([]) == []
    with pytest.raises(UserError, match="nothing"):
        judge.score(pairs_of("a"))


# An endpoint


def answer(content="Score: 4", status=200, headers=(), **message):
    """An answer of the endpoint: status, body, headers."""
    body = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
        ],
    }  # fmt: skip
    return status, json.dumps(body).encode(), dict(headers)


def failure(status):
    """An error that quotes the key, as OpenAI's 401 does, and asks for the shortest wait."""
    return status, json.dumps({"error": {"message": f"bad key {KEY}"}}).encode(), {"retry-after-ms": "1"}


class Endpoint(ThreadingHTTPServer):
    """A server whose ``reply(candidate, attempt)`` gives the answer to each request; attempts count from 1."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = lambda candidate, attempt: answer()
        self.refuse = None  # the same, for answers that depend on the settings of the request
        self.asked = Counter()
        self.requests = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that has gone is none of the server's business."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        candidate = sent["messages"][-1]["content"].partition("|")[2]
        with self.server.lock:
            self.server.asked[candidate] += 1
            attempt = self.server.asked[candidate]
            self.server.requests.append((self.path, self.headers, sent))
        refuse = self.server.refuse
        status, body, headers = refuse(candidate, attempt, sent) if refuse else self.server.reply(candidate, attempt)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def test_endpoint_judge_asks_the_rubric_at_temperature_0(endpoint):
    endpoint.reply = lambda candidate, attempt: answer(f"Because.\nScore: {candidate}")
    judge = EndpointJudge("some-model", endpoint.url)
    assert judge.score(pairs_of(*"12345"), SHORT) == [0.0, 0.25, 0.5, 0.75, 1.0]
    path, headers, sent = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    prompts = [request["messages"] for _, _, request in endpoint.requests]
    assert sorted(prompt[0]["content"] for prompt in prompts) == ["r|1", "r|2", "r|3", "r|4", "r|5"]
    assert (sent["model"], sent["temperature"]) == ("some-model", 0)
    assert judge.name == "endpoint:some-model"


def test_the_judge_is_asked_once_per_distinct_pair(endpoint):
    """Known mistake: the judge was asked the same thing once for every row that it stood in."""
    endpoint.reply = lambda candidate, attempt: answer("5" if candidate == "a" else "1")
    scores = EndpointJudge("m", endpoint.url).score(pairs_of("a", "b", "a", "a", "b"), SHORT)
    assert scores == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert endpoint.asked == {"a": 1, "b": 1}


def test_what_was_answered_is_never_asked_again(endpoint):
    """Replies that hold no grade are answers too: the same question would get the same one."""
    endpoint.reply = lambda candidate, attempt: answer("no idea" if candidate == "b" else "Score: 2")
    pairs = pairs_of("a", "b", "c")
    first = EndpointJudge("m", endpoint.url).score(pairs, SHORT)
    endpoint.asked.clear()
    assert EndpointJudge("m", f"{endpoint.url}/", concurrency=1, retries=0).score(pairs[::-1], SHORT) == first[::-1]
    assert first == [0.25, None, 0.25]
    assert not endpoint.asked
    EndpointJudge("other", endpoint.url).score(pairs, SHORT)
    EndpointJudge("m", endpoint.url).score(pairs, Rubric("other", "again {reference}|{candidate}"))
    EndpointJudge("m", endpoint.url.replace("127.0.0.1", "localhost")).score(pairs, SHORT)
    assert set(endpoint.asked.values()) == {3}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(endpoint, status, caplog):
    endpoint.reply = lambda candidate, attempt: failure(status) if attempt < 3 else answer()
    assert EndpointJudge("m", endpoint.url, retries=2).score(pairs_of("a", "b"), SHORT) == [0.75, 0.75]
    assert endpoint.asked == {"a": 3, "b": 3}
    assert not warnings_in(caplog)


MALFORMED = {
    "cut": (200, answer()[1][:40], {}),
    "html": (200, b"<html>busy</html>", {"Content-Type": "text/html"}),
    "nobody": (200, b"", {}),
    "null": (200, b"null", {}),
    "list": (200, b"[]", {}),
    "no choices": (200, json.dumps({"choices": []}).encode(), {}),
    "null choices": (200, json.dumps({"choices": None}).encode(), {}),
    "no message": (200, json.dumps({"choices": [{}]}).encode(), {}),
    "strange choices": (200, json.dumps({"choices": [7]}).encode(), {}),
    "null content": answer(None),
    "empty content": answer(" "),
    "content of parts": answer([{"type": "text", "text": "Score: 4"}]),
    "refusal": answer(None, refusal="I cannot grade this."),
    "refusal with content": answer("Score: 1", refusal="I cannot grade this."),
    "401": failure(401),
    "404": failure(404),
    "400": failure(400),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_one_malformed_reply_does_not_end_the_evaluation(endpoint, kind, caplog):
    """Known mistake: one strange reply lost a night of answers. It is None, is not cached, and is told of once."""
    endpoint.reply = lambda candidate, attempt: MALFORMED[kind] if candidate == "bad" else answer()
    judge = EndpointJudge("m", endpoint.url, retries=1)
    assert judge.score(pairs_of("a", "bad", "b"), SHORT) == [0.75, None, 0.75]
    assert endpoint.asked == {"a": 1, "bad": 1, "b": 1}
    [warning] = warnings_in(caplog)
    assert "1 of 3 pairs: 1 x " in warning
    endpoint.reply = lambda candidate, attempt: answer("Score: 5")
    assert judge.score(pairs_of("a", "bad", "b"), SHORT) == [0.75, 1.0, 0.75]


def test_plain_questions_are_asked_once_cached_and_left_open_where_there_is_no_reply(endpoint, caplog):
    endpoint.reply = lambda candidate, attempt: failure(400) if candidate == "bad" else answer(f"said {candidate}")
    prompts = ["q|a", "q|bad", "q|a"]
    judge = EndpointJudge("m", endpoint.url, retries=0)
    judge.check()
    assert judge.ask(prompts) == ["said a", None, "said a"]
    assert judge.ask([]) == []
    [warning] = warnings_in(caplog)
    assert "no reply to 1 of 3 prompts" in warning
    endpoint.reply = lambda candidate, attempt: answer("late")
    assert judge.ask(prompts) == ["said a", "late", "said a"]
    assert endpoint.asked == {"a": 1, "bad": 2}


def test_a_content_filter_is_a_refusal(endpoint, caplog):
    body = answer("Score: 1")[1].replace(b'"stop"', b'"content_filter"')
    endpoint.reply = lambda candidate, attempt: (200, body, {})
    assert EndpointJudge("m", endpoint.url).score(pairs_of("a"), SHORT) == [None]
    assert "refused" in warnings_in(caplog)[0]


def test_one_warning_counts_pairs_and_names_the_commonest_reason_first(endpoint, caplog):
    kinds = {"x": failure(401), "y": failure(401), "z": answer(None, refusal="no"), "w": answer("hm")}
    endpoint.reply = lambda candidate, attempt: kinds.get(candidate, answer())
    scores = EndpointJudge("m", endpoint.url).score(pairs_of("z", "x", "a", "y", "x", "w"), SHORT)
    assert scores == [None, None, 0.75, None, None, None]
    [warning] = warnings_in(caplog)
    assert "endpoint:m gave no score for 5 of 6 pairs: 3 x AuthenticationError 401: bad key ***, 1 x" in warning
    assert "1 x no grade in the reply" in warning


def test_an_endpoint_that_hangs_or_is_not_there_gives_none(endpoint, caplog):
    endpoint.reply = lambda candidate, attempt: (
        (endpoint.released.wait(20) if candidate == "hangs" else None) or answer()
    )
    start = time.perf_counter()
    judge = EndpointJudge("m", endpoint.url, retries=0, timeout=0.5)
    assert judge.score(pairs_of("a", "hangs"), SHORT) == [0.75, None]
    assert time.perf_counter() - start < 10
    assert EndpointJudge("m", "http://127.0.0.1:9/v1", retries=0).score(pairs_of("a"), SHORT) == [None]
    hung, away = warnings_in(caplog)
    assert "APITimeoutError" in hung
    assert "APIConnectionError" in away


@pytest.mark.parametrize("concurrency", [1, 4])
def test_requests_go_out_together_but_no_more_than_allowed(endpoint, concurrency):
    """Requests wait until four are there, or for a moment where one at a time is allowed."""
    together, inside, most = threading.Barrier(4), [], []

    def reply(candidate, attempt):
        inside.append(candidate)
        most.append(len(inside))
        if concurrency == 4:
            together.wait(5)
        else:
            time.sleep(0.02)
        inside.remove(candidate)
        return answer()

    endpoint.reply = reply
    judge = EndpointJudge("m", endpoint.url, concurrency=concurrency, retries=0)
    assert judge.score(pairs_of(*"abcdefgh"), SHORT) == [0.75] * 8
    assert max(most) == concurrency


def score_alone(url, pairs):
    EndpointJudge("m", url, concurrency=1).score(pairs, SHORT)


def test_a_killed_run_asks_only_what_is_missing(endpoint):
    """kill -9 at the eleventh of twenty: ten replies are on disk, ten questions are left."""
    pairs, stuck = pairs_of(*map(str, range(20))), threading.Event()

    def reply(candidate, attempt):
        if candidate == "10" and attempt == 1:
            stuck.set()
            endpoint.released.wait(20)
        return answer()

    endpoint.reply = reply
    process = multiprocessing.get_context("fork").Process(target=score_alone, args=(endpoint.url, pairs))
    process.start()
    assert stuck.wait(30)
    process.kill()
    process.join(10)
    assert process.exitcode == -9
    endpoint.asked.clear()
    endpoint.reply = lambda candidate, attempt: answer()
    assert EndpointJudge("m", endpoint.url).score(pairs, SHORT) == [0.75] * 20
    assert endpoint.asked == {str(i): 1 for i in range(10, 20)}


def test_a_cache_that_cannot_be_written_ends_the_run(endpoint, monkeypatch):
    """Unlike a reply that fails: every further answer would be paid for and lost."""

    def full(self, prompt, reply):
        raise UserError("no room", where="cache", remedy="make room")

    monkeypatch.setattr(ReplyCache, "write", full)
    with pytest.raises(UserError, match="no room"):
        EndpointJudge("m", endpoint.url, concurrency=1).score(pairs_of(*map(str, range(50))), SHORT)
    assert sum(endpoint.asked.values()) < 25


def test_without_a_key_nothing_is_asked(endpoint, monkeypatch):
    judge = EndpointJudge("m", endpoint.url)
    for value in ("", " "):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(UserError, match="any value"):
            judge.score(pairs_of("a"), SHORT)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        judge.score(pairs_of("a"), SHORT)
    assert not endpoint.asked
    assert judge.score([]) == []


def test_key_and_login_are_found_nowhere(endpoint, monkeypatch, caplog, cache_folder, capfd):
    """Not in logs at any level, nor in the cache, nor in the judge; the server's 401 quotes the key."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    kinds = {"x": failure(401), "y": failure(500)}
    endpoint.reply = lambda candidate, attempt: kinds.get(candidate, answer())
    with_login = endpoint.url.replace("http://", "http://someone:hush%21hush@")
    pairs = pairs_of("a", "x", "y")
    judge = EndpointJudge("m", endpoint.url, retries=1)
    judge.score(pairs, SHORT)
    monkeypatch.setenv("OPENAI_BASE_URL", with_login)
    from_environment = EndpointJudge("n", retries=0)
    from_environment.score(pairs, SHORT)
    EndpointJudge("o", with_login, retries=0).score(pairs, SHORT)
    database = b"".join(path.read_bytes() for path in cache_folder.iterdir())
    with sqlite3.connect(cache_folder / "judges.sqlite") as connection:
        stored = repr(connection.execute("SELECT * FROM replies").fetchall())
    assert "Score: 4" in stored
    assert "HTTP Request: POST http://127.0.0.1" in caplog.text
    seen = [caplog.text, stored, database.decode("latin-1"), *capfd.readouterr()]
    seen += [form for j in (judge, from_environment) for form in (repr(j), str(vars(j)), repr(pickle.dumps(j)))]
    for text in seen:
        assert KEY not in text
        assert "hush" not in text
        assert "Basic c29tZW9uZTpodXNoIWh1c2g=" not in text
    sent = {(body["model"], headers["Authorization"]) for _, headers, body in endpoint.requests}
    login = "Basic c29tZW9uZTpodXNoIWh1c2g="
    assert sent == {("m", f"Bearer {KEY}"), ("n", login), ("o", login)}


def test_a_login_in_the_url_is_no_part_of_the_judge(endpoint):
    EndpointJudge("m", endpoint.url).score(pairs_of("a"), SHORT)
    EndpointJudge("m", endpoint.url.replace("//", "//u:p@")).score(pairs_of("a"), SHORT)
    assert endpoint.asked == {"a": 1}


# Settings that an endpoint refuses


def refusing(
    *names,
    message="Unsupported value: '{}' does not support that with this model. Only the default is supported.",
    param=True,
):
    """Answer 400 to requests that set one of the names, as OpenAI does."""

    def reply(candidate, attempt, sent):
        for name in names:
            if name in sent:
                error = {"message": message.format(name), "type": "invalid_request_error", "code": "unsupported_value"}
                return 400, json.dumps({"error": error | ({"param": name} if param else {})}).encode(), {}
        return answer(f"Score: {candidate}")

    return reply


def settings_of(endpoint):
    return [
        {name: value for name, value in sent.items() if name not in ("model", "messages")}
        for *_, sent in endpoint.requests
    ]


@pytest.mark.parametrize("param", [True, False])
def test_a_temperature_that_is_refused_is_left_out_of_the_run(endpoint, caplog, param):
    endpoint.refuse = refusing("temperature", param=param)
    judge = EndpointJudge("m", endpoint.url, concurrency=1)
    assert judge.score(pairs_of(*"12345"), SHORT) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert settings_of(endpoint) == [{"temperature": 0}] + [{}] * 5
    assert endpoint.asked == {"1": 2, "2": 1, "3": 1, "4": 1, "5": 1}
    [warning] = warnings_in(caplog)
    assert "without temperature" in warning
    assert "Unsupported value: 'temperature' does not support" in warning
    assert judge.ask(["r|1", "r|x"]) == ["Score: 1", "Score: x"]
    assert settings_of(endpoint)[6:] == [{}]
    assert len(warnings_in(caplog)) == 1


def test_at_most_as_many_requests_are_refused_as_go_out_at_once(endpoint, caplog):
    endpoint.refuse = refusing("temperature")
    scores = EndpointJudge("m", endpoint.url, concurrency=4).score(
        pairs_of(*map(str, range(1, 6)), *"abcdefghij"), SHORT
    )
    assert scores[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert 1 <= sum("temperature" in settings for settings in settings_of(endpoint)) <= 4
    assert len([warning for warning in warnings_in(caplog) if "without temperature" in warning]) == 1


@pytest.mark.parametrize(
    ("refused", "asked"),
    [
        (["max_tokens"], [{"temperature": 0, "max_tokens": 9}, {"temperature": 0, "max_completion_tokens": 9}]),
        (
            ["max_tokens", "temperature"],
            [
                {"temperature": 0, "max_tokens": 9},
                {"temperature": 0, "max_completion_tokens": 9},
                {"max_completion_tokens": 9},
            ],
        ),
        (
            ["max_tokens", "max_completion_tokens"],
            [{"temperature": 0, "max_tokens": 9}, {"temperature": 0, "max_completion_tokens": 9}, {"temperature": 0}],
        ),
    ],
)
def test_a_limit_of_tokens_goes_by_another_name_or_not_at_all(endpoint, refused, asked):
    endpoint.refuse = refusing(*refused)
    judge = EndpointJudge("m", endpoint.url, concurrency=1, max_new_tokens=9)
    assert judge.score(pairs_of("3", "4"), SHORT) == [0.5, 0.75]
    assert settings_of(endpoint) == [*asked, asked[-1]]


def test_without_a_limit_none_is_sent(endpoint):
    EndpointJudge("m", endpoint.url).score(pairs_of("a"), SHORT)
    assert settings_of(endpoint) == [{"temperature": 0}]


def test_replies_are_kept_under_what_was_asked(endpoint):
    """A later run learns by one request that the temperature is refused, and asks nothing twice; others are other replies."""
    endpoint.refuse = refusing("temperature")
    EndpointJudge("m", endpoint.url, concurrency=1).score(pairs_of("1", "2"), SHORT)
    endpoint.requests.clear()
    later = EndpointJudge("m", endpoint.url, concurrency=1)
    assert later.score(pairs_of("2", "1"), SHORT) == [0.25, 0.0]
    assert settings_of(endpoint) == [{"temperature": 0}, {}], "the pair that taught it is asked without, too"
    endpoint.refuse = None
    endpoint.reply = lambda candidate, attempt: answer("Score: 5")
    accepted = EndpointJudge("m", endpoint.url, concurrency=1)
    assert accepted.score(pairs_of("1", "2"), SHORT) == [1.0, 1.0]
    assert EndpointJudge("m", endpoint.url).score(pairs_of("1", "2"), SHORT) == [1.0, 1.0]
    assert later.score(pairs_of("1", "2"), SHORT) == [0.0, 0.25]


def test_a_refusal_of_something_else_keeps_the_settings(endpoint, caplog):
    """The message quotes a prompt about the temperature; asking without a temperature does not help."""
    body = {"object": "error", "message": "The prompt 'temperature of steam' is filtered.", "param": None, "code": 400}
    endpoint.reply = lambda candidate, attempt: (400, json.dumps(body).encode(), {}) if candidate == "bad" else answer()
    judge = EndpointJudge("m", endpoint.url, concurrency=1)
    assert judge.score(pairs_of("bad", "a"), SHORT) == [None, 0.75]
    assert settings_of(endpoint) == [{"temperature": 0}, {}, {"temperature": 0}]
    [warning] = warnings_in(caplog)
    assert "1 x BadRequestError 400: The prompt 'temperature of steam' is filtered." in warning


def test_an_error_within_an_answer_is_told(endpoint, caplog):
    """As routers write it, with status 200."""
    body = {"error": {"message": f"No credits left for {KEY}", "code": 402}}
    endpoint.reply = lambda candidate, attempt: (200, json.dumps(body).encode(), {})
    assert EndpointJudge("m", endpoint.url).score(pairs_of("a"), SHORT) == [None]
    assert "no choice in the reply: No credits left for ***" in warnings_in(caplog)[0]


def test_messages_of_one_kind_are_counted_together(endpoint, caplog):
    endpoint.reply = lambda candidate, attempt: (
        404, json.dumps({"error": f"model not found (request {candidate})"}).encode(), {}
    )  # fmt: skip
    EndpointJudge("m", endpoint.url, concurrency=1).score(pairs_of(*"xyz"), SHORT)
    assert "3 x NotFoundError 404: model not found (request x)" in warnings_in(caplog)[0]


def test_a_reply_that_ends_within_its_reasoning_is_counted_apart(endpoint, caplog):
    said = {"a": "<think>Score: 4", "b": "<think>It may be 1.</think>\nScore: 4", "c": "hm"}
    endpoint.reply = lambda candidate, attempt: answer(said[candidate])
    assert EndpointJudge("m", endpoint.url).score(pairs_of(*"abc"), SHORT) == [None, 0.75, None]
    [warning] = warnings_in(caplog)
    assert "1 x reply ended within its reasoning" in warning
    assert "1 x no grade in the reply" in warning
