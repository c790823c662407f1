"""Pictures as ids: never given out twice, features that are there when they are wanted and leave when nobody is."""

import threading

import pytest
import torch
from checkpoints import ON_CPU, make_tiny_next
from test_llava import CHATS, picture

from llava_demo.chat import Message
from llava_demo.errors import EngineUnavailable
from llava_demo.model import image_tokens
from llava_demo.model.image_tokens import ImageTokens, Prompt
from llava_demo.model.llava import Llava

ROWS = 16  # of one picture of the tiny checkpoint


@pytest.fixture
def images(tiny_llava: Llava) -> ImageTokens:
    return ImageTokens(tiny_llava, max_rows=3 * ROWS)


def shown(images: ImageTokens, *numbers: int) -> Prompt:
    return images.prompt([Message("user", "?", tuple(picture(number) for number in numbers))])


def own_ids(prompt: Prompt, llava: Llava) -> list[int]:
    return [i for i in prompt.ids if i >= llava.vocabulary]


@pytest.mark.parametrize("name", CHATS)
def test_a_prompt_is_the_models_own_but_for_the_ids_of_pictures(
    name: str, images: ImageTokens, tiny_llava: Llava
) -> None:
    ids = images.prompt(CHATS[name]).ids
    plain = [i if i < tiny_llava.vocabulary else tiny_llava.image_token_id for i in ids]
    assert plain == tiny_llava.prompt(CHATS[name])["input_ids"][0].tolist()


def test_a_picture_keeps_its_ids_and_shares_them_with_no_other(images: ImageTokens, tiny_llava: Llava) -> None:
    one, other, again = (own_ids(shown(images, number), tiny_llava) for number in (1, 2, 1))
    assert one == again
    assert len({*one, *other}) == 2 * ROWS


