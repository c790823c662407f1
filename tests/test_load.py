"""From settings to an engine: which checkpoint, and what is said when it cannot be had. No test asks the real Hub."""

import asyncio
import errno
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from checkpoints import make_tiny_interleave
from safetensors.torch import load_file, save_file

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import Engine, complete, load
from llava_demo.engines.batched.engine import BatchedEngine
from llava_demo.engines.checkpoint import LLAVA_7B, Checkpoint, chosen_checkpoint
from llava_demo.engines.generate import GenerateEngine
from llava_demo.engines.load import load_engine
from llava_demo.errors import EngineUnavailable
from llava_demo.model import MINIATURE, ram
from llava_demo.model.device import Hardware
from llava_demo.settings import Settings

CPU = Hardware("CPU")
L4 = Hardware("NVIDIA L4", (8, 9), 22 * 2**30)
SMALL = Hardware("Quadro P600", (6, 1), 2 * 2**30)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Hub that refuses connections, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_auto_without_a_gpu_is_the_miniature_and_tells_how_to_get_the_real_one() -> None:
    checkpoint = chosen_checkpoint("auto", CPU)
    assert checkpoint.source == str(MINIATURE)
    assert checkpoint.is_miniature
    assert checkpoint.name == "miniature"
    assert f"--model {LLAVA_7B}" in checkpoint.reason


def test_auto_on_a_gpu_without_room_is_the_miniature() -> None:
    checkpoint = chosen_checkpoint("auto", SMALL)
    assert checkpoint.is_miniature
    assert "2.0 GB of the GPU are free" in checkpoint.reason


@pytest.mark.usefixtures("no_hub")
def test_auto_without_the_hub_is_the_miniature_and_says_so() -> None:
    checkpoint = chosen_checkpoint("auto", L4)
    assert checkpoint.is_miniature
    assert "the Hub cannot be reached" in checkpoint.reason


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_no_download_is_offered_that_cannot_happen() -> None:
    assert f"Where the Hub can be reached: LLaVA-1.5-7B, too, runs without a GPU, with --model {LLAVA_7B}" in (
        chosen_checkpoint("auto", CPU).reason
    )


@pytest.mark.usefixtures("no_hub")
def test_an_id_that_was_asked_for_is_never_replaced() -> None:
    with pytest.raises(EngineUnavailable, match=r"llava-1.5-13b-hf is no folder here.*cannot be reached"):
        chosen_checkpoint("llava-hf/llava-1.5-13b-hf", L4)


@pytest.mark.usefixtures("no_hub")
def test_what_was_loaded_before_needs_no_hub(tmp_path: Path) -> None:
    """transformers alone asks five times for each file, and so starts after minutes (5.23)."""
    snapshot = tmp_path / f"models--{LLAVA_7B.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    checkpoint = chosen_checkpoint("auto", L4)
    assert checkpoint.source == LLAVA_7B
    assert checkpoint.is_local
    assert "loaded before" in checkpoint.reason


def test_what_is_neither_a_folder_nor_an_id_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="neither a folder nor a Hub id"):
        chosen_checkpoint("no/such/folder/here", CPU)


def test_a_folder_without_a_checkpoint_is_refused_and_its_path_not_told(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="is no checkpoint") as caught:
        load_engine(Settings(model=str(tmp_path)))
    assert str(tmp_path.parent) not in str(caught.value)


def test_the_folder_that_one_stands_in_has_a_name(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder)
    assert chosen_checkpoint(".", CPU).name == "tiny"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineUnavailable, match=f"The folder {tmp_path.name} has no config.json"):
        chosen_checkpoint(".", CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineUnavailable, match=f"^{tmp_path.name} could not be loaded: .*config.json"):
        load_engine(Settings(model="."))


def test_a_file_that_cannot_be_read_is_named_without_its_path() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/home/ada/.cache/huggingface/hub/config.json")
    with pytest.raises(EngineUnavailable) as caught, load._failures_named(Checkpoint("owner/name", "as asked")):
        raise error
    assert str(caught.value) == "owner/name could not be loaded: config.json: Permission denied"


def test_a_folder_is_loaded_and_everything_decided_is_told(tiny_folder: str) -> None:
    engine = load_engine(Settings(model=tiny_folder))
    info = engine.info
    assert (info.model, info.engine, info.is_miniature) == ("tiny", "batched", False)
    assert (info.context_tokens, info.image_tokens, info.max_images) == (1024, 16, 32)
    assert len(info.reasons) == 6
    assert all(reason.endswith(".") for reason in info.reasons)
    assert tiny_folder not in " ".join(info.reasons)


def test_max_images_is_the_operators_where_given(tiny_folder: str) -> None:
    assert load_engine(Settings(model=tiny_folder, max_images=3)).info.max_images == 3


