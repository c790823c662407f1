"""The progress of loading, in words: from the progress bars of huggingface_hub and transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import snapshot_download
from tqdm.auto import tqdm
from transformers.utils.logging import set_tqdm_hook

from llava_demo.engines.loading import Report

# Formats that transformers reads only where a checkpoint has no safetensors, and then fetches by itself.
OTHER_FORMATS = ["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.onnx*", "original/*"]
_GB = 1e9


class _Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar that is drawn on terminals only, and counts everywhere."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"disable": None} | settings)
        self.done, self.counts_bytes = float(settings.get("initial") or 0), settings.get("unit") == "B"

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()
        self.close()

    def update(self, n: float | None = 1) -> bool | None:
        self.done += n or 0
        if self.total:
            self.tell()
        return super().update(n)

    def tell(self) -> None:
        """Report the progress; `total` is known."""


def fetch(model: str, report: Report) -> None:
    """Fetch the missing files of a checkpoint from the Hub.

    Raises:
        OSError, huggingface_hub.errors.HfHubHTTPError: as huggingface_hub raises them.
    """

    class BytesBar(_Bar):
        def tell(self) -> None:
            if self.counts_bytes:
                report(f"fetching {self.done / _GB:.1f} of {self.total / _GB:.1f} GB")

    snapshot_download(model, ignore_patterns=OTHER_FORMATS, tqdm_class=BytesBar)


@contextmanager
def weights_told(report: Report) -> Iterator[None]:
    """Within the block, report which share of a model's weights is loaded."""

    class WeightsBar(_Bar):
        def tell(self) -> None:
            report(f"loading the weights, {self.done / self.total:.0%}")

    before = set_tqdm_hook(lambda _, args, settings: WeightsBar(*args, **settings))
    try:
        yield
    finally:
        set_tqdm_hook(before)