def test_embeddings_are_those_that_the_model_makes(images: ImageTokens, tiny_llava: Llava) -> None:
    """Two pictures in a prompt, one of them twice; the whole prompt and any piece of it."""
    prompt = shown(images, 1, 2, 1)
    images.hold(prompt)
    inputs = tiny_llava.prompt([Message("user", "?", (picture(1), picture(2), picture(1)))])
    seen = []
    hook = tiny_llava.model.get_decoder().register_forward_pre_hook(
        lambda _, __, named: seen.append(named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        tiny_llava.model(**inputs)
    hook.remove()
    ids = prompt.ids
    with torch.no_grad():
        torch.testing.assert_close(images.embedded(ids), seen[0][0])
        for start, end in ((0, 7), (5, 20), (20, 40), (30, 31)):
            torch.testing.assert_close(images.embedded(ids[start:end]), seen[0][0, start:end])


def test_pictures_beside_each_other_are_two_runs(images: ImageTokens) -> None:
    """Their ids count on from one picture to the next, with no text between."""
    text = "<image>" * 2
    prompt = images.prompt([Message("user", text, (picture(1), picture(2)))], is_raw=True)
    images.hold(prompt)
    start = next(at for at, one in enumerate(prompt.ids) if one in prompt.pictures[0].ids)
    ids = prompt.ids[start : start + 2 * ROWS]
    assert ids == [*prompt.pictures[0].ids, *prompt.pictures[1].ids]
    assert ids == list(range(ids[0], ids[0] + 2 * ROWS))
    features = torch.cat([one.features for one in prompt.pictures])
    for first, last in ((0, 2 * ROWS), (ROWS - 3, ROWS + 3)):
        with torch.no_grad():
            embedded = images.embedded(ids[first:last])
        torch.testing.assert_close(embedded, features[first:last].to(embedded.dtype))


def test_pictures_of_different_lengths_have_as_many_ids_as_rows(tmp_path: object) -> None:
    make_tiny_next(tmp_path)
    llava = Llava.load(str(tmp_path), ON_CPU, is_local=True)
    images = ImageTokens(llava, max_rows=1000)
    sizes = [(120, 80), (80, 120), (300, 60)]
    prompt = images.prompt([Message("user", "?", tuple(picture(n, size) for n, size in enumerate(sizes)))])
    images.hold(prompt)
    assert len({len(one.ids) for one in prompt.pictures}) > 1
    assert [len(one.features) for one in prompt.pictures] == [len(one.ids) for one in prompt.pictures]


def test_features_used_longest_ago_leave_first_and_held_ones_never(images: ImageTokens) -> None:
    first, second, third, fourth = (shown(images, number) for number in range(4))
    for prompt in (first, second, third):
        images.hold(prompt)
    images.release(second)
    images.release(first)
    images.hold(first)  # used again: the second is now the one to leave
    images.release(first)
    images.hold(fourth)
    assert [prompt.pictures[0].features is not None for prompt in (first, second, third, fourth)] == [True, False] + [
        True
    ] * 2
    assert images.rows == 3 * ROWS
    assert (images.hits, images.misses) == (1, 4)
    assert images.holders == 2


def test_what_does_not_fit_beside_those_who_are_held_must_wait(images: ImageTokens) -> None:
    busy = shown(images, 1, 2)
    images.hold(busy)
    assert images.fits(shown(images, 3))
    assert images.fits(shown(images, 1, 2, 3))  # two of them are there
    assert not images.fits(shown(images, 3, 4))
    images.release(busy)
    assert images.fits(shown(images, 3, 4))


def test_features_that_left_come_back_the_same(images: ImageTokens) -> None:
    prompt = shown(images, 1)
    images.hold(prompt)
    before = prompt.pictures[0].features.clone()
    images.release(prompt)
    others = shown(images, 2, 3, 4)
    images.hold(others)
    images.release(others)
    assert prompt.pictures[0].features is None
    images.hold(prompt)
    assert torch.equal(prompt.pictures[0].features, before)


def test_a_picture_that_cannot_be_encoded_leaves_nothing_held(
    images: ImageTokens, tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, encode, calls = shown(images, 1, 2), tiny_llava.features, []

    def fail_second(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(inputs)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return encode(inputs)

    monkeypatch.setattr(tiny_llava, "features", fail_second)
    with pytest.raises(torch.OutOfMemoryError):
        images.hold(prompt)
    assert images.holders == 0
    images.hold(prompt)
    assert images.holders == 2


def test_a_release_too_many_is_noticed(images: ImageTokens) -> None:
    prompt = shown(images, 1)
    images.hold(prompt)
    images.release(prompt)
    with pytest.raises(RuntimeError, match="released more often than held"):
        images.release(prompt)


def test_a_forgotten_picture_gets_new_ids(
    images: ImageTokens, tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who still holds it keeps the old ones, with their features."""
    monkeypatch.setattr(image_tokens, "KNOWN_PICTURES", 2)
    old = shown(images, 1)
    images.hold(old)
    shown(images, 2, 3)
    new = shown(images, 1)
    assert not {*own_ids(old, tiny_llava)} & {*own_ids(new, tiny_llava)}
    images.hold(new)
    embedded = [images.embedded(prompt.ids) for prompt in (old, new)]
    torch.testing.assert_close(*embedded)


def test_ids_that_run_out_are_told(images: ImageTokens, tiny_llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tokens, "MAX_ID", tiny_llava.vocabulary + ROWS)
    shown(images, 1)
    with pytest.raises(EngineUnavailable, match="must be restarted"):
        shown(images, 2)


def test_a_picture_shown_by_many_at_the_same_moment_gets_one_run(images: ImageTokens, tiny_llava: Llava) -> None:
    prompts: list[Prompt] = []
    together = threading.Barrier(8)

    def show() -> None:
        together.wait()
        prompts.append(shown(images, 5))

    threads = [threading.Thread(target=show) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(own_ids(prompt, tiny_llava)) for prompt in prompts}) == 1
