"""The part of the Hugging Face Hub that uploads need, on the loopback interface: repositories, large files, commits."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import yaml

USER = "someone"


@dataclass
class UploadHub:
    """What the server holds.

    Attributes:
        token: the one that is accepted.
        private: repository -> whether it was created as a private one.
        files: repository -> path -> content, after each commit.
        broken: part of a path -> status that a request to it gets.
    """

    token: str
    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        status = next((status for part, status in self.hub.broken.items() if part in path), None)
        if status:
            return self._send(status, {"error": "not now"})
        if path.startswith("/large/"):  # the storage behind the Hub: the address itself is the permission
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/large/")
            self.hub.large[path.removeprefix("/large/")] = body
            return self._send(200, {})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(401, {"error": f"Invalid token {self.headers.get('Authorization')}"})
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            wrong = [] if isinstance(head, dict) and "library_name" in head else [{"message": "no head"}]
            return self._send(400 if wrong else 200, {"errors": wrong, "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name, rest = re.match(r"(?:/api/models)?/([^/]+/[^/.]+)(.*)", path).groups()
        if rest == "/preupload/main":
            return self._send(200, {"files": [self._mode(entry) for entry in json.loads(body)["files"]]})
        if rest == ".git/info/lfs/objects/batch":
            return self._send(200, {"objects": [self._place(entry) for entry in json.loads(body)["objects"]]})
        if rest == "/commit/main":
            return self._commit(name, [json.loads(line) for line in body.decode().splitlines()])
        if not rest and name in self.hub.private:  # about the repository
            return self._send(200, {"id": name, "private": self.hub.private[name], "siblings": []})
        return self._send(404, {"error": f"no {path}"})

    def _create(self, wanted: dict) -> None:
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        self.hub.private.setdefault(name, wanted.get("visibility") == "private")
        self.hub.files.setdefault(name, {})
        self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _mode(self, entry: dict) -> dict:
        large = entry["path"].endswith((".safetensors", ".webp"))
        return {"path": entry["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _place(self, entry: dict) -> dict:
        upload = {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}
        return {**entry, **({} if entry["oid"] in self.hub.large else {"actions": upload})}

    def _commit(self, name: str, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[name][value["path"]] = self.hub.large[value["oid"]]
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40})

    def _send(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve(token: str) -> Iterator[UploadHub]:
    """Run the server until the block ends."""
    hub = UploadHub(token)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