@pytest.mark.parametrize(("quantize", "precision"), [("4bit", "4-bit NF4"), ("8bit", "int8")])
def test_quantized_checkpoints_answer_on_any_machine(quantize: str, precision: str, tiny_folder: str) -> None:
    engine = load_engine(Settings(model=tiny_folder, quantize=quantize))
    request = ChatRequest((Message("user", "hi"),), SamplingParams(temperature=0, max_tokens=4))
    assert asyncio.run(complete(engine, request)).usage.completion_tokens == 4
    assert engine.info.precision.startswith(precision)


def test_importing_the_module_is_cheap() -> None:
    code = "import llava_demo.engines.load, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Which engine


def test_the_batched_engine_is_the_default_and_says_how_many_it_answers_at_once(tiny_folder: str) -> None:
    engine = load_engine(Settings(model=tiny_folder, max_concurrent=3))
    assert isinstance(engine, BatchedEngine)
    assert engine.info.engine == "batched"
    assert any(reason.startswith("Up to 3 chats are answered at once") for reason in engine.info.reasons)
    asyncio.run(engine.aclose())


def test_generate_is_there_on_request(tiny_folder: str) -> None:
    engine = load_engine(Settings(model=tiny_folder, engine="generate"))
    assert isinstance(engine, GenerateEngine)
    assert engine.info.engine == "generate"


