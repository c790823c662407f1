"""The sampling controls of the page, derived from `chat.KNOBS`, and their values as `SamplingParams`."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from llava_demo.chat import KNOBS, MAX_SEED, MAX_STOP_STRINGS, Knob, SamplingParams
from llava_demo.errors import InvalidRequest


class SamplingControls:
    """One control for each knob, the seed and the stop strings; made inside a `gr.Blocks`, some of them under "More".

    `context_tokens` is called at each use: a loading or remote engine learns it late.
    """

    def __init__(self, context_tokens: Callable[[], int]) -> None:
        self._context_tokens = context_tokens
        self._by_name: dict[str, gr.components.Component] = {}
        for name, knob in KNOBS.items():
            if knob.is_in_front:
                self._by_name[name] = self._slider(name, knob)
        with gr.Accordion("More", open=False, elem_id="more"):
            for name, knob in KNOBS.items():
                if not knob.is_in_front:
                    self._by_name[name] = self._slider(name, knob)
            self._by_name["seed"] = gr.Textbox(
                label="Seed",
                info="A whole number gives the same answer again; empty draws a new one each time.",
                placeholder="random",
                elem_id="seed",
            )
            self._by_name["stop"] = gr.Textbox(
                label="Stop",
                info=f"End the answer before any of these, one a line, at most {MAX_STOP_STRINGS}.",
                lines=2,
                elem_id="stop",
            )

    @property
    def components(self) -> list[gr.components.Component]:
        return list(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """The parameters of `components`, in their order."""
        return list(self._by_name)

    def sampling_from(self, values: tuple[Any, ...]) -> SamplingParams:
        """The parameters of these values of `components`, in their order.

        Raises:
            InvalidRequest: a value is out of its range, or the seed is not a whole number.
        """
        given = dict(zip(self._by_name, values, strict=True))
        lines = (given.pop("stop") or "").splitlines()
        return SamplingParams(**given | {"seed": _seed_from(given["seed"]), "stop": tuple(filter(None, lines))})

    @property
    def max_tokens(self) -> gr.components.Component:
        return self._by_name["max_tokens"]

    def max_tokens_now(self, value: float) -> gr.Slider:
        """An update of the `max_tokens` slider with its current end."""
        end = self._end("max_tokens", KNOBS["max_tokens"])
        return gr.Slider(maximum=end) if value <= end else gr.Slider(maximum=end, value=end)

    @property
    def usual(self) -> SamplingParams:
        """The parameters that the page starts with."""
        starts: dict[str, Any] = {name: self._start(name, knob) for name, knob in KNOBS.items()}
        return SamplingParams(**starts)

    def values_of(self, sampling: SamplingParams) -> list[Any]:
        """The values of `components` for these parameters, in their order, cut to the ends of the sliders."""
        values: dict[str, Any] = {
            name: min(getattr(sampling, name), self._end(name, knob)) for name, knob in KNOBS.items()
        }
        values["seed"] = "" if sampling.seed is None else str(sampling.seed)
        values["stop"] = "\n".join(sampling.stop)
        return [values[name] for name in self._by_name]

    def _end(self, name: str, knob: Knob) -> float:
        high = knob.high if knob.page_high is None else knob.page_high
        return min(high, self._context_tokens()) if name == "max_tokens" else high

    def _start(self, name: str, knob: Knob) -> float:
        default = getattr(SamplingParams(), name) if knob.page_default is None else knob.page_default
        return min(default, self._end(name, knob))

    def _slider(self, name: str, knob: Knob) -> gr.Slider:
        return gr.Slider(
            knob.low,
            self._end(name, knob),
            self._start(name, knob),
            step=knob.step,
            label=label_of(name),
            info=knob.doc,
            elem_id=name,
            buttons=["reset"],
        )


def label_of(name: str) -> str:
    """A parameter's name for people: `top_p` is Top-p, `max_tokens` is Max tokens."""
    return {"top_p": "Top-p", "top_k": "Top-k", "min_p": "Min-p"}.get(name, name.replace("_", " ").capitalize())


def _seed_from(text: str | None) -> int | None:
    text = (text or "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > len(str(MAX_SEED)):
        raise InvalidRequest(
            f"Seed is {text[:40]!r}; it must be a whole number from 0 to {MAX_SEED}, or empty.", "seed"
        )
    return int(text)
