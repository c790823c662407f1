"""OpenAI's list of models, `GET /v1/models`, as far as it tells what a server holds."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Served:
    """What a server tells about the model that is wanted, or about its first one. None where it does not tell.

    `context_tokens` is `max_model_len` of vLLM and SGLang; the fields after it are only this project's own server's.
    """

    model: str | None = None
    context_tokens: int | None = None
    image_tokens: int | None = None
    image_side: int | None = None
    max_images: int | None = None


def served_from(listing: Any, wanted: str | None = None) -> Served:
    """Read a list of models; one that cannot be read tells nothing."""
    models = listing.get("data") if isinstance(listing, dict) else None
    named = [entry for entry in models or () if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    entry = next((entry for entry in named if wanted in (None, entry["id"])), {})

    def number(name: str) -> int | None:
        value = entry.get(name)
        return value if isinstance(value, int) and value > 0 else None

    return Served(
        model=wanted or entry.get("id"),
        context_tokens=number("max_model_len"),
        image_tokens=number("image_tokens"),
        image_side=number("image_side"),
        max_images=number("max_images"),
    )
