"""A stand-in for the Hugging Face Hub on 127.0.0.1: repositories in memory that can be read and written.

It speaks the part of the Hub's HTTP API that `huggingface_hub` uses for downloads, listings and commits of small
files, and checks the metadata of model cards. Uploads need a token, as on the Hub.
"""

import base64
import hashlib
import http.server
import json
import math
import re
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import yaml

Request = http.server.BaseHTTPRequestHandler
REPO = r"(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
HUB_ID = r"[\w.-]+/[\w.-]+"


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, code: str, text: str = "") -> None:
        self.status, self.code, self.text = status, code, text


class HubStandIn:
    """Use as a context manager; `url` is what HF_ENDPOINT wants, `requests` is what was asked for.

    `repos`: `user/name` (data sets: `datasets/user/name`) -> commit -> path -> content; the last commit is `main`.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(Request):
            def do_GET(self) -> None:  # noqa: N802
                hub._answer(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, folder: Path, commit: str | None = None) -> str:
        """Make the files of `folder` the newest commit of `repo`."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return self._commit(repo, {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}, commit)

    def files(self, repo: str) -> dict[str, bytes]:
        """What `main` of `repo` holds."""
        return list(self.repos[repo].values())[-1]

    def _commit(self, repo: str, files: dict[str, bytes], commit: str | None = None) -> str:
        commits = self.repos.setdefault(repo, {})
        commit = commit or hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def _answer(self, request: Request) -> None:
        url = urllib.parse.urlparse(request.path)
        path = urllib.parse.unquote(url.path)
        self.requests.append(f"{request.command} {path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        try:
            commit, content = self._find(request, path, body, url.query)
        except Refusal as refusal:
            return _send(request, refusal.status, refusal.text.encode(), {"X-Error-Code": refusal.code})
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return _send(request, 200, data, {"X-Repo-Commit": commit, "ETag": f'"{_sha(data)}"'})

    def _find(self, request: Request, path: str, body: bytes, query: str) -> tuple[str, Any]:
        """Commit and content for one request."""
        writes = request.command == "POST" and re.search(r"/(repos/create|preupload/|commit/)", path)
        if writes and not (request.headers.get("Authorization") or "").startswith("Bearer "):
            raise Refusal(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
            if repo in self.repos:
                raise Refusal(409, "", json.dumps({"error": "You already created it", "url": f"{self.url}/{repo}"}))
            self._commit(repo, {".gitattributes": b""})
            return "", {"url": f"{self.url}/{repo}"}
        if path == "/api/validate-yaml":
            return "", check_metadata(json.loads(body)["content"])
        if found := re.fullmatch(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path):
            commit, files = self._at(found["repo"], found["revision"])
            if found["name"] not in files:
                raise Refusal(404, "EntryNotFound")
            return commit, files[found["name"]]
        pattern = rf"/api/(?:models/)?{REPO}(?:/(?P<what>[\w-]+)(?:/(?P<revision>[^/]+)(?:/(?P<folder>.*))?)?)?"
        if found := re.fullmatch(pattern, path):
            commit, files = self._at(found["repo"], found["revision"] or "main")
            return commit, self._describe(
                found["repo"], commit, files, found["what"], found["folder"] or "", body, query
            )
        raise Refusal(404, "RepoNotFound")

    def _at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        if repo not in self.repos:
            raise Refusal(404, "RepoNotFound")
        commit = list(self.repos[repo])[-1] if revision == "main" else revision
        if commit not in self.repos[repo]:
            raise Refusal(404, "RevisionNotFound")
        return commit, self.repos[repo][commit]

    def _describe(
        self, repo: str, commit: str, files: dict[str, bytes], what: str | None, folder: str, body: bytes, query: str
    ) -> Any:
        if what == "preupload":
            asked = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines() if line]
            new = {v["path"]: base64.b64decode(v["content"]) for key, v in map(_pair, lines) if key == "file"}
            oid = self._commit(repo, {**files, **new})
            return {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}
        if what in (None, "revision"):
            name = repo.removeprefix("datasets/")
            return {"id": name, "sha": commit, "siblings": [{"rfilename": n} for n in files], "tags": []}
        folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
        fields = urllib.parse.parse_qs((body or query.encode()).decode())
        if what == "paths-info":
            return [_entry(name, files) for name in sorted({*files, *folders}) if name in fields["paths"]]
        deep = fields.get("recursive", ["false"])[0].lower() == "true"
        inside = [n for n in sorted({*files, *folders}) if n.startswith(f"{folder}/" if folder else "")]
        return [_entry(n, files) for n in inside if deep or "/" not in n.removeprefix(folder).lstrip("/")]


def check_metadata(card: str) -> dict[str, Any]:
    """What the Hub checks of a card's metadata, as far as adapters have it."""
    _, block, _ = card.split("---\n", 2)
    data = yaml.safe_load(block)
    faults = [f'"{key}" is empty' for key, value in data.items() if value in (None, "")]
    for key in ("base_model", "datasets"):
        values = data.get(key, [])
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(HUB_ID, value):
                faults.append(f'"{key}" with value "{value}" is not valid. Use an id from the Hub.')
    for result in [result for model in data.get("model-index", []) for result in model["results"]]:
        wanted = {"task.type": result["task"].get("type"), "dataset.type": result["dataset"].get("type")}
        wanted |= {"dataset.name": result["dataset"].get("name")}
        faults += [f'"model-index[0].results[0].{key}" is required' for key, value in wanted.items() if not value]
        values = [metric["value"] for metric in result["metrics"]]
        faults += [
            f"{value} is no number"
            for value in values
            if not isinstance(value, (int, float)) or not math.isfinite(value)
        ]
    if faults:
        raise Refusal(400, "", json.dumps({"errors": [{"message": fault} for fault in faults], "warnings": []}))
    return {"errors": [], "warnings": []}


def _pair(line: dict[str, Any]) -> tuple[str, Any]:
    return line["key"], line["value"]


def _entry(name: str, files: dict[str, bytes]) -> dict[str, object]:
    data = files.get(name, b"")
    return {"type": "file" if name in files else "directory", "path": name, "size": len(data), "oid": _sha(data)}


def _sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _send(request: Request, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        if value:
            request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
