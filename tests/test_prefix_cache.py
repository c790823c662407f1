"""Pages that nobody holds leave one by one: those unused for longest first, and of a prompt its end first."""

import asyncio

from checkpoints import batched_engine_of
from test_generate import answer
from test_llava import picture

from llava_demo.chat import Message
from llava_demo.model.llava import Llava


def test_a_popular_picture_stays_while_others_come_and_go(tiny_llava: Llava) -> None:
    """30 other pictures go through a cache of a few; transformers alone would drop all at each eviction."""
    engine = batched_engine_of(tiny_llava, pages=40)

    def ask(number: int) -> int:
        question = "what is this, and where in the picture is it to be seen?"
        return answer(engine, (Message("user", question, (picture(number),)),), max_tokens=2).usage.cached_tokens

    ask(0)
    found = []
    for number in range(1, 31):
        ask(number)
        if number % 3 == 0:
            found.append(ask(0))
    assert min(found) >= 32
    assert engine.status().cached_tokens < 40 * 16
    assert ask(1) < 32  # long gone
    asyncio.run(engine.aclose())


def test_the_start_of_a_prompt_is_evicted_last(tiny_llava: Llava) -> None:
    engine = batched_engine_of(tiny_llava, pages=40)
    text = "é" * 100
    answer(engine, (Message("user", text),), max_tokens=2)
    before = engine.batch.shareable_tokens
    ledgers = [allocator.ledger for allocator in engine.batch.cache.cache_allocators.values()]
    pages = [list(ledger.cached_blocks) for ledger in ledgers]
    for ledger, oldest in zip(ledgers, pages, strict=True):  # as the engine does when memory runs short
        for page in oldest[:5]:
            del ledger.cached_blocks[page]
            del ledger.hash_to_block[ledger.block_to_hash.pop(page)]
    cached = answer(engine, (Message("user", text),), max_tokens=2).usage.cached_tokens
    assert cached == before - 5 * 16
    asyncio.run(engine.aclose())
