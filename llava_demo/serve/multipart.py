"""Uploads as they arrive: Gradio's parser, which here closes its files and deletes those that no request received."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio.route_utils
from gradio.route_utils import GradioMultiPartParser, GradioUploadFile, MultiPartException
from gradio_client.utils import strip_invalid_filename_characters  # type: ignore[import-untyped]
from starlette.datastructures import FormData

MAX_FILES = 10  # in one upload
_FIELD = "files"


class UploadParser(GradioMultiPartParser):  # type: ignore[misc]
    """Takes files of the field `files` and nothing else; `use_upload_parser` makes it Gradio's.

    Gradio 6.31 leaves the files of an upload open, and on the disk, where its caller hangs up or is refused, where a
    part has no end, and where it has another name.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options | {"max_files": MAX_FILES, "max_fields": MAX_FILES})

    async def parse(self) -> FormData:
        """The uploaded files, whole.

        Raises:
            MultiPartException: the body is no upload; or whatever the stream of the body raises.
        """
        try:
            form = await super().parse()
            if not form or not all(_is_upload(name, item) for name, item in form.multi_items()):
                raise MultiPartException(f"An upload must be files, each with a name, in the field {_FIELD!r}.")
        except BaseException:
            self._drop(taken=set())
            if self.upload_progress is not None:
                self.upload_progress.set_done(self.upload_id)
            raise
        files = [file for _, file in form.multi_items()]
        self._drop(taken={id(file.file) for file in files})
        for file in files:
            file.filename = _safe_name(file.filename)
            if file.filename:
                self._take_known(file)
        return form

    def _take_known(self, file: GradioUploadFile) -> None:
        """Have Gradio take the file of an earlier upload of the same bytes and name, made as new as this one.

        It would replace that file by a rename, on the event loop, and ext4 writes to the disk before it returns from
        one: with 64 clients nothing else was answered for up to half a second.
        """
        name = strip_invalid_filename_characters(Path(file.filename).name)
        known = Path(self.upload_dir) / file.sha.hexdigest() / name
        with suppress(OSError):  # as a rule it is a first upload
            os.utime(known)
            Path(file.file.name).unlink()
            file.file.name = str(known)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None and self.upload_progress is not None:  # Gradio asks it for its name
            raise MultiPartException(f"An upload must be files, each with a name, in the field {_FIELD!r}.")
        super().on_part_data(data, start, end)

    def _drop(self, taken: set[int]) -> None:
        for file in self._files_to_close_on_error:
            if id(file) not in taken:
                with suppress(OSError):  # a full disk takes no last bytes; the handle is closed all the same
                    file.close()
                with suppress(OSError):
                    Path(file.name).unlink()


def use_upload_parser() -> None:
    """Have Gradio in this process read uploads with `UploadParser`."""
    gradio.route_utils.GradioMultiPartParser = UploadParser  # type: ignore[misc]


def _is_upload(name: str, item: object) -> bool:
    return name == _FIELD and isinstance(item, GradioUploadFile)


def _safe_name(name: str | None) -> str:
    """A name that Gradio can give a file; "" lets it choose one, where it would refuse after the others were moved."""
    stripped = strip_invalid_filename_characters(Path(name or "").name)
    return name or "" if stripped.strip(". ") else ""
