"""What servers say of requests that they refuse: their own words, without secrets, and the setting that they refuse."""

import pytest

from afintro.servers.errors import LONGEST, reason_of, server_message, setting_named_in

KEY = "gsk_abcdefghijklmnopqrstuvwxyz"


class AnswerError(Exception):
    """An error as the client raises it: with the body of the answer, or what stands in it under ``error``."""

    def __init__(self, body, status=400):
        super().__init__("not to be printed")
        self.body, self.status_code = body, status


SAID = "temperature is refused"
BODIES = {
    "openai": {"message": SAID, "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value"},
    "anthropic": {"type": "error", "error": {"type": "invalid_request_error", "message": SAID}},
    "vllm": {"object": "error", "message": SAID, "type": "BadRequestError", "param": None, "code": 400},
    "ollama": {"error": SAID},
    "tgi": SAID,
    "llama.cpp": {"code": 400, "message": SAID, "type": "invalid_request_error"},
    "google": [{"error": {"code": 400, "message": SAID, "status": "INVALID_ARGUMENT"}}],
    "fastapi": {"detail": SAID},
    "text": f" {SAID}\n",
}


@pytest.mark.parametrize("server", BODIES)
def test_every_server_is_understood(server):
    error = AnswerError(BODIES[server])
    assert server_message(error.body) == SAID
    assert reason_of(error, [KEY]) == f"AnswerError 400: {SAID}"
    assert setting_named_in(error, ["max_tokens", "temperature"]) == "temperature"
    assert setting_named_in(error, ["max_tokens"]) is None
    for status in (401, 404, 429, 500):
        assert setting_named_in(AnswerError(BODIES[server], status), ["temperature"]) is None


def test_a_list_of_faults_names_their_places():
    body = {
        "detail": [
            {
                "type": "extra_forbidden",
                "loc": ["body", "max_tokens"],
                "msg": "Extra inputs are not permitted",
                "input": {"temperature": 0},
            },
            {"type": "missing", "loc": ["body", "n"], "msg": "Field required"},
        ]
    }
    assert server_message(body) == "body.max_tokens: Extra inputs are not permitted; body.n: Field required"
    assert setting_named_in(AnswerError(body, 422), ["temperature", "max_tokens"]) == "max_tokens"


@pytest.mark.parametrize(
    ("param", "message", "named"),
    [
        ("messages", "the temperature of steam", None),
        ("", "temperature", "temperature"),
        (None, "temperatures rise", None),
        (None, "max_tokens is not supported, use max_completion_tokens", "max_tokens"),
        (None, "max_completion_tokens is unknown", None),
    ],
)
def test_which_setting_is_named(param, message, named):
    error = AnswerError({"message": message, "param": param})
    assert setting_named_in(error, ["temperature", "max_tokens"]) == named


@pytest.mark.parametrize("body", [None, "", " ", {}, [], {"code": 400}, {"message": None}, "<html>busy</html>", 7])
def test_a_server_without_words(body):
    assert reason_of(AnswerError(body, 502), []) == "AnswerError 502"


def test_no_answer_at_all():
    assert reason_of(TimeoutError("no answer"), []) == "TimeoutError"
    assert setting_named_in(TimeoutError("temperature"), ["temperature"]) is None


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.", f"key='{KEY}'", f"bad {KEY[:8]}***{KEY[-2:]}", f"{KEY}{KEY}",
        "Incorrect API key provided: sk-proj-abcdefgh", "Authorization: Bearer abcdef",
        "Basic Zm9vOmJhcg== is wrong", "pass hush!hush!",
    ],
)  # fmt: skip
def test_secrets_are_never_printed(said):
    reason = reason_of(AnswerError({"message": said}, 401), [KEY, "hush!", ""])
    assert "***" in reason
    assert not any(part in reason for part in (KEY[:7], KEY[-8:], "abcdef", "Zm9v", "hush"))


def test_a_message_is_shortened_to_one_line():
    reason = reason_of(AnswerError({"message": "so\nit " + "goes " * 500}), [])
    assert reason.startswith("AnswerError 400: so it goes")
    assert len(reason) <= LONGEST + len("AnswerError 400: ")
