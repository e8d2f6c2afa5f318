"""A hub on this machine: of the Hugging Face hub's interface what `huggingface_hub` uses, with files in memory."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repository:
    """Files at one commit, and who may have them."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    gated: bool = False
    stated: dict[str, bytes] = field(default_factory=dict)  # content that is stated in place of a file's own


class Hub(ThreadingHTTPServer):
    """The server; `requests` are those it got, as "GET /path", `ranges` the Range headers among them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.drop_after: int | None = None  # bytes of a file after which the connection ends, once

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub while the context lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = about or file
        repository = self.server.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif match[2] not in (None, "main", repository.commit):
            self._refuse(404, "RevisionNotFound", "Revision not found")
        elif repository.gated and (file is not None):
            self._refuse(401, "GatedRepo", "Access to this model is restricted")
        elif about is not None:
            self._send_json(self._about(match[1], repository))
        elif match[3] not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file(repository, match[3], with_body)

    def _about(self, name: str, repository: Repository) -> dict[str, object]:
        siblings = []
        for file, content in repository.files.items():
            stated = repository.stated.get(file, content)
            sha = hashlib.sha256(stated).hexdigest()
            lfs = {"sha256": sha, "size": len(stated), "pointerSize": 130}
            siblings.append({"rfilename": file, "size": len(stated), "blobId": sha[:40], "lfs": lfs})
        return {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "private": False,
                "gated": "auto" if repository.gated else False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def _send_json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, repository: Repository, file: str, with_body: bool) -> None:
        content = repository.files[file]
        etag = hashlib.sha256(repository.stated.get(file, content)).hexdigest()
        start = 0
        wanted = self.headers.get("Range")
        if wanted:
            self.server.ranges.append(wanted)
            start = int(re.fullmatch(r"bytes=(\d+)-.*", wanted)[1])  # type: ignore[index]
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not with_body:
            return
        body = content[start:]
        if self.server.drop_after is not None:
            body, self.server.drop_after = body[: self.server.drop_after], None
            self.close_connection = True
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()
