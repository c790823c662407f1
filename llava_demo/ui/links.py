"""Links that fill the page, `?prompt=...&image=...&temperature=0`: written and read. Nothing is ever sent by one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from llava_demo.chat import SamplingParams, number_from
from llava_demo.errors import InvalidRequest

KNOB_NAMES = tuple(field.name for field in fields(SamplingParams) if field.name not in ("stop", "top_logprobs"))


@dataclass(frozen=True)
class Filling:
    """What a link asks for. `complaints` has a sentence for each part of it that is left out."""

    prompt: str
    image: str  # a web address, or the name of an example's picture; "" for none
    sampling: SamplingParams
    complaints: tuple[str, ...] = ()


def link_to(address: str, prompt: str, image: str, sampling: SamplingParams, usual: SamplingParams) -> str:
    """A link to the page at `address`; of the sampling it names what is not `usual`."""
    named = {"prompt": prompt, "image": image} | {name: getattr(sampling, name) for name in KNOB_NAMES}
    query = [(name, _text(value)) for name, value in named.items() if value not in ("", None, getattr(usual, name, ""))]
    query += [("stop", text) for text in sampling.stop]
    return f"{address}/?{urlencode(query)}" if query else f"{address}/"


def filling_from(query: Mapping[str, str], usual: SamplingParams) -> Filling | None:
    """Read the query of the page's address; None where it asks for nothing. Names that are not ours are passed over."""
    asked = {name: query[name] for name in ("prompt", "image", "stop", *KNOB_NAMES) if query.get(name)}
    if not asked:
        return None
    sampling, complaints = usual, []
    stops = query.getlist("stop") if hasattr(query, "getlist") else [query[name] for name in asked if name == "stop"]
    wanted: dict[str, Any] = {name: number_from(asked[name]) for name in KNOB_NAMES if name in asked}
    for name, value in (wanted | ({"stop": tuple(stops)} if stops else {})).items():
        try:
            sampling = replace(sampling, **{name: value})
        except InvalidRequest as error:
            complaints.append(f"{error} The link's value was left out.")
    return Filling(asked.get("prompt", ""), asked.get("image", ""), sampling, tuple(complaints))


def _text(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
