"""Pages that nobody holds leave one by one: those unused for longest first, and of a prompt its end first."""

import asyncio

from checkpoints import batched_engine_of
from test_generate import answer
from test_llava import picture

from llava_demo.chat import Message
from llava_demo.model.llava import Llava


def test_a_popular_picture_stays_while_others_come_and_go(tiny_llava: Llava) -> None:
    """30 other pictures go through a cache of a few."""
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


def test_a_follow_up_after_others_came_and_went_still_finds_the_start_of_its_prompt(tiny_llava: Llava) -> None:
    """40 pages: the prompt's 14 stay while 26 others are taken, and of those 14 the last ones go first."""
    engine = batched_engine_of(tiny_llava, pages=40)
    asked = (Message("user", "é" * 100),)
    answer(engine, asked, max_tokens=2)
    kept = answer(engine, asked, max_tokens=2).usage.cached_tokens
    answer(engine, (Message("user", "ü" * 240),), max_tokens=2)  # 32 pages
    found = answer(engine, asked, max_tokens=2).usage.cached_tokens
    assert 16 <= found < kept
    asyncio.run(engine.aclose())
