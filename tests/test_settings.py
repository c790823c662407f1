"""Options and variables: read once, checked, explained, and never quoted where they are secret."""

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from llava_demo.images import ImageLimits
from llava_demo.settings import GROUPS, SettingError, Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"LLAVA_{name.upper()}" for name in Settings.model_fields), "SYSTEM"):
        monkeypatch.delenv(name, raising=False)


OTHER_VALUES: dict[str, tuple[str, Any]] = {
    "model": ("some/folder", "some/folder"),
    "engine": ("generate", "generate"),
    "quantize": ("8bit", "8bit"),
    "dtype": ("bfloat16", "bfloat16"),
    "attention": ("eager", "eager"),
    "cache": ("kept", "kept"),
    "remote_url": ("http://a:8000, https://b/v1/openai/", ("http://a:8000/v1", "https://b/v1/openai")),
    "remote_key": ("k3y", "k3y"),
    "image_mode": ("crop", "crop"),
    "max_images": ("3", 3),
    "max_image_mb": ("5", 5),
    "max_image_megapixels": ("12", 12),
    "fetch_urls": ("false", False),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("7861", 7861),
    "share": ("true", True),
    "auth": ("ann:secret", ("ann", "secret")),
    "api_key": ("k3y-1, k3y-2", ("k3y-1", "k3y-2")),
    "trusted_proxy": ("10.1.2.3, 192.168.0.0/16", ("10.1.2.3/32", "192.168.0.0/16")),
    "grace": ("5", 5),
    "log_format": ("json", "json"),
    "max_concurrent": ("3", 3),
    "gpu_memory": ("0.5", 0.5),
    "max_queue": ("0", 0),
}


def value_of(settings: Settings, name: str) -> Any:
    if name == "remote_key":
        return settings.remote_key and settings.remote_key.get_secret_value()
    return getattr(settings, {"auth": "credentials", "api_key": "api_keys"}.get(name, name))


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_these_tests_know_every_option() -> None:
    assert OTHER_VALUES.keys() == Settings.model_fields.keys()


def test_every_option_has_its_place_in_the_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Settings.model_fields)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_option_is_also_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = OTHER_VALUES[name]
    assert value_of(Settings(), name) != value
    monkeypatch.setenv(f"LLAVA_{name.upper()}", text)
    assert value_of(Settings(), name) == value
    assert value_of(Settings.from_command_line([]), name) == value


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_option_can_be_given_on_the_command_line(name: str) -> None:
    text, value = OTHER_VALUES[name]
    arguments = {"share": ["--share"], "fetch_urls": ["--no-fetch-urls"]}.get(name, [option(name), text])
    assert value_of(Settings.from_command_line(arguments), name) == value


def test_an_option_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "1111")
    monkeypatch.setenv("LLAVA_SHARE", "1")
    settings = Settings.from_command_line(["--port", "2222", "--no-share"])
    assert (settings.port, settings.share) == (2222, False)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_PORT", "")
    monkeypatch.setenv("LLAVA_AUTH", "")
    assert Settings() == Settings(port=7860)


