"""Pages: what a prompt shares, which page is given up first, and that none is lost or held twice."""

import random

from llava_demo.engines.batched.pages import PAGE_TOKENS, BlockTable, Pages


def filled(pages: Pages, ids: list[int]) -> BlockTable:
    """A request whose `ids` are all computed."""
    table = pages.find(ids)
    assert pages.grow(table, len(ids))
    pages.publish(table, ids, len(ids))
    return table


def ids_of(prompt: int, tokens: int) -> list[int]:
    return [1000 * prompt + n for n in range(tokens)]


def test_prompts_that_begin_alike_share_whole_pages() -> None:
    pages = Pages(20)
    first = filled(pages, ids_of(1, 40))
    second = pages.find(ids_of(1, 36) + ids_of(2, 10))
    assert second.pages == first.pages[:2]
    assert pages.used == 3


def test_the_last_token_is_never_found() -> None:
    """Its logits are needed, even where all of the prompt was there before."""
    pages = Pages(20)
    filled(pages, ids_of(1, 32))
    assert len(pages.find(ids_of(1, 32)).pages) == 1
    assert len(pages.find(ids_of(1, 33)).pages) == 2


def test_the_same_page_after_another_beginning_is_not_shared() -> None:
    pages = Pages(20)
    filled(pages, ids_of(1, 16) + ids_of(2, 16))
    assert pages.find(ids_of(3, 16) + ids_of(2, 17)).pages == []
    assert pages.find(ids_of(2, 17)).pages == []


def test_pages_that_are_not_computed_are_not_shared() -> None:
    pages, ids = Pages(20), ids_of(1, 64)
    table = pages.find(ids)
    pages.grow(table, 64)
    pages.publish(table, ids, 40)
    assert len(pages.find(ids).pages) == 2
    pages.publish(table, ids, 64)
    assert len(pages.find([*ids, 0]).pages) == 4


def test_without_sharing_nothing_is_found() -> None:
    pages = Pages(20, is_sharing=False)
    filled(pages, ids_of(1, 64))
    assert pages.find(ids_of(1, 64)).pages == []
    assert pages.shareable == 0


def test_what_was_used_longest_ago_goes_first_and_of_a_prompt_its_end() -> None:
    pages = Pages(8)
    for prompt in (1, 2):
        pages.release(filled(pages, ids_of(prompt, 4 * PAGE_TOKENS)))
    pages.release(pages.find(ids_of(1, 100)))  # prompt 1 is asked for again
    table = BlockTable()
    assert pages.grow(table, 3 * PAGE_TOKENS)
    found = [len(pages.find(ids_of(prompt, 100)).pages) for prompt in (1, 2)]
    assert found == [4, 1]


def test_pages_without_a_hash_are_taken_before_those_that_can_be_shared() -> None:
    pages = Pages(4)
    shared = filled(pages, ids_of(1, 32))
    unfinished = pages.find(ids_of(2, 20))
    pages.grow(unfinished, 20)
    pages.release(shared)
    pages.release(unfinished)
    assert pages.grow(BlockTable(), 2 * PAGE_TOKENS)
    assert len(pages.find(ids_of(1, 33)).pages) == 2


def test_a_request_that_finds_too_few_pages_takes_none() -> None:
    pages = Pages(4)
    table = BlockTable()
    assert pages.grow(table, 20)
    assert not pages.grow(table, 80)
    assert (len(table.pages), pages.used) == (2, 2)
    assert pages.grow(table, 64)


def test_two_that_compute_the_same_at_once_keep_their_own_pages() -> None:
    pages, ids = Pages(8), ids_of(1, 32)
    tables = [pages.find(ids), pages.find(ids)]
    for table in tables:
        pages.grow(table, 32)
    for table in tables:
        pages.publish(table, ids, 32)
    assert pages.shareable == 2
    assert not set(tables[0].pages) & set(tables[1].pages)
    for table in tables:
        pages.release(table)
    assert (pages.used, pages.shareable) == (0, 2)


def test_after_10_000_random_moves_every_page_is_free_once_and_no_hash_is_stale() -> None:
    chance, pages = random.Random(0), Pages(30)
    held: list[tuple[BlockTable, list[int]]] = []
    for _ in range(10_000):
        if held and chance.random() < 0.5:
            table, _ = held.pop(chance.randrange(len(held)))
            pages.release(table)
            continue
        ids = ids_of(chance.randrange(4), chance.randrange(1, 100))
        table = pages.find(ids)
        if pages.grow(table, len(ids)):
            pages.publish(table, ids, len(ids))
            held.append((table, ids))
        else:
            pages.release(table)
        assert pages.used == len({page for table, _ in held for page in table.pages})
    for table, _ in held:
        pages.release(table)
    assert pages.used == 0
    everything = BlockTable()
    assert pages.grow(everything, 30 * PAGE_TOKENS)
    assert sorted(everything.pages) == list(range(30))
    assert pages.shareable == 0
