"""What a snippet says: a request, and the server that is asked. It knows neither the page nor a language."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_demo.chat import ChatRequest, Message, SamplingParams


@dataclass(frozen=True)
class Call:
    """A request to a running demo, as somebody else is to repeat it from code of their own."""

    request: ChatRequest
    file_names: Mapping[str, str]  # of the request's pictures, by digest
    url: str  # the demo's address, without a slash at its end
    model: str
    takes_login: bool = False
    takes_key: bool = False

    @property
    def knobs(self) -> dict[str, Any]:
        """The sampling parameters that are not at the API's defaults; what is not sent stays there."""
        neutral = SamplingParams()
        given = {field.name: getattr(self.request.sampling, field.name) for field in fields(SamplingParams)}
        changed = {name: value for name, value in given.items() if value != getattr(neutral, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @property
    def is_one_question(self) -> bool:
        """One picture and one text, with nothing before them."""
        return len(self.request.messages) == 1 and len(self.request.images) == 1

    def for_gradio(self, handle_file: Callable[[str], Any]) -> tuple[str, dict[str, Any]]:
        """The endpoint of Gradio's clients and its arguments, with `handle_file` of a file's name for a picture."""
        if self.is_one_question:
            picture, text = handle_file(self.files()[0]), self.request.messages[0].text
            return "/ask", {"image": picture, "prompt": text, **self.knobs}
        return "/chat", {"messages": self.turns(handle_file), **self.knobs}

    def turns(self, picture: Callable[[str], Any]) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form, with `picture` of a file's name for a picture."""
        return [self._turn(message, picture) for message in self.request.messages]

    def files(self) -> list[str]:
        """The names of all pictures, each once, in the order of the conversation."""
        return list(dict.fromkeys(self.file_names[image.digest] for image in self.request.images))

    def _turn(self, message: Message, picture: Callable[[str], Any]) -> dict[str, Any]:
        if not message.images:
            return {"role": message.role, "content": message.text}
        parts = [picture(self.file_names[image.digest]) for image in message.images]
        text = [{"type": "text", "text": message.text}] if message.text else []
        return {"role": message.role, "content": [*parts, *text]}
