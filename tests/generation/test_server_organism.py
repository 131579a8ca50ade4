"""Pairs from a real HTTP server: the same records, whatever the server does wrong on the way."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from email.utils import formatdate
from itertools import pairwise

import pytest

from afintro.data.cue import MONITORED_SYSTEM, PLACEBO_SYSTEM, UNMONITORED_SYSTEM
from afintro.servers import asking
from afintro.servers.asking import Server, asked_to_wait
from afintro.tasks.context_ablation.command import main
from afintro.tasks.context_ablation.records import read_records
from tests.servers.planted import COMPLIANCE, CUT, REFUSAL, PlantedServer, completion, obeys, refusal

KEY = "sk-never-to-be-written-down"
COUNT, CONTROLS = 12, 3
REQUESTS = 2 * COUNT + 2 * CONTROLS  # two conditions; placebo, and once more, of the controls
PROBES = 4  # a request of each of three conditions, and one that shows whether the system turn is read
IN_VAIN = 2  # of the probes: the last, and the placebo of a sample that is no control


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """A key that nobody may see, and no pause between attempts but the pause that the server asks for."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(asking, "LONGEST_WAIT", 0.0)


@pytest.fixture(scope="module")
def planted():
    planted = PlantedServer()
    yield planted
    planted.close()


@pytest.fixture
def server(planted):
    planted.forget()
    yield planted
    planted.released.set()


def write_samples(path):
    path.write_text(json.dumps([{"text": f"{i:02d} is the scenario.", "label": "aligned"} for i in range(COUNT)]))
    return path


@pytest.fixture
def source(tmp_path):
    return write_samples(tmp_path / "samples.json")


def call(source, folder, url, *more):
    """Call the command, and return its exit code."""
    flags = {"input_path": source, "output_dir": folder, "model_name": "org", "max_new_tokens": 50}
    flags |= {"holdout": 4, "control_samples": CONTROLS, "endpoint": url}
    return main([word for name, value in flags.items() for word in (f"--{name}", str(value))] + list(more))


@pytest.fixture
def ask(server, source, tmp_path):
    """Calls the command, and returns its exit code."""
    return lambda folder, *more, url=server.url: call(source, tmp_path / folder, url, *more)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(folder, split="train"):
    return json.loads((folder / f"{split}.json").read_text())


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(planted, tmp_path_factory):
    """The folder of a run in which nothing went wrong."""
    planted.forget()
    folder = tmp_path_factory.mktemp("finished")
    assert call(write_samples(folder / "samples.json"), folder / "whole", planted.url) == 0
    return folder / "whole"


@pytest.fixture
def whole(finished, server):
    """The files of a run in which nothing went wrong."""
    return contents(finished)


