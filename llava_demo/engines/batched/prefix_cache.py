"""Which pages of the cache go first when memory runs short: those whose prompt nobody has asked with for longest.

transformers 5.23 drops all pages that no request holds at once, whenever less than 15 % of the cache is free
(scheduler.py:188, cache.py:359), and with them the pictures that everybody asks about.
"""

from transformers.generation.continuous_batching.cache import PagedAttentionCache

FREE_AGAIN = 0.25  # of the cache, after an eviction; transformers evicts below 0.15


def keep_recent_prefixes(cache: PagedAttentionCache, found: dict[str, int]) -> None:
    """Make `cache` evict page by page; `found` gets how many tokens of each request's prompt were in the cache."""
    search, free = cache.search_prefix_match, cache.free_blocks

    def search_prefix_match(request_id: str, prompt_ids: list[int]) -> int:
        tokens = search(request_id, prompt_ids)
        found.setdefault(request_id, tokens)
        return tokens

    def free_blocks(request_id: str, no_cache: bool = False) -> None:
        # From the end, so that the start of a prompt, which others may share, is evicted last.
        for allocator in cache.cache_allocators.values():
            allocator.block_table.get(request_id, []).reverse()
        free(request_id, no_cache)

    def evict_cached_blocks() -> bool:
        """Evict the oldest pages until enough is free; all of them if enough seems free and is not."""
        missing = int((FREE_AGAIN - cache.compute_free_capacity()) * cache.num_blocks)
        is_any = False
        for allocator in cache.cache_allocators.values():
            ledger = allocator.ledger
            oldest = list(ledger.cached_blocks)[: missing if missing > 0 else None]
            for page in oldest:
                del ledger.cached_blocks[page]
                del ledger.hash_to_block[ledger.block_to_hash.pop(page)]
            cache.pool.free_blocks(allocator.index, oldest)
            is_any = is_any or bool(oldest)
        return is_any

    cache.search_prefix_match = search_prefix_match  # type: ignore[method-assign]
    cache.free_blocks = free_blocks  # type: ignore[method-assign]
    cache.evict_cached_blocks = evict_cached_blocks  # type: ignore[method-assign]
