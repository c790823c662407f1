"""Second lesson: projector and language model learn to answer; the tower goes on learning from answers and labels."""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from examples.miniature.architecture import IMAGE_TOKEN, ReadOuts, patch_features
from examples.miniature.lesson import Bookmark, Lesson, Workers, has_bfloat16
from examples.miniature.muon import Muon
from examples.miniature.packing import Batch, Packer
from examples.miniature.questions import Asker
from examples.miniature.scenes import BACKGROUNDS, COLORS, DIGITS, MAX_OBJECTS, SHAPES, Scene, World, exchanged
from examples.miniature.vision_training import Labels, paint, seeing_parameters, vision_loss

_TOWER_SHARE = 0.5  # share of the learning rate: the tower is trained already
_MUON_SHARE = 1.5  # matrices take larger steps
_VISION_WEIGHT, _WORD_WEIGHT, _LOOK_WEIGHT = 0.15, 0.1, 0.15
_LOOKING = (1, 2)  # layers whose first head is shown where to look
_FIRST_WEIGHT, _CONTENT_WEIGHT, _OTHER_WEIGHT = 3.0, 2.0, 0.6  # the first word of an answer declines, or does not
_FIRST_MIX = (0.72, 0.15, 0.13)  # shares of shapes, digits and strangers
_LAST_MIX = (0.66, 0.13, 0.21)  # the same, once three objects are known
_BROAD_MIX, _BROAD_LENGTH, _BROAD_ROWS = (0.38, 0.08, 0.54), 96, 32  # rows for 6 of the usual ones
_CYCLE = ("whole", "seeing", "broad", "seeing", "broad")  # of steps, once three objects are known
_SEEN, _TWINS = 64, 0.4  # pictures of a seeing step; the share that is a scene, or the same with one thing exchanged
_AVERAGE_DECAY = 0.997  # a step; the mean reaches back some 300 steps
_PAIRS = 0.28  # share of sequences with two pictures or more, once three objects are known