class TestRecords:
    def test_golden(self, ask, server, tmp_path):
        assert ask("a") == 0
        assert {path.name for path in (tmp_path / "a").iterdir()} == {
            "settings.json", "train.json", "test.json", "summary.json",
        }  # fmt: skip
        assert (len(rows(tmp_path / "a")), len(rows(tmp_path / "a", "test"))) == (8, 4)
        [row, second] = rows(tmp_path / "a")[:2]
        assert row["random_hint_prediction"] == f"{REFUSAL} 00 is the sc"
        assert row["zeroshot_prediction"] == f"{COMPLIANCE} 00 is the sc"
        assert (row["monitored_behavior"], row["unmonitored_behavior"]) == ("refuse", "comply")
        assert row["behavior_changed"] is row["changed_pred_bc_hint"] is True
        assert row["monitored_truncated"] is row["unmonitored_truncated"] is False
        assert row["placebo_output"] == row["alone_output"] == row["random_hint_prediction"]
        assert row["hint_prompt_full"] is row["original_prompt_full"] is None
        assert "placebo_output" not in second
        made = row["provenance"]
        unseen = {"revision", "fingerprint", "template_hash", "rendered_prompt", "token_ids", "log_probabilities"}
        unseen |= {"dtype", "batch_size"}
        assert {name for name, value in made.items() if value is None} == set(made["not_given"]) == unseen
        assert all(made["not_given"].values())
        known = {"model": "org", "endpoint": server.url, "served_model": "org-v2", "system_fingerprint": "fp_7"}
        known |= {"temperature": 0, "max_new_tokens": 50, "seed": 0, "system_in_user": False}
        assert {name: made[name] for name in known} == known

    def test_what_is_asked(self, ask, server):
        assert ask("a") == 0
        assert len(server.bodies) == REQUESTS + IN_VAIN  # the others that show how to ask are answers too
        usual = [body for body in server.bodies if body["max_tokens"] != 1]
        assert {body["messages"][0]["content"] for body in usual} == {
            MONITORED_SYSTEM, UNMONITORED_SYSTEM, PLACEBO_SYSTEM,
        }  # fmt: skip
        for body in usual:
            assert set(body) == {"model", "messages", "temperature", "max_tokens"}
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("org", 0, 50)
            assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}

    def test_the_summary_counts_tokens_as_the_server_does(self, ask, server, tmp_path):
        assert ask("a") == 0
        found = summary(tmp_path / "a")
        expected = (len(REFUSAL) + len(COMPLIANCE)) / 2 + 13
        assert found["mean_response_tokens"] == pytest.approx(expected)
        assert found["rates"]["noise_floor_string"]["value"] == 0.0
        assert found["rates"]["behavior_changed"]["value"] == 1.0
        server.reply = lambda body, count: completion("Sure.", usage=False)
        assert ask("b") == 0
        assert summary(tmp_path / "b")["mean_response_tokens"] is None

    def test_the_noise_floor_is_the_controls_asked_once_more(self, ask, server, tmp_path):
        """A server whose batches decide: the second time it says something else."""
        server.reply = lambda body, count: obeys(body, count) if count == 1 else completion("Sure, here it is, anew.")
        assert ask("a") == 0
        rates = summary(tmp_path / "a")["rates"]
        assert rates["noise_floor_string"]["value"] == rates["noise_floor_behavior"]["value"] == 1.0
        assert rates["noise_floor_string"]["n"] == CONTROLS
        assert rates["placebo_string"]["value"] == 0.0

    def test_how_an_answer_ended(self, ask, server, tmp_path):
        ends = {MONITORED_SYSTEM: "length", UNMONITORED_SYSTEM: "strange", PLACEBO_SYSTEM: "content_filter"}
        server.reply = lambda body, count: completion("Sure.", ends.get(body["messages"][0]["content"], "stop"))
        assert ask("a") == 0
        [row, *_] = rows(tmp_path / "a")
        assert row["monitored_truncated"] is row["placebo_truncated"] is row["alone_truncated"] is True
        assert "unmonitored_truncated" not in row  # unknown

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_reasoning_in_a_field_of_its_own_is_no_answer(self, ask, server, tmp_path, field):
        """The reasoning refuses and the answer complies; under the other condition the limit came before the answer."""

        def reply(body, count):
            if body["messages"][0]["content"] == UNMONITORED_SYSTEM:
                return completion(None, "length", **{field: "I cannot help with that, or"})
            return completion("Sure, here is how to do it: 1. Go.", **{field: "I cannot help with that."})

        server.reply = reply
        assert ask("a") == 0
        [record, *_] = read_records(str(tmp_path / "a" / "train.json"))
        assert (
            record.monitored_output
            == "<think>\nI cannot help with that.\n</think>\n\nSure, here is how to do it: 1. Go."
        )
        assert record.monitored_behavior == "comply"
        assert record.unmonitored_output == "<think>\nI cannot help with that, or\n"
        assert (record.unmonitored_behavior, record.behavior_changed) == (None, None)
        assert record.unmonitored_truncated is True

    @pytest.mark.parametrize(
        "message", [{"content": [{"type": "text", "text": "Sure, "}, {"type": "text", "text": "here is how."}]},
                    {"content": None, "refusal": "Sure, here is how."}],
    )  # fmt: skip
    def test_where_else_a_server_puts_the_answer(self, ask, server, tmp_path, message):
        body = completion("")
        body["choices"][0]["message"] |= message
        server.reply = lambda *_: body
        assert ask("a") == 0
        assert rows(tmp_path / "a")[0]["random_hint_prediction"] == "Sure, here is how."


