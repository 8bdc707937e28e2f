"""A server that speaks OpenAI's protocol, as llama.cpp's, vLLM's and Ollama's do.

https://platform.openai.com/docs/api-reference, with prompts also as lists of token ids, which its
`completions` have too.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from llama.errors import UserError
from llama.weights.fields import shorten

KEY = "OPENAI_API_KEY"
"""The environment's variable that holds the key, where a server asks for one."""
_MOST_BYTES = 1 << 24
_TIMEOUT = 600.0
"""Seconds; a server may be loading its model, or be a CPU."""


@dataclass(frozen=True)
class Answer:
    """What a server wrote."""

    text: str
    ended: bool
    """Whether it ended by itself, and not for its length."""


class NoSuchRequestError(Exception):
    """The server does not take requests of this kind."""


class Server:
    """One at `url`, with or without the `/v1` of its paths. Raises `UserError` where nothing
    answers there, or something else does."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if not self.url.endswith("/v1"):
            self.url += "/v1"

    def models(self) -> list[str]:
        """The names of what it serves."""
        found = self._ask("models", None)
        data = found.get("data") if isinstance(found, dict) else None
        rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
        names = [name for row in rows if isinstance(name := row.get("id"), str)]
        if not names:
            raise UserError(f"{self._where('models')}: lists no models: {shorten(found)}")
        return names

    def chat(self, model: str, prompt: str, max_tokens: int) -> Answer:
        """The likeliest answer to one turn of a user's, laid out by the server's own template.
        Raises NoSuchRequestError where it has no chats."""
        messages = [{"role": "user", "content": prompt}]
        choice = self._choice("chat/completions", model, {"messages": messages}, max_tokens)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        return self._answer("chat/completions", text, choice)

    def complete(self, model: str, ids: Sequence[int], max_tokens: int) -> Answer:
        """What is likeliest to follow the tokens `ids`. Raises NoSuchRequestError where it takes no
        tokens."""
        choice = self._choice("completions", model, {"prompt": list(ids)}, max_tokens)
        return self._answer("completions", choice.get("text"), choice)

    def _choice(
        self, path: str, model: str, prompt: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        asked = {**prompt, "model": model, "max_tokens": max_tokens, "temperature": 0}
        found = self._ask(path, asked)
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UserError(f"{self._where(path)}: expected `choices`, found {shorten(found)}")
        return choices[0]

    def _answer(self, path: str, text: object, choice: Mapping[str, Any]) -> Answer:
        if not isinstance(text, str):
            raise UserError(f"{self._where(path)}: expected a text, found {shorten(choice)}")
        return Answer(text, choice.get("finish_reason") == "stop")

    def _ask(self, path: str, asked: Mapping[str, Any] | None) -> Any:
        """What it says, as JSON; `asked` is posted, None is a mere GET."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if asked is None else json.dumps(asked).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                body = answer.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise self._refused(path, error, asked) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{self._where(path)}: no server answers: {reason}") from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            found = shorten(body.decode(errors="replace"))
            raise UserError(f"{self._where(path)}: expected JSON, found {found}") from None

    def _refused(
        self, path: str, error: urllib.error.HTTPError, asked: Mapping[str, Any] | None
    ) -> Exception:
        said = " ".join(error.read(_MOST_BYTES).decode(errors="replace").split())
        if error.code in (401, 403):
            return UserError(f"{self._where(path)}: asks for a key: set {KEY}")
        if asked is not None and error.code in (400, 404, 405, 422, 501):
            return NoSuchRequestError(f"{self._where(path)}: status {error.code}: {shorten(said)}")
        return UserError(f"{self._where(path)}: status {error.code}: {shorten(said)}")

    def _where(self, path: str) -> str:
        return f"--check_server: {self.url}/{path}"
