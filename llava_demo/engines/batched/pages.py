"""`Pages`: which request holds which page of the key-value cache, and which pages a new prompt can share.

Pages are numbers here; the tensors behind them are elsewhere. As in vLLM, a full page gets a hash of its tokens and of
all tokens before them. Prompts that begin alike have the same hashes and so find each other's pages. A picture is a run
of ids of its own (`model.image_tokens`), so that its hash is no other picture's.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PAGE_TOKENS = 16  # prompts share whole pages: the smaller a page, the more of a follow-up question is shared


@dataclass(eq=False)
class BlockTable:
    """The pages of one request in the order of its tokens."""

    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # one for each full and computed page, from the first on


class Pages:
    """A pool of `count` pages. A page that no request holds keeps its contents until it is needed for others.

    Free pages are taken in this order: pages without a prefix to share, then the least recently used, a prompt's last
    page first.
    """

    def __init__(self, count: int, is_sharing: bool = True) -> None:
        self.count, self._is_sharing = count, is_sharing
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))  # the next one to be taken first
        self._holders = [0] * count
        self._hash_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return self.count - len(self._free)

    @property
    def shareable(self) -> int:
        """Pages that a new prompt could find."""
        return len(self._page_of)

    def find(self, ids: Sequence[int]) -> BlockTable:
        """A table with the cached pages of a prompt's beginning, which never hold its last token.

        The last token must be computed in any case: the next one is drawn from its logits.
        """
        table = BlockTable()
        if self._is_sharing:
            for hash_ in _hashes(ids[:-1]):
                page = self._page_of.get(hash_)
                if page is None:
                    break
                self._hold(page)
                table.pages.append(page)
                table.hashes.append(hash_)
        return table

    def grow(self, table: BlockTable, tokens: int) -> bool:
        """Give `table` pages for `tokens` tokens in all; where too few are free, take none and return False."""
        missing = -(-tokens // PAGE_TOKENS) - len(table.pages)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            page, _ = self._free.popitem(last=False)
            self._forget(page)
            self._holders[page] = 1
            table.pages.append(page)
        return True

    def publish(self, table: BlockTable, ids: Sequence[int], computed: int) -> None:
        """Let others share the full pages of `table`, which holds the first `computed` of `ids`."""
        done = len(table.hashes)
        if not self._is_sharing or computed // PAGE_TOKENS == done:
            return
        last = table.hashes[-1] if table.hashes else b""
        for hash_ in _hashes(ids[done * PAGE_TOKENS : computed], last):
            page = table.pages[len(table.hashes)]
            table.hashes.append(hash_)
            if hash_ not in self._page_of:  # else another request has published the same page
                self._page_of[hash_], self._hash_of[page] = page, hash_

    def unpublish(self, table: BlockTable) -> None:
        """Hide the pages of `table` from new prompts: their keys or values may be NaN."""
        for page in table.pages:
            self._forget(page)

    def release(self, table: BlockTable) -> None:
        """Free all pages of `table`, the last one first, so that the start of a prompt stays longest."""
        while table.pages:
            page = table.pages.pop()
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free[page] = None
                self._free.move_to_end(page, last=page in self._hash_of)
        table.hashes.clear()

    def _hold(self, page: int) -> None:
        self._free.pop(page, None)
        self._holders[page] += 1

    def _forget(self, page: int) -> None:
        hash_ = self._hash_of.pop(page, None)
        if hash_ is not None:
            del self._page_of[hash_]


def _hashes(ids: Sequence[int], before: bytes = b"") -> Iterator[bytes]:
    """A hash for each whole page of `ids`, of all tokens up to its end; `before` is the hash of the previous page.

    16 bytes of BLAKE2b: a collision would show one user's conversation to another's.
    """
    for end in range(PAGE_TOKENS, len(ids) + 1, PAGE_TOKENS):
        before = hashlib.blake2b(before + array("q", ids[end - PAGE_TOKENS : end]).tobytes(), digest_size=16).digest()
        yield before
