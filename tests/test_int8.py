"""Linear layers in 8 bits: how near they are to float32, in one layer and in whole models, and what torch must keep."""

import asyncio
import math
import subprocess
import sys
from collections.abc import Sequence
from operator import eq
from pathlib import Path

import pytest
import torch
from checkpoints import ON_CPU, PLAN_INT8, batched_engine_of, make_tiny, make_tiny_interleave
from torch import Tensor, nn

from llava_demo.chat import ChatRequest, Message, SamplingParams
from llava_demo.engines import Engine, complete
from llava_demo.engines.batched.batch import Batch
from llava_demo.engines.batched.schedule import BatchSize, Request
from llava_demo.engines.sampler import Draw
from llava_demo.images import Image
from llava_demo.model import MINIATURE, native
from llava_demo.model.image_tokens import ImageTokens
from llava_demo.model.int8 import KERNELS, PLAIN_KERNEL, Int8Linear, Kernel, _probed, fastest_kernel, quantized
from llava_demo.model.llava import Llava
from llava_demo.model.quantizer import StoredEmbedding, keep

EXAMPLES = Path(__file__).parents[1] / "examples"
QUESTIONS = ("What is in this picture?", "How many shapes are there?", "What color is the circle?", "Is there a star?")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def both(kernel: Kernel, inputs: int = 512, outputs: int = 256) -> tuple[nn.Linear, Int8Linear]:
    linear = nn.Linear(inputs, outputs)
    linear.weight.data = noise(outputs, inputs, seed=1)
    layer = Int8Linear.of(linear)
    layer.pack(kernel)
    return linear, layer


# --- one layer


HERE = [kernel for kernel in KERNELS if kernel.name != "native.c" or native.library() is not None]


@pytest.mark.parametrize("inputs", [64, 62])
@pytest.mark.parametrize("kernel", HERE, ids=lambda kernel: kernel.name)
def test_every_kernel_is_there_and_exact(kernel: Kernel, inputs: int) -> None:
    """They are private operations of torch and C: this fails when they go, or change what they take."""
    layer = Int8Linear(inputs, 100)
    layer.weight.random_(-127, 128)
    layer.scales.uniform_(), layer.balance.fill_(1), layer.bias.uniform_()  # type: ignore[union-attr]
    rows = torch.randint(-126, 127, (15, inputs))
    rows[:, 0] = 127  # then a step is 1
    wanted = (rows @ layer.weight.long().t()).float() * layer.scales + layer.bias
    layer.pack(kernel)
    torch.testing.assert_close(layer(rows.float()), wanted)


def test_a_kernel_that_torch_lacks_or_that_saturates_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Tensor) -> Tensor:
        raise AttributeError("no such operation")

    lacking = Kernel("lacking", missing, PLAIN_KERNEL.linear)
    saturating = Kernel("saturating", lambda w: w, lambda layer, x: torch.full((len(x), layer.out_features), 2.0**15))
    monkeypatch.setattr("llava_demo.model.int8.KERNELS", (lacking, saturating))
    assert _probed.__wrapped__() == (PLAIN_KERNEL, 0.0)


@pytest.mark.parametrize("kernel", HERE, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("shape", [(512,), (1, 512), (3, 7, 512), (0, 512)])
def test_a_layer_is_as_near_as_8_bits_can_be(kernel: Kernel, shape: tuple[int, ...]) -> None:
    linear, layer = both(kernel)
    x = noise(*shape)
    found, wanted = layer(x), linear(x)
    assert found.shape == wanted.shape
    assert found.numel() == 0 or error(found, wanted) < 0.02


def test_a_massive_activation_leaves_the_other_tokens_and_its_own_as_they_are() -> None:
    """One scale for all tokens would leave nothing of the others, one digit nothing of its own other values."""
    linear, layer = both(PLAIN_KERNEL)
    x = noise(6, 512)
    x[0, 100], x[3, [7, 300]] = 800.0, torch.tensor([60.0, -90.0])
    found, wanted = layer(x), linear(x)
    for row in range(len(x)):
        assert error(found[row], wanted[row]) < 0.02
    small = x.clone()
    small[:, [7, 100, 300]] = 0
    rest = linear(x) - linear(x - small)  # what the ordinary values of the massive tokens contribute
    assert error(found - linear(x - small), rest) < 0.2


def test_a_row_does_not_depend_on_the_others() -> None:
    _, layer = both(fastest_kernel())
    x = noise(9, 512)
    x[2, 5], x[7, 9] = 500.0, 40.0
    together = layer(x)
    assert all(torch.equal(layer(x[[row]])[0], together[row]) for row in range(9))


def test_zeros_and_nans_stay_what_they_are() -> None:
    linear, layer = both(PLAIN_KERNEL)
    x = torch.zeros(2, 512)
    x[1, 3] = math.nan
    found = layer(x)
    torch.testing.assert_close(found[0], linear.bias)
    assert found[1].isnan().all()


def test_each_channel_has_its_own_scale() -> None:
    weight = noise(4, 100) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None]
    values, scales, balance = quantized(weight)
    assert values.abs().amax(1).tolist() == [127, 127, 127, 0]
    for row in range(3):
        assert error(values[row] * scales[row] * balance, weight[row]) < 0.02


