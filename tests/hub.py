"""A Hub of one model on this machine, as far as the Hub's client asks: commits, file lists, files, and a gate."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class LocalHub(ThreadingHTTPServer):
    """Serves `commits` (commit: folder) of the model `name`; `main` is the commit that the branch points to.

    With a `token`, whoever does not send it is refused as for a gated model. `asked` lists the paths asked for.
    """

    def __init__(self, name: str, commits: dict[str, Path], main: str, token: str | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.commits, self.main, self.token = name, commits, main, token
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, revision: str) -> str | None:
        return self.main if revision == "main" else revision if revision in self.commits else None


@contextmanager
def served(hub: LocalHub) -> Iterator[LocalHub]:
    """`hub`, answering until the block ends."""
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        hub = self.server
        path = self.path.split("?")[0]
        hub.asked.append(path)
        found = re.fullmatch(
            rf"/(api/models/)?{re.escape(hub.name)}(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path
        )
        commit = hub.commit_of(found[3] or "main") if found else None
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if commit is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if found else "RepoNotFound"})
        files = {p.name: p.read_bytes() for p in sorted(hub.commits[commit].iterdir())}
        if found[2] == "tree":
            rows = [{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()]
            return self._send(200, json.dumps(rows).encode(), {"X-Repo-Commit": commit}, body)
        if found[1]:
            info = {"id": hub.name, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self._send(200, json.dumps(info).encode(), {"X-Repo-Commit": commit}, body)
        if found[4] not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[found[4]]
        return self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"'}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
