"""A small Hugging Face Hub on the loopback interface: repositories from folders, large files behind redirects.

It answers what the real client asks for: the commit of a revision, the list of files, metadata and content of files.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """A repository.

    Attributes:
        commits: commit -> folder with its files.
        refs: branch or tag -> commit.
        token: needed to read it; None if it is public.
        gated: its licence was not accepted.
    """

    commits: dict[str, Path]
    refs: dict[str, str]
    token: str | None = None
    gated: bool = False


@dataclass
class Hub:
    """The server's repositories, and what was asked of it.

    Attributes:
        cdn: the same server by another name: the client follows a redirect to another host only for the content.
        requests: "METHOD path" of each request, with the bytes of a range.
        break_after: name of a file -> bytes after which the connection of its next download breaks.
        broken: status of every answer, as of a Hub that is down.
    """

    url: str = ""
    cdn: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    break_after: dict[str, int] = field(default_factory=dict)
    broken: int | None = None

    def add(self, name: str, folder: Path, commit: str = "a" * 40, **options: object) -> Repository:
        """Serve a folder as the repository's `main`."""
        known = self.repositories.setdefault(name, Repository({}, {}, **options))
        known.commits[commit], known.refs["main"] = folder, commit
        return known

    def fetched(self) -> list[str]:
        """Return the names of the large files whose content was asked for."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET /cdn/")]


def _is_large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".pt")


def _blob(path: Path) -> str:
    """Return a large file's SHA-256, as LFS does, and git's name of a small file."""
    content = path.read_bytes()
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if self.hub.broken:
            return self._send(self.hub.broken, {}, b"down")
        if path.startswith("/cdn/"):
            return self._send_content(Path(path.removeprefix("/cdn")))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (match or resolved)[1] if match or resolved else ""
        repository = self.hub.repositories.get(name)
        given = self.headers.get("Authorization", "")
        if repository and repository.gated:
            return self._fail(403, "GatedRepo", "Access to this model is restricted")
        if repository is None or (repository.token and given != f"Bearer {repository.token}"):
            if given and repository:
                return self._fail(401, "", "Invalid credentials in Authorization header")
            return self._fail(401 if not given else 404, "RepoNotFound", "Repository not found")
        revision = (match[3] if match else resolved[2]) or "main"
        commit = repository.refs.get(revision, revision)
        folder = repository.commits.get(commit)
        if folder is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if resolved:
            return self._resolve(commit, folder / resolved[3])
        if match[2] == "tree":
            return self._send_json([self._entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()])
        return self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": [], "tags": []})

    def _entry(self, folder: Path, path: Path) -> dict:
        size, blob = path.stat().st_size, _blob(path)
        entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": size, "oid": blob[:40]}
        return entry | ({"lfs": {"oid": blob, "size": size, "pointerSize": 130}} if _is_large(path) else {})

    def _resolve(self, commit: str, path: Path) -> None:
        if not path.is_file():
            return self._fail(404, "EntryNotFound", "Entry not found")
        blob, size, about = _blob(path), path.stat().st_size, {"X-Repo-Commit": commit}
        if not _is_large(path):
            return self._send(200, about | {"ETag": f'"{blob}"'}, path.read_bytes())
        linked = {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{blob}"', "Location": f"{self.hub.cdn}/cdn{path}"}
        return self._send(302, about | linked, b"")

    def _send_content(self, path: Path) -> None:
        """Send a large file, or the rest of it, or break the connection in the middle."""
        content, start = path.read_bytes(), 0
        headers = {"ETag": f'"{_blob(path)}"', "Accept-Ranges": "bytes"}
        if given := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(given[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        limit = self.hub.break_after.pop(path.name, None)
        self._send(206 if start else 200, headers, content[start:], limit=limit)

    def _send_json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _fail(self, status: int, code: str, message: str) -> None:
        about = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(
            status, {name: value for name, value in about.items() if value}, json.dumps({"error": message}).encode()
        )

    def _send(self, status: int, headers: dict[str, str], content: bytes, limit: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:limit])
        if limit is not None:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a server on a free port of the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.cdn = hub.url.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