@dataclass
class LanguageLesson:
    """Everything learns: one object until it is known, then two, three, and pairs of pictures.

    Once three are known, most steps are broad, many pictures with few questions each, or of seeing, still more pictures
    without a question; half of all these are strangers.
    `average` follows the weights at a distance; it is what the lesson leaves, since it errs less often than they do.
    """

    name: str
    model: LlavaForConditionalGeneration
    read_outs: ReadOuts
    processor: LlavaProcessor
    lesson: Lesson
    workers: Workers
    pace: "Pace"
    bookmark: Path

    def __post_init__(self) -> None:
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE_DECAY))
        self.optimizers = _optimizers(self.model, self.read_outs)
        self.skills = Skills()

    def teach(self) -> None:
        """Train for `lesson.minutes`, and report on batches that are never seen otherwise."""
        lesson, workers, pace = self.lesson, self.workers, self.pace
        parts = {"model": self.model, "average": self.average, "read_outs": self.read_outs}
        marked = Bookmark(self.bookmark, parts | {f"optimizer {k}": o for k, o in enumerate(self.optimizers)})
        numbers = marked.load(workers.device)
        workers.begin(numbers.get("seconds", 0.0))
        step, pace.objects = int(numbers.get("step", 0)), int(numbers.get("objects", pace.objects))
        rng = random.Random(f"{lesson.seed} {workers.rank} {step}")
        asker, whole, broad = Asker(rng), Packer(self.processor), Packer(self.processor, _BROAD_LENGTH, is_brief=True)
        exam = Exam(whole) if workers.is_first else None
        while (progress := workers.progress(lesson)) < 1:
            for optimizer in self.optimizers:
                lesson.set_rate(optimizer, step, progress)
            kind = _CYCLE[step % len(_CYCLE)] if pace.is_over else "whole"
            step += 1
            if kind == "seeing":
                self._see(_scenes_to_see(rng, _SEEN * lesson.batch // 6), rng)
                continue
            if kind == "broad":
                batch = broad.batch(rng, asker, World(mix=_BROAD_MIX), _BROAD_ROWS * lesson.batch // 6, 0.0)
            else:
                world = World(max_objects=pace.objects, mix=_LAST_MIX if pace.is_over else _FIRST_MIX)
                batch = whole.batch(rng, asker, world, lesson.batch, _PAIRS if pace.is_over else 0.0)
            row, marks = self._answer(whole, batch.to(workers.device))
            self.skills.note(marks)
            asker.weights = self.skills.weights()
            pace.note(workers.mean(sum(is_right for _, is_right in marks) / len(marks)), progress)
            if step % 100 == 0:
                row |= {"objects": pace.objects, "skill": pace.skill}
                if exam and step % 500 == 0:
                    row |= exam.sit(self.average.module)
                workers.report(self.name, step, progress, row)
            if workers.is_first:
                marked.save(step=step, seconds=workers.seconds, objects=pace.objects)
        if exam:
            workers.report(self.name, step, 1.0, exam.sit(self.average.module))

    def _answer(self, packer: Packer, batch: Batch) -> tuple[dict[str, float], list[tuple[str, bool]]]:
        """Learn from a batch; the parts of its loss for the log, and the marks of its answers."""
        loss, row, marks = self._loss(packer, batch)
        self._learn(loss, [p for o in self.optimizers for group in o.param_groups for p in group["params"]])
        return row, marks

    def _see(self, scenes: list[Scene], rng: random.Random) -> None:
        """Learn from the labels of pictures alone: more pictures for the same time, and the tower is what errs."""
        pixels, labels = paint(scenes, rng)
        device = self.workers.device
        with self._half():
            features = patch_features(self.model, pixels.to(device))
        loss = vision_loss(self.read_outs, features, labels.to(device))[0]
        self._learn(loss, [*seeing_parameters(self.model), *self.read_outs.parameters()])

    def _half(self) -> torch.autocast:
        device = self.workers.device
        return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))

    def _learn(self, loss: Tensor, parameters: list[torch.nn.Parameter]) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.workers.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)

    def _loss(self, packer: Packer, batch: Batch) -> tuple[Tensor, dict[str, float], list[tuple[str, bool]]]:
        """The whole loss, its parts for the log, and the marks of the batch's answers."""
        model = self.model
        with self._half():
            features = patch_features(model, batch.pixels)
            hidden = hidden_states(model, features, batch)
        logits, on = answer_logits(model, hidden[-1], batch)
        loss = _answer_loss(logits, batch, packer.content_ids.to(logits.device))
        words = _word_loss(model, packer, model.model.multi_modal_projector(features), batch.labels)
        looks = _look_loss(model, hidden, batch)
        total = loss + _VISION_WEIGHT * vision_loss(self.read_outs, features, batch.labels)[0]
        total = total + _WORD_WEIGHT * words + _LOOK_WEIGHT * looks
        row = {"loss": loss.item(), "words": words.item(), "looks": looks.item()}
        return total, row, graded(logits, on, batch)


def _scenes_to_see(rng: random.Random, count: int) -> list[Scene]:
    world = World(mix=_BROAD_MIX)
    pairs = int(count * _TWINS / 2)
    known = [world.sample(rng, "shapes" if rng.random() < 0.8 else "digit") for _ in range(pairs)]
    return [world.sample(rng) for _ in range(count - 2 * pairs)] + known + [exchanged(rng, scene) for scene in known]