@pytest.mark.parametrize(("system", "host"), [("spaces", "0.0.0.0"), ("", "127.0.0.1"), ("Linux", "127.0.0.1")])
def test_only_a_space_listens_to_everybody_by_itself(system: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM", system)
    assert Settings().host == host
    assert Settings(host="::1").host == Settings(host="[::1]").host == "::1"


BAD_VALUES = [
    ("model", "", "'' ; auto, miniature, a Hub id or a folder"),
    ("engine", "vllm", f"'vllm'; one of {', '.join(get_args(Settings.model_fields['engine'].annotation))}"),
    ("remote_url", "vllm:8000", "'vllm:8000'; an http address, or several with blanks or commas between"),
    ("remote_url", "http://a/v1?x=1", "'http://a/v1?x=1'; an http address, or several with blanks or commas between"),
    ("remote_url", "http://a:65536", "'http://a:65536'; an http address, or several with blanks or commas between"),
    ("remote_url", "http://a:port", "'http://a:port'; an http address, or several with blanks or commas between"),
    ("remote_url", "http://a..b", "'http://a..b'; an http address, or several with blanks or commas between"),
    ("quantize", "4", "'4'; one of auto, 4bit, 8bit, none"),
    ("dtype", "fp16", "'fp16'; one of auto, float16, bfloat16, float32"),
    ("attention", "flash", "'flash'; one of auto, flash_attention_2, sdpa, eager"),
    ("image_mode", "Pad", "'Pad'; one of pad, crop, resize"),
    ("max_images", "0", "'0'; a whole number from 1 to 1000"),
    ("max_image_mb", "1.5", "'1.5'; a whole number from 1 to 1000"),
    ("max_image_megapixels", "90", "'90'; a whole number from 1 to 89"),
    ("port", "65536", "'65536'; a whole number from 1 to 65535"),
    ("port", "http", "'http'; a whole number from 1 to 65535"),
    ("port", "nan", "'nan'; a whole number from 1 to 65535"),
    ("log_format", "xml", "'xml'; one of text, json"),
    ("gpu_memory", "1.5", "'1.5'; a number from 0.1 to 1"),
    ("max_queue", "-1", "'-1'; a whole number from 0 to 10000"),
]


def complaint(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What the program says, in its one line, before it ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        Settings.from_command_line(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(("name", "text", "words"), BAD_VALUES)
def test_a_bad_option_stops_the_start_with_what_is_allowed(
    name: str, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given, allowed = (part.strip() for part in words.split(";"))
    said = complaint(capsys, [f"{option(name)}={text}"])
    assert said.startswith(f"python -m llava_demo serve: {option(name)} is {given}; it must be {allowed}.")


@pytest.mark.parametrize(("name", "text", "words"), [*BAD_VALUES[1:], ("share", "perhaps", "'perhaps'; true or false")])
def test_a_bad_variable_stops_the_start_with_what_is_allowed(
    name: str, text: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, allowed = (part.strip() for part in words.split(";"))
    monkeypatch.setenv(f"LLAVA_{name.upper()}", text)
    said = complaint(capsys, [])
    assert said.startswith(f"python -m llava_demo serve: LLAVA_{name.upper()} is {given}; it must be {allowed}.")


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["--prt", "1"], ["--max-q", "1"], ["stray"], ["--port"], ["--share=1"]]
)
def test_an_unknown_option_stops_the_start(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments[0].split("=")[0] in complaint(capsys, arguments)


@pytest.mark.parametrize("secret", ["hunter2", ":hunter2", "hunter2:"])
def test_a_malformed_login_is_refused_without_quoting_it(
    secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = complaint(capsys, ["--auth", secret])
    monkeypatch.setenv("LLAVA_AUTH", secret)
    said += complaint(capsys, [])
    with pytest.raises(ValidationError) as caught:
        Settings(auth=secret)
    assert "--auth is not of the right form; it must be USER:PASSWORD." in said
    assert "LLAVA_AUTH is not of the right form; it must be USER:PASSWORD." in said
    assert "hunter2" not in said + str(caught.value)


@pytest.mark.parametrize("keys", ["hunter2é", "ok hunter2\t\x7f", ",", " "])
def test_malformed_keys_are_refused_without_quoting_them(keys: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, ["--api-key", keys])
    assert "--api-key is not of the right form; it must be a key of printable ASCII letters" in said
    assert "hunter2" not in said + repr(Settings(api_key=["hunter2"]))


def test_a_login_is_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_AUTH", "ann:hunter2:with:colons")
    settings = Settings()
    assert settings.credentials == ("ann", "hunter2:with:colons")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    with pytest.raises(SystemExit) as stopped:
        Settings.from_command_line(["--help"])
    assert stopped.value.code == 0
    assert "hunter2" not in capsys.readouterr().out


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Settings.from_command_line(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"{option(name)} " in words or f"{option(name)}," in words
        assert str(field.description) in words
    assert "(default: 7860)" in words
    assert "LLAVA_IMAGE_MODE" in words


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_a_mistaken_name_in_python_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]
    with pytest.raises(SettingError, match="--prot is not an option"):
        Settings.of({"prot": "1"})


def test_the_limits_of_pictures_come_from_the_options() -> None:
    assert Settings().image_limits == ImageLimits()
    settings = Settings(max_image_mb=3, max_image_megapixels=2)
    assert settings.image_limits == ImageLimits(max_bytes=3 * 2**20, max_pixels=2_000_000)


def test_every_option_is_read_by_something() -> None:
    """An option that nothing reads is a promise that nobody keeps."""
    attributes = {
        node.attr
        for path in (ROOT / "llava_demo").rglob("*.py")
        if path.name != "settings.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("settings")
    }
    read = attributes | {"auth"} if "credentials" in attributes else attributes
    read = read | {"max_image_mb", "max_image_megapixels"} if "image_limits" in read else read
    read = read | {"engine"} if "is_remote" in read else read
    read = read | {"api_key"} if "api_keys" in read else read
    assert Settings.model_fields.keys() - read == set()


def test_servers_may_be_named_several_times_and_need_no_v1() -> None:
    given = ["--remote-url", "http://a:8000", "--remote-url", "http://b:8000/v1/ http://c"]
    settings = Settings.from_command_line(given)
    assert settings.remote_url == ("http://a:8000/v1", "http://b:8000/v1", "http://c/v1")
    assert settings.is_remote
    assert not Settings(engine="generate", remote_url=settings.remote_url).is_remote
    assert not Settings().is_remote


def test_the_key_of_other_servers_is_not_shown() -> None:
    assert "k3y" not in repr(Settings(remote_key="k3y"))
