"""What is asked of a server, what it may say, and whose text an answer is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llama.commands.export.served import Reading
from llama.commands.export.server import KEY, Answer, NoSuchRequestError, Server
from llama.errors import UserError

Says = dict[str, tuple[int, Any]]
"""By path, the status and the body, as JSON unless it is bytes."""


class Told:
    """A server of this process that says what `says` has, and keeps what it was asked."""

    def __init__(self) -> None:
        self.says: Says = {}
        self.asked: list[tuple[str, Any, str | None]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                told.asked.append((self.path, body, self.headers.get("Authorization")))
                status, said = told.says.get(self.path, (404, {"error": "no such path"}))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    monkeypatch.delenv(KEY, raising=False)
    server = Told()
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def chosen(reason: str = "stop", **choice: Any) -> Any:
    return {"choices": [{"finish_reason": reason, **choice}]}


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_address_is_taken_with_v1_or_without(ending: str, told: Told) -> None:
    told.says["/v1/models"] = 200, {"data": [{"id": "a"}, {"id": "b"}]}
    assert Server(told.url + ending).models() == ["a", "b"]


def test_the_likeliest_answer_is_asked_for(told: Told) -> None:
    told.says["/v1/chat/completions"] = 200, chosen(message={"content": "Hi."})
    told.says["/v1/completions"] = 200, chosen("length", text="Hi")
    server = Server(told.url)
    assert server.chat("m", "Hello", 7) == Answer("Hi.", ended=True)
    assert server.complete("m", [1, 2], 7) == Answer("Hi", ended=False)
    (_, chat, _), (_, tokens, _) = told.asked
    assert chat["messages"] == [{"role": "user", "content": "Hello"}]
    assert tokens["prompt"] == [1, 2]
    for asked in (chat, tokens):
        assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("m", 7, 0)


def test_a_key_is_sent_if_there_is_one(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    told.says["/v1/models"] = 200, {"data": [{"id": "a"}]}
    monkeypatch.setenv(KEY, "secret")
    Server(told.url).models()
    assert told.asked[0][2] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "said", "piece"),
    [
        (200, {"data": []}, "lists no models"),
        (200, {"data": "a"}, "lists no models"),
        (200, [1], "lists no models"),
        (200, b"<html>", "expected JSON, found '<html>'"),
        (401, {}, "asks for a key: set OPENAI_API_KEY"),
        (500, b"out of\nmemory", "status 500: 'out of memory'"),
        (404, {}, "status 404"),
    ],
)
def test_what_lists_no_models_is_named(status: int, said: Any, piece: str, told: Told) -> None:
    told.says["/v1/models"] = status, said
    with pytest.raises(UserError, match=r"--check_server: http.*/v1/models: ") as caught:
        Server(told.url).models()
    assert piece in str(caught.value)


@pytest.mark.parametrize(
    ("said", "piece"),
    [
        ({"choices": []}, "expected `choices`"),
        ({"error": "x"}, "expected `choices`"),
        (chosen(message={"content": None}), "expected a text"),
        (chosen(message="a"), "expected a text"),
    ],
)
def test_an_answer_that_is_none_is_named(said: Any, piece: str, told: Told) -> None:
    told.says["/v1/chat/completions"] = 200, said
    with pytest.raises(UserError, match=piece):
        Server(told.url).chat("m", "Hello", 7)


@pytest.mark.parametrize("status", [400, 404, 422, 501])
def test_a_request_that_is_not_taken_is_told_apart(status: int, told: Told) -> None:
    told.says["/v1/completions"] = status, {"error": "prompt must be a string"}
    with pytest.raises(NoSuchRequestError, match="prompt must be a string"):
        Server(told.url).complete("m", [1], 7)


def test_nothing_at_an_address_is_named() -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1/models: no server answers"):
        Server("http://127.0.0.1:9").models()


@pytest.mark.parametrize(
    ("base", "adapter", "which"),
    [
        (0.6, 1.0, "adapter"),
        (0.95, 1.0, "adapter"),
        (0.99, 0.7, "base"),
        (1.0, 0.95, "base"),
        (1.0, 1.0, "alike"),
        (0.99, 0.995, "alike"),
        (0.5, 0.85, "neither"),
        (0.0, 0.0, "neither"),
    ],
)
def test_whose_text_it_is(base: float, adapter: float, which: str) -> None:
    assert Reading("completions", 300, base, adapter).which == which
