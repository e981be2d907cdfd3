"""A stand-in for the Hugging Face Hub on 127.0.0.1 that serves one data set repository at several commits."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path


def _sha(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class HubServer:
    """Use as a context manager; `url` is what HF_ENDPOINT wants, `requests` is what was asked for.

    `commits`: commit -> folder with its files; the last one is `main`.
    """

    def __init__(self, repo: str, commits: dict[str, Path]) -> None:
        self.repo = repo
        self.commits = commits
        self.requests: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub._answer(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _commit(self, revision: str) -> str | None:
        return {**{commit: commit for commit in self.commits}, "main": list(self.commits)[-1]}.get(revision)

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        url = urllib.parse.urlparse(request.path)
        path = urllib.parse.unquote(url.path)
        self.requests.append(f"{request.command} {path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        files, api = f"/datasets/{self.repo}/resolve/", f"/api/datasets/{self.repo}"
        if path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            commit = self._commit(revision)
            file = self.commits[commit] / name if commit else None
            if file is not None and file.is_file():
                self._send(request, file.read_bytes(), commit)
            else:
                self._refuse(request, "EntryNotFound" if commit else "RevisionNotFound")
        elif path.startswith(api):
            what, _, rest = path.removeprefix(api).strip("/").partition("/")
            revision, _, folder = rest.partition("/")
            commit = self._commit(revision or "main")
            if commit is None:
                self._refuse(request, "RevisionNotFound")
            else:
                self._send(
                    request,
                    json.dumps(self._describe(what, commit, folder, body or url.query.encode())).encode(),
                    commit,
                )
        else:
            self._refuse(request, "RepoNotFound")

    def _describe(self, what: str, commit: str, folder: str, query: bytes) -> object:
        root = self.commits[commit]
        paths = sorted(root.rglob("*"))
        names = [path.relative_to(root).as_posix() for path in paths if path.is_file()]
        if what in ("", "revision"):
            return {"id": self.repo, "sha": commit, "siblings": [{"rfilename": n} for n in names], "tags": []}
        fields = urllib.parse.parse_qs(query.decode())
        if what == "paths-info":
            return [self._entry(path, root) for path in paths if path.relative_to(root).as_posix() in fields["paths"]]
        top = root / folder
        if fields.get("recursive", ["false"])[0].lower() != "true":
            paths = [path for path in paths if path.parent == top]
        return [self._entry(path, root) for path in paths if path.is_relative_to(top) and path != top]

    def _entry(self, path: Path, root: Path) -> dict[str, object]:
        data = path.read_bytes() if path.is_file() else b""
        kind = "file" if path.is_file() else "directory"
        return {"type": kind, "path": path.relative_to(root).as_posix(), "size": len(data), "oid": _sha(data)}

    def _send(self, request: http.server.BaseHTTPRequestHandler, body: bytes, commit: str) -> None:
        request.send_response(200)
        request.send_header("X-Repo-Commit", commit)
        request.send_header("ETag", f'"{_sha(body)}"')
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _refuse(self, request: http.server.BaseHTTPRequestHandler, code: str) -> None:
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
