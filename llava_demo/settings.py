"""`Settings`: the options of the program. Only `environment` reads other variables.

Each field is an option, `--max-queue`, and a variable, `LLAVA_MAX_QUEUE`; the option wins. Names, descriptions, ranges
and defaults stand at the fields and nowhere else. What a choice means on this machine is decided elsewhere.
"""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin
from urllib.parse import urlsplit

import annotated_types
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llava_demo.images import ImageLimits


class SettingError(ValueError):
    """One sentence: the option or variable, what was given, what is allowed."""


def _user_and_password(secret: SecretStr) -> SecretStr:
    user, colon, password = secret.get_secret_value().partition(":")
    if not (user and colon and password):
        raise ValueError
    return secret


def _several(given: object) -> object:
    """Split a variable, or the values of a repeated option, at commas and blanks."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        return given
    parts = [part for text in texts for part in text.replace(",", " ").split()]
    if not parts:
        raise ValueError  # "," alone is a mistake, not an empty list
    return parts


def _base_url(url: str) -> str:
    """The address of an OpenAI-compatible server, up to and including /v1."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port, parts.hostname.encode("idna")  # each raises a ValueError where no connection could be opened
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _key(secret: SecretStr) -> SecretStr:
    if not (secret.get_secret_value().isascii() and secret.get_secret_value().isprintable()):
        raise ValueError  # a header holds nothing else
    return secret


def _default_host() -> str:
    return "0.0.0.0" if os.environ.get("SYSTEM") == "spaces" else "127.0.0.1"  # a Space is reached through a proxy


def _default_proxies() -> tuple[str, ...]:
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")  # where a Space's containers and their proxy are
    return private if os.environ.get("SYSTEM") == "spaces" else ()