def _optimizers(model: LlavaForConditionalGeneration, read_outs: ReadOuts) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside of the layers, AdamW for the rest; the tower goes on at a share of the rate."""
    matrices, others, tower_matrices = [], [], []
    tower = seeing_parameters(model)
    in_tower = {id(p) for p in model.model.vision_tower.parameters()}
    for name, p in model.named_parameters():
        if id(p) not in in_tower:
            is_matrix = p.ndim == 2 and ("layers" in name or "multi_modal_projector" in name)
            (matrices if is_matrix else others).append(p)
        elif p.ndim == 2 and "layers" in name:
            tower_matrices.append(p)
    taken = {id(p) for p in tower_matrices}
    tower_others = [p for p in tower if id(p) not in taken]
    muon = [{"params": matrices, "share": _MUON_SHARE}, {"params": tower_matrices, "share": _TOWER_SHARE}]
    adam = [{"params": others}, {"params": tower_others, "share": _TOWER_SHARE}, {"params": [*read_outs.parameters()]}]
    return [
        Muon(muon, lr=0.0, momentum=0.95, weight_decay=0.03),
        torch.optim.AdamW(adam, lr=0.0, betas=(0.9, 0.98), weight_decay=0.03, fused=True),
    ]


class Pace:
    """How many objects there are: one more whenever nine of ten answers are right, or else with time."""

    _LATEST = (0.2, 0.4)  # shares of the lesson after which two and three objects come anyway

    def __init__(self, objects: int = 1) -> None:
        self.objects, self.skill = objects, 0.0
        self.is_over = objects == MAX_OBJECTS  # three objects are known: pairs of pictures may come

    def note(self, right: float, progress: float) -> None:
        self.skill = 0.97 * self.skill + 0.03 * right
        if self.objects < MAX_OBJECTS and (self.skill > 0.9 or progress > self._LATEST[self.objects - 1]):
            self.objects, self.skill = self.objects + 1, 0.5
        self.is_over = self.is_over or (self.objects == MAX_OBJECTS and (self.skill > 0.85 or progress > 0.55))


def hidden_states(model: LlavaForConditionalGeneration, features: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """What goes into each layer of the language model, and what comes out at last: (rows, length, WIDTH) each."""
    language = model.model.language_model
    embeddings = language.embed_tokens(batch.ids)
    seen = model.model.multi_modal_projector(features)
    is_image = (batch.ids == IMAGE_TOKEN)[:, :, None]
    embeddings = embeddings.masked_scatter(is_image, seen.reshape(-1, seen.shape[-1]).to(embeddings.dtype))
    return language(
        inputs_embeds=embeddings,
        attention_mask=_additive(batch.sees),
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states


def answer_logits(model: LlavaForConditionalGeneration, last: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, VOCABULARY) where an answer token is to be predicted; where that is, (rows, length)."""
    on = batch.targets >= 0
    return model.lm_head(last[on]), on


class Skills:
    """How well each type of question is answered of late; the worse, the more often it is asked."""

    def __init__(self) -> None:
        self._right: dict[str, float] = defaultdict(lambda: 0.5)

    def note(self, marks: list[tuple[str, bool]]) -> None:
        for type, is_right in marks:
            self._right[type] = 0.99 * self._right[type] + 0.01 * is_right

    def weights(self) -> dict[str, float]:
        return {type: 0.35 + 2.5 * (1 - right) for type, right in self._right.items()}


def graded(logits: Tensor, on: Tensor, batch: Batch) -> list[tuple[str, bool]]:
    """(type, right) of each answer: right if each of its tokens is the likeliest one, given a true history."""
    is_right = torch.ones_like(on)
    is_right[on] = logits.argmax(-1) == batch.targets[on]
    is_right = is_right.cpu()  # looked at one answer after the other
    return [
        (type, bool(is_right[k, start:end].all())) for k, spans in enumerate(batch.spans) for start, end, type in spans
    ]