def sliding(folder: str, target: Path) -> str:
    """The checkpoint with a language model that looks 64 tokens back, as Mistral does."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["text_config"] |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


def test_where_batching_cannot_run_generate_answers_and_says_why(
    tiny_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = sliding(tiny_folder, tmp_path / "sliding")
    engine = load_engine(Settings(model=folder))
    assert isinstance(engine, GenerateEngine)
    assert "batching cannot run here: the language model looks at a window" in engine.info.reasons[-1]
    assert engine.info.reasons[-1] in caplog.text
    assert asyncio.run(complete(engine, ChatRequest((Message("user", "hello"),), SamplingParams(max_tokens=3))))
    with pytest.raises(EngineUnavailable, match="cannot be answered in batches here: the language model looks at"):
        load_engine(Settings(model=folder, engine="batched"))


def test_with_too_little_memory_generate_answers(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "free_ram", lambda: 1000)
    engine = load_engine(Settings(model=tiny_folder))
    assert isinstance(engine, GenerateEngine)
    assert "one chat takes 528" in engine.info.reasons[-1]


# What is missing


def altered(folder: str, target: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> str:
    """The checkpoint with other weights."""
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return str(target)


@pytest.mark.parametrize("part", ["multi_modal_projector", "vision_tower", "lm_head", "layers.1.mlp.up_proj"])
def test_a_checkpoint_without_all_of_its_weights_is_refused_with_their_names(
    part: str, tiny_folder: str, tmp_path: Path
) -> None:
    """transformers 5.23 would fill them with random numbers."""

    def without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: weight for name, weight in weights.items() if part not in name}
        assert len(kept) < len(weights)
        return kept

    folder = altered(tiny_folder, tmp_path / "part", without)
    with pytest.raises(EngineUnavailable, match=rf"part could not be loaded: .* no weights for .*{part}"):
        load_engine(Settings(model=folder))


def test_a_checkpoint_with_weights_of_another_model_is_refused_with_their_names(
    tiny_folder: str, tmp_path: Path
) -> None:
    folder = altered(tiny_folder, tmp_path / "odd", lambda weights: weights | {"adapter.up.weight": torch.zeros(2, 2)})
    with pytest.raises(EngineUnavailable, match=r"weights that do not belong to it, .*adapter\.up\.weight"):
        load_engine(Settings(model=folder))


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def values(part: str | None = None, name: str = "config.json", **new: object) -> Callable[[Path], object]:
    """New values in a file of JSON, or in a part of it."""

    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        (config[part] if part else config).update(new)
        (folder / name).write_text(json.dumps(config))

    return change


def text_config(**new: object) -> Callable[[Path], object]:
    return values("text_config", **new)


HUGE = {"size": {"shortest_edge": 10**6}, "crop_size": {"height": 10**6, "width": 10**6}}
UNFIT = {
    "other shapes": (text_config(num_key_value_heads=1), r"other shapes than its config.json says: .*k_proj.weight"),
    "no heads": (text_config(num_attention_heads=0), "ZeroDivisionError"),
    "heads in words": (text_config(num_attention_heads="four"), "'num_attention_heads' expected int"),
    "LFS": (
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is no file of safetensors",
    ),
    "half a processor": (written("processor_config.json", b"{"), "not a valid JSON"),
    "no pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ".bin file is damaged",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
    # What transformers fills with its defaults, or takes as it is: 27 GB for the language model of 7 billion weights
    "no language model": (values(text_config=None), "text_config in its config.json is null"),
    "no vision tower": (values(vision_config=None), "vision_config in its config.json is null"),
    "an empty language model": (values(text_config={}), "describes a model of 6,7.* weights, and its files hold 268,5"),
    "an empty vision tower": (values(vision_config={}), "describes a model of 87,6.*, and its files hold"),
    "a huge model": (text_config(hidden_size=10**9), "describes a model of 1,000,0.*, and its files hold"),
    "deep": (text_config(num_hidden_layers=10**5), "num_hidden_layers in its config.json is 100,000"),
    "a list": (written("config.json", b"[1]"), "model_type"),
    "null": (written("config.json", b"null"), "TypeError"),
    "endless brackets": (written("config.json", b"[" * 10**5), "recursion"),
    "a small embedding": (text_config(vocab_size=100), "tokenizer has 301 ids, and its model embeddings for 100"),
    "no such image token": (values(image_token_index=10**6, image_token_id=10**6), "image token's id .* 0 to 300"),
    "a negative image token": (values(image_token_index=-1, image_token_id=-1), "image token's id .* is -1"),
    "huge pictures": (
        values("image_processor", "processor_config.json", **HUGE),
        "size of its image processor has 1,00",
    ),
    "other patches": (
        values(name="processor_config.json", patch_size=7),
        "64 tokens of a picture, its vision tower 16",
    ),
    "no such layer": (values(vision_feature_layer=-99), "IndexError"),
    "no context": (text_config(max_position_embeddings=0), "holds 0 tokens, and a picture takes 16"),
    "an end in words": (values(name="generation_config.json", eos_token_id="</s>"), "eos_token_id .* must be a number"),
    "a tokenizer of nothing": (written("tokenizer.json", b"{}"), "KeyError: 'added_tokens'"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_checkpoint_that_does_not_fit_together_is_refused_in_one_line_without_its_path(
    kind: str, tiny_folder: str, tmp_path: Path
) -> None:
    change, words = UNFIT[kind]
    folder = tmp_path / "mine"
    shutil.copytree(tiny_folder, folder)
    change(folder)
    with pytest.raises(EngineUnavailable, match=f"^mine could not be loaded: .*{words}") as caught:
        load_engine(Settings(model=str(folder), quantize="none"))
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantize", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("part", ["model.norm.weight", "layers.0.mlp.up_proj.weight", "vision_tower"])
def test_weights_that_are_no_numbers_are_refused_with_their_names(
    part: str, quantize: str, tiny_folder: str, tmp_path: Path
) -> None:
    def spoilt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in weights if part in name and name.endswith("weight"))
        weights[name].view(-1)[3] = math.inf if "mlp" in part else math.nan  # bitsandbytes makes a number of NaN
        return weights

    folder = altered(tiny_folder, tmp_path / "nan", spoilt)
    where = f" in .*{part}" if quantize == "none" else ""
    with pytest.raises(EngineUnavailable, match=f"nan could not be loaded: .*NaN or infinity{where}"):
        load_engine(Settings(model=folder, quantize=quantize))


def test_sums_that_overflow_are_found_before_the_first_question(tiny_folder: str, tmp_path: Path) -> None:
    """As those of checkpoints trained in bfloat16 do in float16."""

    def large(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return weights | {name: weight * 3e38 for name, weight in weights.items() if "lm_head" in name}

    folder = altered(tiny_folder, tmp_path / "large", large)
    with pytest.raises(EngineUnavailable, match=r"computes NaN or infinity in torch.float32; try another --dtype"):
        load_engine(Settings(model=folder, quantize="none", engine="generate"))


def test_a_head_beside_embeddings_that_are_said_to_be_tied_stays_itself(tiny_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(tiny_folder, folder)
    values(tie_word_embeddings=True)(folder)
    texts = [asyncio.run(_answered(load_engine(Settings(model=each)))) for each in (tiny_folder, str(folder))]
    assert texts[0] == texts[1]


async def _answered(engine: Engine) -> str:
    answer = await complete(engine, ChatRequest((Message("user", "hi"),), SamplingParams(temperature=0, max_tokens=9)))
    await engine.aclose()
    return answer.text


def test_numbers_that_older_checkpoints_hold_and_nobody_reads_are_no_reason(tiny_folder: str, tmp_path: Path) -> None:
    name = "model.vision_tower.embeddings.position_ids"
    folder = altered(tiny_folder, tmp_path / "old", lambda weights: weights | {name: torch.arange(17)})
    asyncio.run(load_engine(Settings(model=folder)).aclose())


def test_a_layer_of_a_config_that_is_the_first_one_is_no_reason(tmp_path: Path) -> None:
    """`max_window_layers`, as Qwen2 has it, is the first layer with a window; 0 is all of them."""
    make_tiny_interleave(tmp_path / "interleave")
    text_config(max_window_layers=0)(tmp_path / "interleave")
    asyncio.run(load_engine(Settings(model=str(tmp_path / "interleave"))).aclose())


def test_config_and_processor_are_read_once(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for kind in (transformers.AutoConfig, transformers.AutoProcessor):

        def spy(*given: Any, kind: Any = kind, really: Any = kind.from_pretrained, **more: Any) -> Any:
            reads.append(kind.__name__)
            return really(*given, **more)

        monkeypatch.setattr(kind, "from_pretrained", spy)
    asyncio.run(load_engine(Settings(model=tiny_folder)).aclose())
    assert reads == ["AutoConfig", "AutoProcessor", "AutoConfig"]  # AutoProcessor reads the config for its tokenizer
