"""A stand-in for the Hugging Face Hub: as much of its HTTP API as making a Space takes, and what was sent to it.

It is written after huggingface_hub 2.4's requests: text files travel within the commit, binary ones as LFS objects.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from servers import free_port
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN = "hf_stand_in"
BINARY = (".png", ".safetensors")


@dataclass
class Hub:
    """What it was told. `files` are those of the Space after the last commit."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)  # settings of the Space, in order
    lfs: dict[str, bytes] = field(default_factory=dict)

    @property
    def app(self) -> Starlette:
        space = "/api/spaces/{user}/{name}"
        return Starlette(
            routes=[
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route("/api/validate-yaml", self.nothing_wrong, methods=["POST"]),
                Route(f"{space}/preupload/main", self.preupload, methods=["POST"]),
                Route(f"{space}/commit/main", self.commit, methods=["POST"]),
                Route(f"{space}/tree/main", self.tree),
                Route(space + "/{setting:str}", self.set, methods=["POST", "PUT"]),
                Route(space + "/revision/main", self.info),
                Route(space, self.info),
                Route("/spaces/{user}/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
                Route("/lfs/{oid}", self.store, methods=["PUT"]),
            ],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=self.only_with_token)],
        )

    async def only_with_token(self, request: Request, answer: RequestResponseEndpoint) -> Response:
        is_api = request.url.path.startswith("/api/")  # git's own protocol has other tokens
        if is_api and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        return await answer(request)

    async def create(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(("create", body))
        return JSONResponse({"url": f"{self.url}/spaces/{body.get('organization', 'me')}/{body['name']}"})

    async def nothing_wrong(self, _: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def set(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((request.path_params["setting"], body))
        return JSONResponse({"stage": "BUILDING", "hardware": {}, "sleepTimeSeconds": None} if "flavor" in body else {})

    async def info(self, request: Request) -> Response:
        name = f"{request.path_params['user']}/{request.path_params['name']}"
        siblings = [{"rfilename": path} for path in self.files]
        return JSONResponse({"id": name, "sha": "0" * 40, "siblings": siblings, "private": False, "tags": []})

    async def tree(self, _: Request) -> Response:
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.files.items()
        ]
        return JSONResponse(entries)

    async def preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(BINARY) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return JSONResponse({"files": modes})

    async def batch(self, request: Request) -> Response:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.url}/lfs/{entry['oid']}", "header": {}}}}
            for entry in (await request.json())["objects"]
        ]
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    async def store(self, request: Request) -> Response:
        data = await request.body()
        assert hashlib.sha256(data).hexdigest() == request.path_params["oid"]
        self.lfs[request.path_params["oid"]] = data
        return Response()

    async def commit(self, request: Request) -> Response:
        self.asked.append(("commit", None))
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[value["path"]] = self.lfs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del self.files[value["path"]]
        name = f"{request.path_params['user']}/{request.path_params['name']}"
        url = f"{self.url}/spaces/{name}/commit/{'1' * 40}"
        return JSONResponse({"commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})


@dataclass
class ModelsHub:
    """As much of the Hub as fetching a checkpoint takes: `name` is its id, its files are those of `folder`."""

    name: str
    folder: Path
    url: str = ""
    broken_after: int | None = None  # bytes of a file of weights, after which the connection is closed
    breaks: int = 1_000_000  # how often it is
    ranges: list[str] = field(default_factory=list)  # parts of the weights that were asked for; "" is all of them

    @property
    def app(self) -> Starlette:
        api = "/api/models/{user}/{name}"
        return Starlette(
            routes=[
                Route(api + "/revision/{revision}", self.info),
                Route(api, self.info),
                Route(api + "/tree/{revision}", self.tree),
                Route("/{user}/{name}/resolve/{revision}/{path:path}", self.file),
            ]
        )

    async def info(self, _: Request) -> Response:
        siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in self.folder.iterdir()]
        return JSONResponse({"id": self.name, "sha": "0" * 40, "siblings": siblings, "private": False, "tags": []})

    async def tree(self, _: Request) -> Response:
        files = [(path, path.read_bytes()) for path in self.folder.iterdir()]
        entries = [
            {"type": "file", "path": path.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files
        ]
        return JSONResponse(entries)

    async def file(self, request: Request) -> Response:
        path = self.folder / request.path_params["path"]
        if not path.is_file():
            return JSONResponse({}, 404, headers={"X-Error-Code": "EntryNotFound"})
        tag = hashlib.sha1(path.read_bytes()).hexdigest()
        if path.suffix == ".safetensors" and request.method == "GET":
            part = request.headers.get("range", "")
            self.ranges.append(part)
            if self.broken_after is not None and self.breaks:
                self.breaks -= 1
                return self.cut(path, int(part.removeprefix("bytes=").partition("-")[0] or 0))
        return FileResponse(path, headers={"X-Repo-Commit": "0" * 40, "ETag": f'"{tag}"'})

    def cut(self, path: Path, start: int) -> Response:
        """A part of the file, or nothing of it; then the connection is closed."""
        size = path.stat().st_size
        headers = {"Content-Length": str(size - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"

        def sent() -> Iterator[bytes]:
            yield path.read_bytes()[start : self.broken_after]
            raise ConnectionError("the connection broke off, as it was told to")

        return StreamingResponse(sent(), 206 if start else 200, headers=headers)


@contextmanager
def stand_in_hub() -> Iterator[Hub]:
    with _served(Hub()) as hub:
        yield hub


@contextmanager
def models_hub(name: str, folder: Path) -> Iterator[ModelsHub]:
    with _served(ModelsHub(name, folder)) as hub:
        yield hub


@contextmanager
def _served(hub: Any) -> Iterator[Any]:
    port = free_port()
    hub.url = f"http://127.0.0.1:{port}"
    server = uvicorn.Server(uvicorn.Config(hub.app, port=port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield hub
    finally:
        server.should_exit = True
        thread.join()