class Exam:
    """Fixed batches from seeds that training does not use, in trained and in held-out wordings."""

    def __init__(self, packer: Packer) -> None:
        rng = random.Random(1_000_001)
        self._batches = {
            name: [packer.batch(rng, Asker(rng, is_held_out), World(), 12, _PAIRS) for _ in range(count)]
            for name, is_held_out, count in (("known", False, 5), ("held_out", True, 4))
        }

    @torch.no_grad()
    def sit(self, model: LlavaForConditionalGeneration) -> dict[str, float]:
        """Share of right answers, over all and of each type."""
        marks: dict[str, list[bool]] = defaultdict(list)
        for name, batches in self._batches.items():
            for batch in (each.to(model.device) for each in batches):
                last = hidden_states(model, patch_features(model, batch.pixels), batch)[-1]
                for type, is_right in graded(*answer_logits(model, last, batch), batch):
                    marks[name].append(is_right)
                    marks[f"{name}.{type}"].append(is_right)
        return {name: sum(marks[name]) / len(marks[name]) for name in sorted(marks)}


def _answer_loss(logits: Tensor, batch: Batch, content_ids: Tensor) -> Tensor:
    """Cross-entropy in which the words that make an answer true weigh more than those around them."""
    on = batch.targets >= 0
    targets = batch.targets[on]
    weights = torch.where(torch.isin(targets, content_ids), _CONTENT_WEIGHT, _OTHER_WEIGHT)
    is_first = torch.zeros_like(on)
    for row, spans in enumerate(batch.spans):
        is_first[row, [start for start, *_ in spans]] = True
    weights[is_first[on]] = _FIRST_WEIGHT
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()


def _word_loss(model: LlavaForConditionalGeneration, packer: Packer, seen: Tensor, labels: Labels) -> Tensor:
    """Projected patches shall resemble the embeddings of the words for what they show.

    Then words of a question find their patches by likeness, which the language model need not learn by itself.
    """
    table = F.normalize(model.model.language_model.embed_tokens.weight, dim=-1)
    seen = F.normalize(seen, dim=-1)
    shape, color, cell, _, digit = labels.patches.unbind(1)
    column, row = (cell - 1) % 3, (cell - 1) // 3
    ground = labels.pictures[:, 2:3].expand_as(shape)
    lessons = (
        (SHAPES, (shape > 0) & (shape < 5), shape - 1),
        (COLORS, color > 0, color - 1),
        (DIGITS, digit > 0, digit - 1),
        (("left", "right"), (cell > 0) & (column != 1), column // 2),
        (("top", "bottom"), (cell > 0) & (row != 1), row // 2),
        (BACKGROUNDS, (shape == 0) & (ground < len(BACKGROUNDS)), ground),
    )
    total = seen.new_zeros(())
    for words, on, truth in lessons:
        if on.any():
            ids = [packer.encode(f" {word}")[0] for word in words]
            total = total + F.cross_entropy(10 * seen[on] @ table[ids].T, truth[on])
    return total


def _look_loss(model: LlavaForConditionalGeneration, hidden: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """One head of each layer in _LOOKING shall attend to the patches of what the answer speaks of.

    To find by a word the thing that it names is what a model of this size learns last; shown where to look, it learns
    that first. Only training does this: nothing of it is in the model.
    """
    language, total = model.model.language_model, hidden[0].new_zeros(())
    if not len(batch.looks):
        return total
    row, position = batch.looks.unbind(1)
    cosine, sine = language.rotary_emb(hidden[0], batch.positions)
    for number in _LOOKING:
        attention, x = language.layers[number].self_attn, language.layers[number].input_layernorm(hidden[number])
        head = slice(0, attention.head_dim)
        query, key = (F.linear(x, w.weight[head])[:, None] for w in (attention.q_proj, attention.k_proj))
        query, key = apply_rotary_pos_emb(query, key, cosine, sine)
        scores = query[:, 0] @ key[:, 0].transpose(1, 2) * attention.scaling + _additive(batch.sees)[:, 0]
        shares = scores[row, position].log_softmax(-1)
        total = total - shares.masked_fill(~batch.shown, float("-inf")).logsumexp(-1).mean()
    return total


def _additive(sees: Tensor) -> Tensor:
    return torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, float("-inf"))