def test_an_outlier_channel_with_small_weights_costs_nothing() -> None:
    linear = nn.Linear(512, 256)
    linear.weight.data[:, [7, 300]] /= 100
    layer = Int8Linear.of(linear)
    layer.pack(PLAIN_KERNEL)
    x = noise(8, 512)
    x[:, [7, 300]] *= 100
    assert error(layer(x), linear(x)) < 0.02


# --- whole models


@pytest.fixture(scope="module")
def pair() -> tuple[Llava, Llava]:
    """The miniature in float32 and in 8 bits."""
    return Llava.load(str(MINIATURE), ON_CPU, is_local=True), Llava.load(str(MINIATURE), PLAN_INT8, is_local=True)


def test_all_linear_layers_of_all_parts_are_in_8_bits(pair: tuple[Llava, Llava]) -> None:
    assert not [name for name, module in pair[1].model.named_modules() if type(module) is nn.Linear]
    count = sum(type(module) is nn.Linear for module in pair[0].model.modules())
    assert sum(isinstance(module, Int8Linear) for module in pair[1].model.modules()) == count


async def answers(engine: Engine, requests: Sequence[ChatRequest]) -> list[str]:
    """All at once; the engine is closed."""
    try:
        return [answer.text for answer in await asyncio.gather(*(complete(engine, request) for request in requests))]
    finally:
        await engine.aclose()


def test_the_miniature_says_the_same_in_8_bits(pair: tuple[Llava, Llava]) -> None:
    """At least 99 % of the answers, by the engine that keeps keys and values in 8 bits, too; logits are near."""
    greedy = SamplingParams(temperature=0, max_tokens=32)
    messages = [
        Message("user", question, (Image.from_path(path),))
        for path in sorted(EXAMPLES.glob("*.png"))
        for question in QUESTIONS
    ]
    requests = [ChatRequest((message,), greedy) for message in messages]
    engines = [batched_engine_of(llava, requests=16, pages=600) for llava in pair]
    assert [engine.batch.cache.shape.is_int8 for engine in engines] == [False, True]
    wanted, found = (asyncio.run(answers(engine, requests)) for engine in engines)
    assert sum(map(eq, wanted, found)) >= 0.99 * len(messages)
    for message in messages[:: len(QUESTIONS)]:
        inputs = pair[0].prompt([message])
        with torch.inference_mode():
            one, other = (llava.model(**inputs).logits for llava in pair)
        assert error(other, one) < 0.03


def plant_outliers(folder: Path, gain: float) -> None:
    """Give a random checkpoint what trained ones have: outlier channels, massive activations, and clear choices.

    The outputs of each layer are `gain` times as large as its inputs.
    """
    model = Llava.load(str(folder), ON_CPU, is_local=True).model
    text = model.get_decoder()
    outliers = [3, 40]
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights *= gain * weights[0].numel() ** -0.5 / 0.2
        for layer in text.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[outliers] = 20.0
            attention, mlp = layer.self_attn, layer.mlp
            for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                matrix.weight[:, outliers] /= 20.0
        text.embed_tokens.weight *= 4 / text.embed_tokens.weight.std()
        model.lm_head.weight.copy_(text.embed_tokens.weight.roll(-1, 0) / 30)  # one token leads to the next
        text.embed_tokens.weight[10:20, 17] = 500.0
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=[(make_tiny, 1.0), (make_tiny_interleave, 1.0), (make_tiny, 1.6)])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Llava, Llava]:
    """A checkpoint with outliers in float32 and in 8 bits: even, with grouped heads, and sharp."""
    make, gain = request.param
    folder = tmp_path_factory.mktemp("planted")
    make(folder)
    plant_outliers(folder, gain)
    return Llava.load(str(folder), ON_CPU, is_local=True), Llava.load(str(folder), PLAN_INT8, is_local=True)


def prompts_with_massive_activations(count: int) -> list[list[int]]:
    prompts = torch.randint(20, 290, (count, 40), generator=torch.Generator().manual_seed(0))
    prompts[:, 0] = 10 + torch.arange(count) % 10
    return prompts.tolist()


def test_outliers_as_trained_models_have_them_change_little(planted: tuple[Llava, Llava]) -> None:
    """Logits within 3 %, and at least 97 % of the greedy tokens the same."""
    ids = torch.tensor(prompts_with_massive_activations(20))
    with torch.inference_mode():
        wanted, found = (llava.model(input_ids=ids).logits for llava in planted)
    assert sum(map(error, found, wanted)) / len(ids) < 0.03
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() >= 0.97


def test_keys_and_values_in_8_bits_change_little(planted: tuple[Llava, Llava]) -> None:
    """Of 200 prompts that are read in chunks from the cache at least 97 % go on with the same token."""

    def drawn(llava: Llava) -> list[int]:
        batch = Batch(llava, ImageTokens(llava, max_rows=100), BatchSize(pages=600, requests=200))
        requests = [
            Request(ids, 1, Draw(SamplingParams(temperature=0), torch.tensor(ids), llava.image_token_id, 300))
            for ids in prompts_with_massive_activations(200)
        ]
        for request in requests:
            batch.add(request)
        tokens: dict[Request, int] = {}
        while len(tokens) < len(requests):
            tokens |= {token.request: token.token for token in batch.step()}
        return [tokens[request] for request in requests]

    assert sum(map(eq, *map(drawn, planted))) >= 0.97 * 200


