"""The servers behind the remote engine: which are up, what they serve, and which one is the least busy.

A server is down when it cannot be reached or answers with 502, 503 or 504, and up again when it answers. It is checked
every few seconds, and tried as the last resort of a request that no other server could answer.
"""

import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from llava_demo.wire.openai_client import Served, served_from

CHECK_EVERY_S = 5.0
CHECK_TIMEOUT_S = 3.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Upstream:
    """One server. `url` ends before `/chat/completions`."""

    url: str
    served: Served
    is_up: bool = False
    asked: int = 0  # requests of ours that it is answering

    @property
    def name(self) -> str:
        """Its host and port, for the log."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


class Upstreams:
    """All servers; thread-safe. They are checked once at the start, then by a thread until `close`."""

    def __init__(self, urls: Sequence[str], key: str | None, model: str | None) -> None:
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.tls = httpx.create_ssl_context()  # made once: it reads all certificates of the machine
        self._wanted = model
        self._all = [Upstream(url, Served(model)) for url in urls]
        self._lock = threading.Lock()  # over every `asked` and `is_up`
        self._closing = threading.Event()
        self._check_all()
        threading.Thread(target=self._keep_checking, name="upstreams", daemon=True).start()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def count_up(self) -> int:
        return sum(upstream.is_up for upstream in self._all)

    @property
    def served(self) -> Served:
        """What the first server serves that has listed its models."""
        told = (upstream.served for upstream in self._all if upstream.served != Served(self._wanted))
        return next(told, Served(self._wanted))

    def least_busy(self, but: Collection[Upstream]) -> Upstream | None:
        """The server to ask next, none of `but`: the least busy one that is up, else the least busy one."""
        with self._lock:
            left = [upstream for upstream in self._all if upstream not in but]
            return min(left, key=lambda upstream: (not upstream.is_up, upstream.asked), default=None)

    @contextmanager
    def asking(self, upstream: Upstream) -> Iterator[None]:
        """Within the block, the server counts as busy with one more request."""
        with self._lock:
            upstream.asked += 1
        try:
            yield
        finally:
            with self._lock:
                upstream.asked -= 1

    def saw(self, upstream: Upstream, is_up: bool) -> None:
        """Note whether a server answers, and log a change."""
        with self._lock:
            was_up, upstream.is_up = upstream.is_up, is_up
        if was_up != is_up:
            _log.log(logging.INFO if is_up else logging.WARNING, "%s is %s", upstream.name, "up" if is_up else "down")

    def close(self) -> None:
        self._closing.set()

    def _keep_checking(self) -> None:
        while not self._closing.wait(CHECK_EVERY_S):
            self._check_all()

    def _check_all(self) -> None:
        with (
            httpx.Client(headers=self.headers, verify=self.tls, timeout=CHECK_TIMEOUT_S) as client,
            ThreadPoolExecutor(len(self._all)) as pool,
        ):
            list(pool.map(lambda upstream: self._check(client, upstream), self._all))

    def _check(self, client: httpx.Client, upstream: Upstream) -> None:
        """Ask for `/models`, which every such server has; a server may answer with an error and still be up."""
        try:
            answer = client.get(f"{upstream.url}/models")
        except httpx.HTTPError:
            self.saw(upstream, is_up=False)
            return
        if answer.status_code == 200:
            try:
                upstream.served = served_from(answer.json(), self._wanted)
            except (ValueError, RecursionError):
                _log.debug("the list of models of %s is not JSON", upstream.name)
        self.saw(upstream, is_up=answer.status_code not in (502, 503, 504))