class Settings(BaseSettings):
    """The options. In Python: `Settings(port=7861)`; variables fill in the rest.

    A field's `title` says what is allowed, where its type does not.
    """

    model_config = SettingsConfigDict(
        env_prefix="LLAVA_", env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    model: str = Field(
        "auto",
        min_length=1,
        title="auto, miniature, a Hub id or a folder",
        description="the checkpoint; auto is LLaVA-1.5-7B on a CUDA GPU, llava-interleave-qwen-0.5b on a CPU "
        "with 4 GB of free memory, and the built-in miniature where neither is available",
    )
    engine: Literal["auto", "batched", "generate", "remote"] = Field(
        "auto",
        description="what answers; batched answers many at once; generate is transformers' own loop, one request at a "
        "time; remote is another server, or several, at --remote-url",
    )
    quantize: Literal["auto", "4bit", "8bit", "none"] = Field(
        "auto",
        description="bits of the weights; auto is 4bit (NF4) on CUDA, so that 7B takes 5 GB, and 8bit on a CPU that is "
        "fast with 8-bit integers, so that it takes 9",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="type of the numbers computed with; auto is the fastest that the device does well"
    )
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = Field(
        "auto",
        description="how attention is computed; auto is flash attention where it is installed and able, else sdpa",
    )

    cache: str | None = Field(
        None,
        min_length=1,
        title="a folder",
        description="keep the copy of the weights in 8 bits for a CPU there, so that the next start takes seconds",
    )

    remote_url: Annotated[
        tuple[Annotated[str, AfterValidator(_base_url)], ...], NoDecode, BeforeValidator(_several)
    ] = Field(
        (),
        title="an http address, or several with blanks or commas between",
        description="servers that speak OpenAI's chat completions, as vLLM and SGLang do; may be given several times: "
        "each question goes to the least busy one",
    )
    remote_key: SecretStr | None = Field(
        None, min_length=1, title="a key", description="what those servers want as Bearer token; better as a variable"
    )

    image_mode: Literal["pad", "crop", "resize"] = Field(
        "pad",
        description="how a picture becomes a square: pad keeps all of it, as LLaVA was trained; crop takes the middle, "
        "as the Hub's processor does; resize squeezes it",
    )
    max_images: int | None = Field(
        None, ge=1, le=1000, description="most pictures in one conversation; if not set, as many as the context holds"
    )
    max_image_mb: int = Field(20, ge=1, le=1000, description="largest file of a picture")
    max_image_megapixels: int = Field(50, ge=1, le=89, description="largest picture, by its header")

    fetch_urls: bool = Field(
        True,
        description="fetch pictures from public http and https addresses for the APIs; --no-fetch-urls turns it off",
    )

    host: Annotated[str, AfterValidator(lambda host: host.strip("[]"))] = Field(  # an IPv6 address, as in a URL
        default_factory=_default_host,
        min_length=1,
        title="an address of this machine",
        description="where to listen: 127.0.0.1 serves this machine only, 0.0.0.0, the default on Spaces, everybody",
    )
    port: int = Field(7860, ge=1, le=65_535, description="the port of the page")
    share: bool = Field(False, description="also give the page a public address through Gradio's tunnel")
    auth: Annotated[SecretStr, AfterValidator(_user_and_password)] | None = Field(
        None,
        title="USER:PASSWORD",
        description="ask for a login; better as a variable, since everybody on the machine can read a command line",
    )
    api_key: Annotated[tuple[Annotated[SecretStr, AfterValidator(_key)], ...], NoDecode, BeforeValidator(_several)] = (
        Field(
            (),
            title="a key of printable ASCII letters, or several with blanks or commas between",
            description="a key that the REST APIs ask for; may be given several times; better as a variable",
        )
    )
    trusted_proxy: Annotated[
        tuple[Annotated[str, AfterValidator(lambda text: str(ip_network(text, strict=False)))], ...],
        NoDecode,
        BeforeValidator(_several),
    ] = Field(
        default_factory=_default_proxies,
        title="an address or a network, as 10.0.0.0/8, or several with blanks or commas between",
        description="proxies in front of this server: callers are told apart by the X-Forwarded-For that they send; on "
        "Spaces, the platform's",
    )
    grace: int = Field(
        20, ge=0, le=3600, description="seconds that running answers may take to finish when the server is ended"
    )
    log_format: Literal["text", "json"] = Field("text", description="the log's lines, for people or for programs")
    max_concurrent: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="most requests answered at once; if not set, 64 on a GPU or remote server, 16 elsewhere, or fewer",
    )
    gpu_memory: float = Field(
        0.85,
        ge=0.1,
        le=1,
        title="a number from 0.1 to 1",
        description="share of a GPU's memory that this program may take, weights and cache together",
    )
    max_queue: int = Field(64, ge=0, le=10_000, description="most queued requests; one more is refused as busy")

    @property
    def is_remote(self) -> bool:
        """Whether other servers answer, so that no model is loaded here."""
        return self.engine == "remote" or (self.engine == "auto" and bool(self.remote_url))

    @property
    def is_zero_gpu(self) -> bool:
        """Whether this is a ZeroGPU Space, where there is a GPU only while an answer is written."""
        return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true") and not self.is_remote

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(max_bytes=self.max_image_mb * 2**20, max_pixels=self.max_image_megapixels * 1_000_000)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password in plain text, for the login; None where there is none."""
        if self.auth is None:
            return None
        user, _, password = self.auth.get_secret_value().partition(":")
        return user, password

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys in plain text."""
        return tuple(key.get_secret_value() for key in self.api_key)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """Make settings from the texts of options, by field name, and from the environment.

        Raises:
            SettingError: for the first value that is not allowed.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise SettingError(_complaint(name, error.errors()[0]["input"], is_option=name in given)) from None

    @classmethod
    def from_command_line(cls, arguments: Sequence[str], program: str = "python -m llava_demo serve") -> "Settings":
        """Read the options of `serve`; after a bad one, or `--help`, the program ends with exit code 2, or 0."""
        parser = OneLineParser(program, description="Serve the page on which people ask LLaVA-1.5 about pictures.")
        add_options(parser)
        try:
            return cls.of(vars(parser.parse_args(arguments)))
        except SettingError as error:
            parser.error(str(error))


def unknown_variables() -> list[str]:
    """One sentence for each variable `LLAVA_…` that is not an option; it names the most similar one."""
    known = [f"LLAVA_{name.upper()}" for name in Settings.model_fields]
    unknown = sorted(name for name in os.environ if name.upper().startswith("LLAVA_") and name.upper() not in known)
    nearest = {name: difflib.get_close_matches(name.upper(), known, n=1) for name in unknown}
    return [
        f"{name} is not a variable of this program{f'; {near[0]} is' if near else ''}."
        for name, near in nearest.items()
    ]


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose error messages are one line, without the usage."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


GROUPS = {
    "model": ("model", "engine", "quantize", "dtype", "attention", "cache"),
    "remote": ("remote_url", "remote_key"),
    "pictures": ("image_mode", "max_images", "max_image_mb", "max_image_megapixels"),
    "server": ("host", "port", "share", "auth", "api_key", "trusted_proxy", "fetch_urls", "log_format", "grace"),
    "load": ("max_concurrent", "gpu_memory", "max_queue"),
}


def add_options(parser: argparse.ArgumentParser, groups: Sequence[str] = tuple(GROUPS)) -> None:
    """Add an option for each field of `groups`. Options that are not given stay out of the namespace."""
    variables = f"The options of {', '.join(groups)} are also variables: --image-mode is LLAVA_IMAGE_MODE."
    parser.epilog = f"{parser.epilog} {variables}" if parser.epilog else variables
    for group in groups:
        section = parser.add_argument_group(group)
        for name in GROUPS[group]:
            _add_option(section, name, Settings.model_fields[name])


def _add_option(section: Any, name: str, field: FieldInfo) -> None:
    default = field.get_default(call_default_factory=True)
    words = {False: "no", True: "yes", (): None}.get(default, default)
    text = f"{field.description}{'' if words is None else f' (default: {words})'}"
    option = _option(name)
    if field.annotation is bool:
        section.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(field.annotation) is tuple:
        section.add_argument(option, action="append", metavar=name.upper(), help=text)
    else:
        metavar = "|".join(_choices(field)) or ("N" if _range(field) else name.upper())
        section.add_argument(option, metavar=metavar, help=text)


def _complaint(name: str, given: object, is_option: bool) -> str:
    where = _option(name) if is_option else f"LLAVA_{name.upper()}"
    if name not in Settings.model_fields:
        return f"{where} is not an option."
    field = Settings.model_fields[name]
    is_secret = "SecretStr" in str(field.annotation)
    return f"{where} is {'not of the right form' if is_secret else repr(given)}; it must be {_allowed(field)}."


def _allowed(field: FieldInfo) -> str:
    if field.title:
        return field.title
    if field.annotation is bool:
        return "true or false"
    limits = _range(field)
    return f"a whole number from {limits[0]} to {limits[1]}" if limits else f"one of {', '.join(_choices(field))}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _range(field: FieldInfo) -> tuple[Any, Any] | None:
    low = [m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)]
    high = [m.le for m in field.metadata if isinstance(m, annotated_types.Le)]
    return (low[0], high[0]) if low and high else None