@pytest.mark.skipif(fastest_kernel().name != "native.c", reason="another product is faster here")
def test_all_layers_at_once_compute_what_one_after_the_other_computes(planted: tuple[Llava, Llava]) -> None:
    """In decode steps of five requests, to the last bit."""

    def logits(is_at_once: bool) -> list[Tensor]:
        llava, found = planted[1], list[Tensor]()
        batch = Batch(llava, ImageTokens(llava, max_rows=100), BatchSize(pages=40, requests=5))
        assert batch.model.native is not None
        if not is_at_once:
            batch.model.native = None
        batch.model.register_forward_hook(lambda *call: found.append(call[-1].clone()))
        for number, ids in enumerate(prompts_with_massive_activations(5)):
            draw = Draw(SamplingParams(temperature=0), torch.tensor(ids), llava.image_token_id, 300)
            batch.add(Request(ids[: 40 - number], 8, draw))
        while batch.step():
            pass
        return found

    for one, other in zip(logits(True), logits(False), strict=True):
        assert torch.equal(one, other)


def test_an_answer_is_the_same_alone_and_together_in_whatever_chunks(tmp_path: Path) -> None:
    """With near-ties everywhere: weights are random. Prompts share their beginnings, so that cached pages are read."""
    make_tiny_interleave(tmp_path)
    llava = Llava.load(str(tmp_path), PLAN_INT8, is_local=True)
    picture = Image.from_path(EXAMPLES / "seven.png")
    requests = [
        ChatRequest((Message("user", f"number {i}", (picture,)),), SamplingParams(temperature=0, max_tokens=6))
        for i in range(4)
    ]
    together = asyncio.run(answers(batched_engine_of(llava), requests))
    alone = [asyncio.run(answers(batched_engine_of(llava, chunk=1024), [request]))[0] for request in requests]
    assert alone == together


# --- the copy that is kept


def test_the_kept_copy_is_the_same_model_and_needs_no_other(tmp_path: Path) -> None:
    make_tiny_interleave(tmp_path / "original")
    source = Llava.load(str(tmp_path / "original"), ON_CPU, is_local=True)
    source.model.config.tie_word_embeddings = source.model.config.text_config.tie_word_embeddings = True
    source.model.tie_weights()
    source.model.half().save_pretrained(tmp_path / "original")
    kept = tmp_path / "cache" / "copy"
    first = Llava.load(str(tmp_path / "original"), PLAN_INT8, is_local=True, kept=kept)
    assert [path.name for path in kept.parent.iterdir()] == ["copy"]
    (tmp_path / "original" / "model.safetensors").unlink()
    second = Llava.load(str(tmp_path / "original"), PLAN_INT8, is_local=True, kept=kept)
    ids = torch.randint(5, 290, (1, 30))
    with torch.inference_mode():
        assert torch.equal(first.model(input_ids=ids).logits, second.model(input_ids=ids).logits)
    for llava in (first, second):
        assert isinstance(llava.model.get_input_embeddings(), StoredEmbedding)
        assert llava.model.get_input_embeddings().weight.dtype == torch.float16
        assert llava.model.dtype == torch.float32


def test_a_copy_that_another_server_made_meanwhile_is_as_good(tmp_path: Path) -> None:
    make_tiny_interleave(tmp_path / "original")
    llava = Llava.load(str(tmp_path / "original"), PLAN_INT8, is_local=True, kept=tmp_path / "cache" / "copy")
    before = sorted((tmp_path / "cache").rglob("*"))
    keep(llava.model, tmp_path / "cache" / "copy")
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_a_copy_that_a_killed_server_left_unfinished_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    make_tiny_interleave(tmp_path / "original")
    for name in ("unfinished-dead", "unfinished-alive"):
        (tmp_path / "cache" / name / "copy").mkdir(parents=True)
        (tmp_path / "cache" / name / "copy" / "model.safetensors").write_bytes(b"half")
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    lock = tmp_path / "cache" / "unfinished-alive" / "lock"
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        for left in ["copy", "unfinished-alive"], ["copy"]:
            Llava.load(str(tmp_path / "original"), PLAN_INT8, is_local=True, kept=tmp_path / "cache" / "copy")
            assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == left
            other.kill()
            other.wait()


def test_a_copy_that_cannot_be_kept_is_no_reason_not_to_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_interleave(tmp_path / "original")
    (tmp_path / "cache").write_text("a file")
    kept = tmp_path / "cache" / "copy"
    assert Llava.load(str(tmp_path / "original"), PLAN_INT8, is_local=True, kept=kept).model.device.type == "cpu"
    [record] = caplog.records
    assert record.getMessage() == "the copy in 8 bits is not kept: File exists"
