"""Pictures from Gradio: finished uploads in its cache, and web addresses, which it must not fetch."""

import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from llava_demo.errors import InvalidImage, InvalidRequest
from llava_demo.images import Image, ImageLimits
from llava_demo.images.download import Downloads
from llava_demo.wire.messages import ImageFromUrl, is_web_address, web_addresses

KEEP_UPLOADS_S = 7 * 24 * 3600  # an open conversation reads its pictures again at each turn

_FINISHED_UPLOAD = re.compile(r"[0-9a-f]{64}/[^/]+")  # below Gradio's upload folder; unfinished ones are in the folder

VANISHED = "The picture is no longer on this server; reload the page, or upload it again."

MAX_CACHED_BYTES = 2**27  # about 25 uploaded photos, with the squares that the model sees

_SQUARE_BYTES = 2**20  # an `Image` keeps its square; LLaVA-1.5's has a third of that


def leave_addresses_alone(block: Block) -> None:
    """Pass files that are web addresses to our code unchanged.

    Gradio 6.31 would fetch them first, without limits of size and time, and despite --no-fetch-urls.
    """
    move = block.async_move_resource_to_block_cache

    async def move_files(path: str | Path | None) -> str | None:
        return path if isinstance(path, str) and is_web_address(path) else await move(path)

    block.async_move_resource_to_block_cache = move_files  # type: ignore[method-assign]


class ReadUploads:
    """Reads pictures of Gradio's cache and keeps them: each turn of a conversation reads all of its pictures.

    The last `max_bytes` of pictures are kept, for all visitors together.
    """

    def __init__(self, limits: ImageLimits, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._limits, self._max_bytes = limits, max_bytes
        self._lock = threading.Lock()
        self._images: OrderedDict[tuple[str, int, int], Image] = OrderedDict()
        self._bytes = 0

    def __call__(self, path: str) -> Image:
        """Raises what `Image.from_path` raises, and InvalidImage for a file that was deleted since."""
        try:
            stat = Path(path).stat()
        except (OSError, ValueError) as error:
            if _is_finished_upload(Path(path)):
                raise InvalidImage(VANISHED, "image") from error
            return Image.from_path(path, self._limits)  # raises what is wrong
        key = (path, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if image := self._images.get(key):
                self._images.move_to_end(key)
                return image
        image = Image.from_path(path, self._limits)
        with self._lock:
            if key not in self._images:
                self._images[key] = image
                self._bytes += _bytes_of(image)
            while self._bytes > self._max_bytes:
                self._bytes -= _bytes_of(self._images.popitem(last=False)[1])
        return image


def _bytes_of(image: Image) -> int:
    return len(image.data) + _SQUARE_BYTES


def _is_finished_upload(path: Path) -> bool:
    """Whether Gradio puts finished uploads at this path; the file may have been deleted since."""
    folder = Path(gr.utils.get_upload_folder()).resolve()
    return path.is_relative_to(folder) and bool(_FINISHED_UPLOAD.fullmatch(path.relative_to(folder).as_posix()))


class Uploads:
    """Opens the files that callers of the API send, for one page."""

    def __init__(self, limits: ImageLimits, downloads: Downloads | None, max_images: int) -> None:
        self._limits, self._downloads, self._max_images = limits, downloads, max_images

    async def fetched(self, messages: Any) -> ImageFromUrl:
        """Fetch the web addresses in `messages`; returns a function that gives the picture of each or raises.

        Raises:
            InvalidRequest: more addresses than a conversation may have pictures.
        """
        urls = {*web_addresses(messages), *_addresses_of_files(messages)} if self._downloads else set()
        if len(urls) > self._max_images:
            most = f"at most {self._max_images} are allowed"
            raise InvalidRequest(f"The conversation has {len(urls)} pictures to fetch; {most}.", "messages")
        return await self._downloads.pictures(urls) if self._downloads else self._unfetched

    def opened(self, file: Any, from_url: ImageFromUrl) -> Image:
        """Read a picture that the caller uploaded, or gave as a file with a web address.

        Gradio checks the path only of dicts that are marked as its FileData; without the mark any path arrives here.

        Raises:
            InvalidImage: it is not a finished upload, or not a picture.
        """
        path = file.get("path") if isinstance(file, dict) else None
        if isinstance(path, str) and is_web_address(path):
            return from_url(path)
        if isinstance(path, str) and "\0" not in path:
            real = Path(path).resolve()
            if _is_finished_upload(real):
                if not real.exists():
                    raise InvalidImage(VANISHED, "image")
                return Image.from_path(real, self._limits)
        raise InvalidImage("The picture must be uploaded; send handle_file(path).", "image")

    def _unfetched(self, url: str) -> Image:
        return Image.from_data_url(url, self._limits)  # raises: this server fetches nothing


def _addresses_of_files(messages: Any) -> set[str]:
    """The web addresses of Gradio's files anywhere in `messages`; invalid parts are ignored."""
    if isinstance(messages, list):
        return {url for each in messages for url in _addresses_of_files(each)}
    if not isinstance(messages, dict):
        return set()
    path = messages.get("path")
    if isinstance(path, str):
        return {path} if is_web_address(path) else set()
    return _addresses_of_files(list(messages.values()))
