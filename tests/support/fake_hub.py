"""A Hugging Face hub of a test's own: data sets as dictionaries, served by HTTP to any process that
is given `environment`."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FakeHub:
    """`sets` maps `org/name`, or `org/name@revision`, to its files. Names in `gated` are listed and
    not given."""

    address: str
    home: Path
    sets: dict[str, Mapping[str, bytes | str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    """Paths of files that were fetched."""

    @property
    def environment(self) -> dict[str, str]:
        """For a process that asks this hub, with a cache of the test's own and no user's token."""
        own = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_")
        apart = {name: text for name, text in os.environ.items() if not name.startswith(own)}
        return apart | {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def commit_of(self, key: str) -> str:
        """The commit at which a set is."""
        return hashlib.sha1(key.encode()).hexdigest()


@contextmanager
def fake_hub(home: Path) -> Iterator[FakeHub]:
    """A hub that serves until the block ends."""
    hub = FakeHub("", home)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0].replace("%2F", "/").replace("%2f", "/")
            if path.startswith("/api/datasets/"):
                self._describe(path.removeprefix("/api/datasets/"))
            elif path.startswith("/datasets/"):
                self._give(path.removeprefix("/datasets/"))
            else:
                self._send(404, b"")

        def _describe(self, path: str) -> None:
            repo, _, revision = path.partition("/revision/")
            if repo not in hub.sets:
                return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            key = f"{repo}@{revision}" if revision and revision != "main" else repo
            if key not in hub.sets:
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": name} for name in hub.sets[key]]
            said = {"id": repo, "sha": hub.commit_of(key), "siblings": files, "tags": []}
            self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

        def _give(self, path: str) -> None:
            repo, _, rest = path.partition("/resolve/")
            for key in hub.sets:
                revisions = (hub.commit_of(key), key.partition("@")[2] or "main")
                at = next((at for at in revisions if rest.startswith(f"{at}/")), None)
                if key.partition("@")[0] == repo and at is not None:
                    return self._give_file(key, rest.removeprefix(f"{at}/"))
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})

        def _give_file(self, key: str, file: str) -> None:
            repo, commit = key.partition("@")[0], hub.commit_of(key)
            if file not in hub.sets[key]:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            if repo in hub.gated:
                return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            content = hub.sets[key][file]
            content = content.encode() if isinstance(content, str) else content
            if self.command == "GET":
                hub.asked.append(file)
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._send(200, content, {"X-Repo-Commit": commit, "ETag": etag})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler
