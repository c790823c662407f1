"""Pictures as token ids: each gets a run of ids above the vocabulary, so that code for ids handles pictures, too.

Batching, chunked prefill and prefix sharing need no other code for pictures. An id is never used twice, and the same
picture keeps its ids, so that conversations can share its keys and values. This module knows no requests.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava_demo.chat import Message
from llava_demo.errors import EngineUnavailable
from llava_demo.images import Image
from llava_demo.model.llava import Llava, fill_images

MAX_ID = 2**31 - 1  # ids go to a GPU in 32 bits
KNOWN_PICTURES = 10_000  # a picture not among the last ones gets new ids, and its cached pages are not shared


@dataclass(eq=False)
class Picture:
    """One picture: its ids, one for each feature row, and its features while they are kept."""

    run: list[int]  # in place of it in a prompt: its ids, and ids of tokens between its rows
    ids: range
    features: Tensor | None = field(default=None, repr=False)  # (rows, width)
    holders: int = 0


@dataclass(frozen=True)
class Prompt:
    """A conversation as ids, with its pictures and the inputs for their missing features."""

    ids: list[int]
    pictures: tuple[Picture, ...]
    images: tuple[Image, ...] = field(repr=False)
    inputs: tuple[dict[str, Tensor] | None, ...] = field(repr=False)  # for the vision tower; None: cached


class ImageTokens:
    """The pictures of one engine: their ids, and as many of their features as fit into `max_rows` rows.

    A picture is identified by its bytes (the picture mode of an engine never changes). Features that no request holds
    are dropped when there is no room, least recently used first; `hold` computes them again. `prompt` may be called
    from any thread, everything else from the thread that runs the model.
    """

    def __init__(self, llava: Llava, max_rows: int) -> None:
        self.max_rows = max_rows
        self.hits = self.misses = 0  # lookups of features
        self._llava = llava
        self._lock = threading.Lock()  # over the two below
        self._known: OrderedDict[str, Picture] = OrderedDict()  # by digest; the one asked for last is last
        self._next_id = llava.vocabulary
        self._encoded: OrderedDict[int, Picture] = OrderedDict()  # by first id; the one held last is last

    @property
    def rows(self) -> int:
        """Feature rows kept at this moment."""
        return sum(len(picture.ids) for picture in self._encoded.values())

    @property
    def holders(self) -> int:
        """The number of holds on pictures; 0 while no request runs."""
        return sum(picture.holders for picture in list(self._encoded.values()))  # another thread may encode one

    def prompt(self, messages: Sequence[Message], is_raw: bool = False) -> Prompt:
        """Tokenize a conversation, and number its new pictures.

        Raises:
            InvalidRequest: see `Llava.prompt`.
            EngineUnavailable: the ids have run out (after 3.7 million pictures of LLaVA-1.5).
        """
        ids = self._llava.ids(messages, is_raw)
        images = tuple(image for message in messages for image in message.images)
        read = [self._read(image) for image in images]
        filled = fill_images(ids, self._llava.image_token_id, (picture.run for picture, _ in read))
        return Prompt(filled, tuple(p for p, _ in read), images, tuple(inputs for _, inputs in read))

    def fits(self, prompt: Prompt) -> bool:
        """True if there is room for the features of its pictures beside those that are held."""
        busy = {picture for picture in self._encoded.values() if picture.holders}
        return sum(len(picture.ids) for picture in busy.union(prompt.pictures)) <= self.max_rows

    def missing(self, prompt: Prompt) -> int:
        """The number of pictures that `hold` would have to encode."""
        return sum(picture.features is None for picture in set(prompt.pictures))

    def hold(self, prompt: Prompt) -> None:
        """Keep the features of the prompt's pictures until `release`; after an exception none of them is held."""
        with ExitStack() as held:
            for picture, image, inputs in zip(prompt.pictures, prompt.images, prompt.inputs, strict=True):
                if picture.features is None:
                    self.misses += 1
                    self._encode(picture, inputs or self._llava.picture(image)[1])
                else:
                    self.hits += 1
                self._encoded.move_to_end(picture.ids.start)
                picture.holders += 1
                held.callback(_release, [picture])
            held.pop_all()

    def release(self, prompt: Prompt) -> None:
        """Undo `hold`."""
        _release(prompt.pictures)

    def forget(self, prompt: Prompt) -> None:
        """Drop the features of its pictures that no request holds: they may be NaN."""
        for picture in prompt.pictures:
            if not picture.holders:
                self._drop(picture)

    def embedded(self, ids: Sequence[int]) -> Tensor:
        """The input embeddings, (n, width), of n ids of both kinds; pictures among them must be held."""
        first = self._llava.vocabulary
        text = torch.tensor([0 if i >= first else i for i in ids], device=self._llava.model.device)
        embeddings: Tensor = self._llava.model.get_input_embeddings()(text)
        starts = sorted(self._encoded)
        at = 0
        while at < len(ids):
            if ids[at] < first:
                at += 1
                continue
            picture = self._encoded[starts[bisect.bisect_right(starts, ids[at]) - 1]]
            row, end = ids[at] - picture.ids.start, at
            while end < len(ids) and ids[end] == ids[at] + end - at and ids[end] in picture.ids:
                end += 1
            embeddings[at:end] = picture.features[row : row + end - at]  # type: ignore[index]
            at = end
        return embeddings

    def _read(self, image: Image) -> tuple[Picture, dict[str, Tensor] | None]:
        with self._lock:
            picture = self._known.get(image.digest)
            if picture is not None:
                self._known.move_to_end(image.digest)
        if picture is not None and picture.features is not None:
            return picture, None
        run, inputs = self._llava.picture(image)  # takes milliseconds: others need not wait
        with self._lock:
            return self._known.get(image.digest) or self._new(image.digest, run), inputs

    def _new(self, digest: str, run: list[int]) -> Picture:
        """Number the rows of a picture; called with the lock held."""
        rows = run.count(self._llava.image_token_id)
        ids = range(self._next_id, self._next_id + rows)
        if ids.stop > MAX_ID:
            raise EngineUnavailable("The server has seen so many pictures that it must be restarted.")
        self._next_id = ids.stop
        picture = Picture(fill_images(run, self._llava.image_token_id, ([i] for i in ids)), ids)
        self._known[digest] = picture
        if len(self._known) > KNOWN_PICTURES:
            self._known.popitem(last=False)
        return picture

    def _encode(self, picture: Picture, inputs: dict[str, Tensor]) -> None:
        unheld = [other for other in self._encoded.values() if not other.holders]
        while unheld and self.rows + len(picture.ids) > self.max_rows:
            self._drop(unheld.pop(0))
        features = self._llava.features(inputs)
        if len(features) != len(picture.ids):
            raise ValueError(f"the processor made {len(picture.ids)} ids, the model {len(features)} features")
        picture.features = features
        self._encoded[picture.ids.start] = picture

    def _drop(self, picture: Picture) -> None:
        picture.features = None
        self._encoded.pop(picture.ids.start, None)


def _release(pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        if picture.holders < 1:
            raise RuntimeError("a picture was released more often than held")
        picture.holders -= 1