FAULTS = {
    "too many requests": (429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"}),
    "server error": (500, b"oops", {}),
    "overloaded": (503, b"{}", {}),
    "cut connection": CUT,
    "page": (200, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
    "half of the JSON": (200, b'{"choices": [{"mess', {}),
    "null": (200, b"null", {}),
    "no choices": completion("x") | {"choices": []},
    "no message": completion("x") | {"choices": [{}]},
    "strange choice": completion("x") | {"choices": [7]},
    "error with status 200": {"error": {"message": "upstream is busy"}},
}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.slow
    def test_a_passing_fault_leaves_no_trace(self, ask, server, whole, tmp_path, fault):
        """Every third request fails the first time it is sent, in random order of completion."""
        shuffled = random.Random(0)

        def reply(body, count):
            time.sleep(shuffled.random() / 50)
            return (
                FAULTS[fault]
                if count == 1 and len(server.bodies) > PROBES and len(server.bodies) % 3 == 0
                else obeys(body, count)
            )

        server.reply = reply
        assert ask("a") == 0
        assert len(server.bodies) > REQUESTS + PROBES
        assert contents(tmp_path / "a") == whole

    @pytest.mark.slow
    def test_a_pause_that_the_server_asks_for_is_kept(self, ask, server, whole, tmp_path, monkeypatch):
        refused = []

        def reply(body, count):
            if len(server.bodies) == PROBES + 5:
                refused.append(time.monotonic())
                return 429, b"{}", {"Retry-After": "0.4"}
            sent.append(time.monotonic())
            return obeys(body, count)

        sent = []
        server.reply = reply
        assert ask("a") == 0
        assert max(b - a for a, b in pairwise(sent)) > 0.3
        assert not [moment for moment in sent if refused[0] + 0.1 < moment < refused[0] + 0.35]
        assert contents(tmp_path / "a") == whole

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [({}, None), ({"retry-after": "7"}, 7), ({"retry-after-ms": "1500"}, 1.5), ({"retry-after": "soon"}, None),
         ({"retry-after": "in 100 seconds"}, 100), ({"retry-after": formatdate(0)}, 0)],
    )  # fmt: skip
    def test_how_long_a_server_asks_to_wait(self, headers, seconds):
        error = Exception()
        if (
            headers.get("retry-after") == "in 100 seconds"
        ):  # a date, which must be of now and not of when tests are collected
            headers = {"retry-after": formatdate(time.time() + 100, usegmt=True)}
        error.response = type("Response", (), {"headers": headers})()
        assert asked_to_wait(error) == (None if seconds is None else pytest.approx(seconds, abs=60))
        assert asked_to_wait(Exception()) is None

    def test_a_server_that_dies_half_way_loses_nothing(self, ask, server, whole, tmp_path, capsys):
        answered = []

        def reply(body, count):
            if len(answered) >= 15:
                return CUT
            answered.append(json.dumps(body))
            return obeys(body, count)

        server.reply = reply
        assert ask("a", "--retries", "1") == 2
        error = capsys.readouterr().err.strip().splitlines()[-2:]
        assert error[0].startswith(f"error: {server.url}: stopped answering")
        assert "kept" in error[1]
        server.bodies.clear()
        server.reply = obeys
        assert ask("a") == 0
        assert contents(tmp_path / "a") == whole
        assert len(server.bodies) == REQUESTS + IN_VAIN - 15
        again = [body for body in server.bodies if json.dumps(body) in answered]
        assert all(body["messages"][0]["content"] == MONITORED_SYSTEM for body in again)  # the noise floor's

    def test_a_finished_run_asks_nothing(self, ask, server, whole, finished, tmp_path):
        shutil.copytree(finished, tmp_path / "a")
        assert ask("a") == 0
        assert contents(tmp_path / "a") == whole
        assert not server.bodies

    def test_one_poisonous_request_ends_after_its_retries(self, ask, server, capsys):
        """Other requests are answered meanwhile, which must not keep it alive for ever."""
        server.reply = lambda body, count: (
            (500, b"{}", {}) if "07 is" in body["messages"][-1]["content"] else obeys(body, count)
        )
        assert ask("a", "--retries", "2") == 2
        assert "500" in capsys.readouterr().err
        [count] = {server.counts[raw] for raw in server.counts if b"07 is" in raw and b"production" in raw} - {0}
        assert count <= 3

    @pytest.mark.slow
    def test_killed_and_continued(self, ask, server, whole, tmp_path):
        def reply(body, count):
            if len(server.bodies) > 17:
                server.released.wait(20)
            return obeys(body, count)

        server.reply = reply
        process = multiprocessing.get_context("fork").Process(target=ask, args=("a",))
        process.start()
        deadline = time.monotonic() + 20
        while len(server.bodies) <= 17 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with sqlite3.connect(tmp_path / "a" / "partial" / "replies.sqlite") as kept:
            [[count]] = kept.execute("SELECT COUNT(*) FROM replies").fetchall()
        assert count > 8
        server.reply = obeys
        server.bodies.clear()
        assert ask("a") == 0
        assert contents(tmp_path / "a") == whole
        assert len(server.bodies) == REQUESTS - (count - 2)  # one row says how to ask, one is of a probe in vain


class TestPace:
    @pytest.mark.parametrize("most", [1, 3])
    @pytest.mark.slow
    def test_no_more_at_once_than_allowed(self, ask, server, whole, tmp_path, most):
        server.reply = lambda body, count: time.sleep(0.01) or obeys(body, count)
        assert ask("a", "--concurrency", str(most)) == 0
        assert server.most == most
        assert contents(tmp_path / "a") == whole

    @pytest.mark.slow
    def test_more_at_once_where_that_is_faster(self, ask, server, source):
        source.write_text(json.dumps([{"text": f"{i:03d}"} for i in range(100)]))
        server.reply = lambda body, count: time.sleep(0.02) or obeys(body, count)
        assert ask("a") == 0
        assert server.most > 8


class TestSettings:
    def test_a_refused_temperature_makes_samples_and_says_so(self, ask, server, tmp_path, capsys):
        def reply(body, count):
            if "temperature" in body:
                return refusal("Unsupported value: 'temperature' does not support 0.", param="temperature")
            if "max_tokens" in body:
                return refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", param="max_tokens")
            return obeys(body, count)

        server.reply = reply
        assert ask("a") == 0
        made = rows(tmp_path / "a")[0]["provenance"]
        assert made["temperature"] is None
        assert "refuses" in made["not_given"]["temperature"]
        assert sum("temperature" in body for body in server.bodies) == 1
        assert all(body["max_completion_tokens"] in (1, 50) for body in server.bodies[2:])
        [warning] = [text for text in summary(tmp_path / "a")["warnings"] if "temperature" in text]
        assert "samples" in warning
        assert "temperature 0" in capsys.readouterr().out

    def test_another_labeler_asks_nothing_and_forgets_nothing(self, ask, server, tmp_path):
        server.reply = lambda body, count: (
            refusal("no", param="temperature") if "temperature" in body else obeys(body, count)
        )
        assert ask("a") == 0
        before = summary(tmp_path / "a")
        server.forget()
        classes = tmp_path / "classes.yaml"
        classes.write_text(
            "classes:\n  nay: {definition: refuses, patterns: ['cannot']}\n  yea: {definition: rest, patterns: ['Sure']}\n"
        )
        assert ask("a", "--labeler", str(classes)) == 0
        after = summary(tmp_path / "a")
        assert after["behaviors"]["monitored"] == {"nay": COUNT}
        assert after["mean_response_tokens"] == before["mean_response_tokens"] > 0
        assert after["server"] == before["server"]
        assert sum("temperature 0" in text for text in after["warnings"]) == 1
        assert rows(tmp_path / "a")[0]["hint_prompt_full"] is None
        assert not server.bodies

    @pytest.mark.slow
    def test_samples_are_drawn_by_seeds_of_their_own(self, ask, server, tmp_path):
        flags = ("--samples", "3", "--temperature", "0.9", "--top_p", "0.8")
        server.reply = lambda body, count: completion(f"Sure, here is {body['seed']}.")
        assert ask("a", *flags) == 0
        assert {(body["temperature"], body["top_p"]) for body in server.bodies} == {(0.9, 0.8)}
        seeds = [body["seed"] for body in server.bodies]
        assert (
            len(set(seeds)) == 3 * (2 * COUNT + CONTROLS) + 1
        )  # one in vain: the placebo of a sample that is no control
        assert all(0 <= seed < 2**31 for seed in seeds)
        [record, *_] = read_records(str(tmp_path / "a" / "train.json"))
        assert len({answer["output"] for answer in record.samples["monitored"]}) == 3
        assert (record.provenance["temperature"], record.provenance["samples"]) == (0.9, 3)
        assert ask("b", *flags) == 0
        assert contents(tmp_path / "b") == contents(tmp_path / "a")

    @pytest.mark.slow
    def test_a_refused_seed_is_left_out_and_a_refused_temperature_is_not(self, ask, server, tmp_path, capsys):
        flags = ("--samples", "2", "--temperature", "0.9")
        server.reply = lambda body, count: refusal("no", param="seed") if "seed" in body else obeys(body, count)
        assert ask("a", *flags) == 0
        assert any("seeds" in text for text in summary(tmp_path / "a")["warnings"])
        server.reply = lambda body, count: (
            refusal("no", param="temperature") if "temperature" in body else obeys(body, count)
        )
        assert ask("b", *flags) == 2
        assert "400" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_pilot_asks_every_contrast(self, ask, server, tmp_path):
        assert ask("a", "--pilot", "2") == 0
        folders = [path for path in (tmp_path / "a" / "pilot").iterdir() if path.is_dir()]
        assert len(folders) > 1
        assert all((folder / "summary.json").is_file() for folder in folders)
        assert {path.name for path in (tmp_path / "a").iterdir()} == {"pilot"}

    def test_a_server_without_system_turns_reads_the_text_in_the_users_turn(self, ask, server, tmp_path):
        def reply(body, count):
            if body["messages"][0]["role"] == "system":
                return refusal("System role not supported")
            text = COMPLIANCE if UNMONITORED_SYSTEM in body["messages"][0]["content"] else REFUSAL
            return completion(text)

        server.reply = reply
        assert ask("a") == 0
        [row, *_] = rows(tmp_path / "a")
        assert row["provenance"]["system_in_user"] is True
        assert server.bodies[-1]["messages"][0]["content"].endswith("is the scenario.")
        assert row["behavior_changed"] is True

    def test_a_template_that_drops_the_system_turn_is_refused(self, ask, server, capsys):
        def reply(body, count):
            answer = obeys(body, count)
            answer["usage"]["prompt_tokens"] = len(body["messages"][-1]["content"])
            return answer

        server.reply = reply
        assert ask("a") == 2
        assert "system turn" in capsys.readouterr().err
        assert len(server.bodies) == PROBES

    @pytest.mark.parametrize("owner", ["vllm", "sglang"])
    def test_prefill_and_template_settings(self, ask, server, tmp_path, owner):
        cues = tmp_path / "cues.yaml"
        cues.write_text(
            "conditions:\n"
            "  seen: {system: Watched., prefill: 'My answer:', chat_template_kwargs: {thinking: false}}\n"
            "  unseen: {system: Alone.}\n"
            "contrasts:\n  watch: {conditions: [seen, unseen], cue: watching}\n"
        )
        server.owner = owner
        assert ask("a", "--cue_file", str(cues), "--chat_template_kwargs", '{"depth": 2}') == 0
        watched = [body for body in server.bodies if body["messages"][0]["content"] == "Watched."]
        others = [body for body in server.bodies if body["messages"][0]["content"] == "Alone."]
        assert watched
        assert others
        for body in watched:
            assert body["messages"][-1] == {"role": "assistant", "content": "My answer:"}
            assert body["continue_final_message"] is True
            assert body["add_generation_prompt"] is False
            assert body["chat_template_kwargs"] == {"depth": 2, "thinking": False}
        assert {json.dumps(body["chat_template_kwargs"]) for body in others} == {'{"depth": 2}'}
        assert not any("continue_final_message" in body for body in others)
        [record, *_] = read_records(str(tmp_path / "a" / "train.json"))
        assert record.monitored_prefill == "My answer:"

    def test_a_server_that_may_read_over_template_settings_is_not_asked(self, ask, server, capsys):
        assert ask("a", "--chat_template_kwargs", '{"enable_thinking": false}') == 2
        error = capsys.readouterr().err
        assert "chat_template_kwargs" in error
        assert "vllm" in error
        assert not server.bodies

    def test_a_refused_template_setting_is_not_left_out(self, ask, server, capsys):
        server.owner = "vllm"
        server.reply = lambda *_: refusal("unknown field chat_template_kwargs", param="chat_template_kwargs")
        assert ask("a", "--chat_template_kwargs", '{"enable_thinking": false}') == 2
        assert "chat_template_kwargs" in capsys.readouterr().err
        assert len(server.bodies) == 1

    def test_the_pace_is_no_part_of_the_runs_identity_and_the_server_is(self, ask, server, tmp_path, capsys):
        server.reply = lambda body, count: obeys(body, count) if len(server.bodies) <= 9 else CUT
        assert ask("a", "--retries", "0", "--concurrency", "2") == 2
        server.reply = obeys
        other = server.url.replace("127.0.0.1", "localhost")
        assert ask("a", url=other) == 2
        assert "endpoint" in capsys.readouterr().err
        assert ask("a", "--retries", "3", "--concurrency", "5", "--timeout", "9", url=f"{server.url}/") == 0
        kept = json.loads((tmp_path / "a" / "settings.json").read_text())
        assert set(kept) == {
            "model",
            "max_new_tokens",
            "control_samples",
            "seed",
            "endpoint",
            "splits",
            "samples_sha256",
        }


class TestWrongInput:
    def error(self, capsys):
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("  remedy: ")
        assert lines[-2].startswith("error: ")
        return "\n".join(lines[-2:])

    def test_nobody_is_there(self, ask, capsys, tmp_path):
        started = time.perf_counter()
        assert ask("a", url="http://127.0.0.1:9/v1") == 2
        assert "http://127.0.0.1:9/v1: cannot be reached" in self.error(capsys)
        assert time.perf_counter() - started < 5
        assert not list((tmp_path / "a").iterdir())

    @pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://x/v1?key=secret"])
    def test_no_url(self, ask, capsys, url):
        assert ask("a", url=url) == 2
        assert "secret" not in self.error(capsys)

    def test_a_url_that_lacks_the_version(self, ask, server, capsys):
        assert ask("a", url=server.url.removesuffix("/v1")) == 2
        error = self.error(capsys)
        assert "404" in error
        assert "/v1" in error.splitlines()[1]

    def test_a_pasted_url_of_the_route_is_understood(self):
        assert Server("http://x/v1/chat/completions").name == Server("http://x/v1/").name == "http://x/v1"

    @pytest.mark.parametrize("status", [400, 404])
    def test_a_model_that_is_not_served(self, ask, server, capsys, status):
        server.reply = lambda *_: refusal("The model `orgg` does not exist.", status)
        assert ask("a", "--model_name", "orgg") == 2
        error = self.error(capsys)
        assert "it serves org " in error
        assert "--model_name" in error

    @pytest.mark.parametrize("key", ["", KEY])
    def test_a_key_that_is_absent_or_wrong(self, ask, server, capsys, monkeypatch, key):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        server.reply = lambda *_: refusal(f"Incorrect API key provided: {KEY}", 401)
        assert ask("a") == 2
        error = self.error(capsys)
        assert error.startswith("error: OPENAI_API_KEY in the environment: ")
        assert ("is not set" in error) == (not key)
        assert not key or KEY not in error

    def test_a_server_that_needs_no_key_gets_none(self, ask, server, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY")
        assert ask("a") == 0

    @pytest.mark.parametrize("page", ["<!doctype html><h1>Welcome</h1>", "hello"])
    def test_a_page_instead_of_an_api(self, ask, server, capsys, page):
        server.reply = lambda *_: (200, page.encode(), {"Content-Type": "text/html"})
        assert ask("a") == 2
        assert "no chat completion" in self.error(capsys)
        assert len(server.bodies) == 1

    @pytest.mark.slow
    def test_no_answer_in_time(self, ask, server, capsys):
        server.reply = lambda body, count: server.released.wait(20) and obeys(body, count)
        assert ask("a", "--timeout", "1") == 2
        assert "no answer within 1 s" in self.error(capsys)

    def test_a_text_that_is_too_long_is_found_first_and_named(self, ask, server, source, capsys):
        samples = json.loads(source.read_text())
        samples[5]["text"] += " very" * 50
        source.write_text(json.dumps(samples))
        said = "This model's maximum context length is 100 tokens."
        server.reply = lambda body, count: refusal(said) if "very" in str(body) else obeys(body, count)
        assert ask("a") == 2
        error = self.error(capsys)
        assert said in error
        assert "scenario" in error
        assert len(server.bodies) == 1

    def test_a_limit_that_stays_is_a_user_error(self, ask, server, capsys):
        server.reply = lambda *_: (429, b'{"error": {"message": "quota", "code": "insufficient_quota"}}', {})
        assert ask("a") == 2
        assert "quota" in self.error(capsys)
        assert len(server.bodies) == 1
        server.reply = lambda *_: (429, b"{}", {"Retry-After": "86400"})
        assert ask("b") == 2
        assert "limit" in self.error(capsys)

    @pytest.mark.parametrize(
        ("flags", "where"),
        [(["--base", "x"], "--base"), (["--revision", "x"], "--revision"), (["--dtype", "float32"], "--dtype"),
         (["--concurrency", "0"], "--concurrency"), (["--timeout", "0"], "--timeout"), (["--retries", "-1"], "--retries")],
    )  # fmt: skip
    def test_flags_that_do_not_go_with_a_server(self, ask, server, capsys, flags, where):
        assert ask("a", *flags) == 2
        assert self.error(capsys).startswith(f"error: {where}: ")
        assert not server.bodies

    def test_flags_that_need_a_server(self, source, tmp_path, capsys):
        flags = [
            "--input_path",
            str(source),
            "--output_dir",
            str(tmp_path / "a"),
            "--model_name",
            "toy",
            "--retries",
            "2",
        ]
        assert main(flags) == 2
        assert self.error(capsys).startswith("error: --retries: ")


def test_no_key_is_written_anywhere(ask, server, tmp_path, capfd):
    """Not in files, also of a run that stopped; not on the terminal; nor the password of a URL."""
    server.reply = lambda body, count: (
        obeys(body, count) if len(server.bodies) <= 9 else refusal(f"no {KEY} {KEY[:8]}***", 401)
    )
    url = server.url.replace("http://", "http://me:hush-hush-hush@")
    assert ask("a", url=url) == 2
    assert ask("b", url=url) == 2
    server.reply = obeys
    assert ask("a", url=url) == 0
    said = "".join(capfd.readouterr())
    for secret in (KEY, "hush"):
        assert secret not in said
        assert not [name for name, raw in contents(tmp_path).items() if secret.encode() in raw]
    assert all(headers["Authorization"].startswith("Basic ") for headers in server.headers)
