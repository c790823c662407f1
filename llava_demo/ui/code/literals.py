"""Values as source code: Python, JavaScript and JSON. Whatever a text holds, it reads back as it was."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WIDTH = 88


@dataclass(frozen=True)
class Code:
    """An expression that stands in the source as it is."""

    text: str


@dataclass(frozen=True)
class Language:
    """How a language writes strings, the keys of a mapping, and lists that take more than one line."""

    string: Callable[[str], str]
    key: Callable[[str], str]
    indent: str
    padding: str = ""  # inside the braces of a mapping on one line
    last_comma: str = ","  # after the last of elements that stand on lines of their own


def python_string(text: str) -> str:
    """A literal in double quotes; what cannot be seen (blanks without width, marks of direction) is spelled out."""
    return _visible(text, lambda c: f"\\U{ord(c):08x}" if ord(c) > 0xFFFF else f"\\u{ord(c):04x}")


def json_string(text: str) -> str:
    """A literal in JSON, and in JavaScript."""
    return _visible(text, lambda c: json.dumps(c)[1:-1])


def javascript_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_$][\w$]*", name, re.ASCII) else json_string(name)


PYTHON = Language(python_string, python_string, indent="    ")
JAVASCRIPT = Language(json_string, javascript_key, indent="  ", padding=" ")
JSON = Language(json_string, json_string, indent="  ", last_comma="")


def written(value: Any, language: Language, indent: str = "", lead: int = 0) -> str:
    """The source of a value: on one line if that fits behind `lead` characters, else with an element a line.

    The value is made of strings, numbers, lists, dictionaries with strings for keys, and `Code`. `indent` is what the
    line begins with on which the value begins.
    """
    flat = _flat(value, language)
    if not isinstance(value, dict | list) or len(indent) + lead + len(flat) < WIDTH:
        return flat
    deeper = indent + language.indent
    if isinstance(value, dict):
        keys = [f"{language.key(key)}: " for key in value]
        elements = [
            f"{key}{written(v, language, deeper, len(key))}" for key, v in zip(keys, value.values(), strict=True)
        ]
        opening, closing = "{", "}"
    else:
        elements = [written(element, language, deeper) for element in value]
        opening, closing = "[", "]"
    lines = f",\n{deeper}".join(elements)
    return f"{opening}\n{deeper}{lines}{language.last_comma}\n{indent}{closing}"


def _flat(value: Any, language: Language) -> str:
    if isinstance(value, Code):
        return value.text
    if isinstance(value, str):
        return language.string(value)
    if isinstance(value, list):
        return "[" + ", ".join(_flat(element, language) for element in value) + "]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{language.key(key)}: {_flat(element, language)}" for key, element in value.items())
        return f"{{{language.padding}{pairs}{language.padding}}}"
    return repr(int(value) if value == int(value) else value)


def _visible(text: str, escape: Callable[[str], str]) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else escape(c) for c in quoted)
