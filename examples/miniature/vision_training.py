"""First lesson: the vision tower learns to see, from one large dark shape on white to the whole world.

It learns from labels of patches and pictures, without language. The pace is set by what it already tells apart.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from examples.miniature.architecture import (
    GRID,
    PATCH_CLASSES,
    PICTURE_CLASSES,
    SIDE,
    ReadOuts,
    patch_features,
)
from examples.miniature.drawing import Box, draw
from examples.miniature.lesson import Bookmark, Lesson, Workers
from examples.miniature.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, World

_CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1) * 255
_CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1) * 255
_PATCH_WEIGHT = {"shape": 2.0, "color": 1.0, "cell": 0.5, "rank": 0.5, "digit": 1.0}
_ODD_WEIGHT = 1.0
_THING, _STRANGER = 5, 6  # in PATCH_CLASSES["shape"], after nothing and the four shapes


@dataclass(frozen=True)
class Labels:
    """What is true of a batch of pictures."""

    patches: Tensor  # (pictures, len(PATCH_CLASSES), PATCHES) of class numbers
    offsets: Tensor  # (pictures, 3, PATCHES): x, y to the middle of the shape and its radius, in patches
    pictures: Tensor  # (pictures, len(PICTURE_CLASSES)) of class numbers
    odd: Tensor  # (pictures, PATCHES): where the thing lies that was exchanged

    def to(self, device: torch.device) -> "Labels":
        return Labels(self.patches.to(device), self.offsets.to(device), self.pictures.to(device), self.odd.to(device))

    @classmethod
    def of(cls, scenes: Iterable[tuple[Scene, Box | None]]) -> "Labels":
        rows = [_labels(scene, box) for scene, box in scenes]
        return cls(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))


def paint(scenes: Iterable[Scene], rng: random.Random) -> tuple[Tensor, Labels]:
    """Draw scenes; pixels (pictures, 3, SIDE, SIDE) normalised as the saved image processor does it, and labels."""
    scenes = list(scenes)
    drawn = [draw(scene, rng, SIDE) for scene in scenes]
    squares = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in drawn])).permute(0, 3, 1, 2).float()
    labels = Labels.of(zip(scenes, (box for _, box in drawn), strict=True))
    return (squares - _CLIP_MEAN) / _CLIP_STD, labels


def vision_loss(read_outs: ReadOuts, features: Tensor, labels: Labels) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropies of all labels, and accuracies. These count patches of shapes only: the ground is too easy."""
    per_patch, offsets, per_picture = read_outs(features)
    shape = labels.patches[:, 0]
    is_shape, is_thing = (shape > 0) & (shape < _THING), shape > 0
    where = {"color": is_thing & (shape < _STRANGER), "digit": shape == _THING}
    total, accuracy = features.new_zeros(()), {}
    for k, (name, logits) in enumerate(zip(PATCH_CLASSES, per_patch, strict=True)):
        truth, on = labels.patches[:, k], where.get(name, is_shape)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none").view_as(truth)
        total = total + (_PATCH_WEIGHT[name] * loss[on].mean() if on.any() else 0.0) + 0.5 * loss[~on].mean()
        if on.any():
            accuracy[name] = (logits.argmax(-1) == truth)[on].float().mean().item()
        if name == "shape" and labels.odd.any():
            total = total + _ODD_WEIGHT * loss[labels.odd].mean()
    if is_shape.any():
        total = total + (offsets.transpose(1, 2) - labels.offsets).abs().mean(1)[is_shape].mean()
    for k, (name, logits) in enumerate(zip(PICTURE_CLASSES, per_picture, strict=True)):
        weight = 0.1 if name.startswith("number_") else 1.0 if name == "digit" else 0.3
        total = total + weight * F.cross_entropy(logits, labels.pictures[:, k])
        if not name.startswith("number_"):
            accuracy[f"picture_{name}"] = (logits.argmax(-1) == labels.pictures[:, k]).float().mean().item()
    return total, accuracy


def teach_vision(
    model: LlavaForConditionalGeneration, read_outs: ReadOuts, lesson: Lesson, workers: Workers, bookmark: Path
) -> None:
    """Train the tower for `lesson.minutes`, and report on pictures that it never sees otherwise."""
    parameters, device = [*seeing_parameters(model), *read_outs.parameters()], workers.device
    optimizer = torch.optim.AdamW(parameters, lr=lesson.rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    unseen = random.Random(1_000_007)
    exam = paint([World().sample(unseen) for _ in range(300)], unseen)
    marked = Bookmark(bookmark, {"model": model, "read_outs": read_outs, "optimizer": optimizer})
    numbers = marked.load(device)
    workers.begin(numbers.get("seconds", 0.0))
    difficulty, skill, step = numbers.get("difficulty", 0.0), 0.0, int(numbers.get("step", 0))
    rng = random.Random(f"{lesson.seed} {workers.rank} {step}")
    while (progress := workers.progress(lesson)) < 1:
        lesson.set_rate(optimizer, step, progress)
        worlds = [World(difficulty if rng.random() < 0.7 else rng.uniform(0, difficulty)) for _ in range(lesson.batch)]
        pixels, labels = paint([world.sample(rng) for world in worlds], rng)
        loss, accuracy = vision_loss(read_outs, patch_features(model, pixels.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        workers.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 5 == 0:  # go on to harder pictures while shapes and digits are told apart, and with time anyway
            skill = 0.8 * skill + 0.2 * workers.mean(min(accuracy.get("shape", 0.0), accuracy.get("digit", 1.0) + 0.1))
            difficulty = max(min(1.0, difficulty + (0.02 if skill > 0.85 else 0.0)), min(1.0, progress / 0.6))
        if step % 50 == 0:
            row = {"difficulty": difficulty, "skill": skill, "loss": loss.item()}
            workers.report("vision", step, progress, row | (_marks(model, read_outs, exam) if step % 300 == 0 else {}))
        if workers.is_first:
            marked.save(step=step, seconds=workers.seconds, difficulty=difficulty)
    workers.report("vision", step, 1.0, _marks(model, read_outs, exam))


@torch.no_grad()
def _marks(model: LlavaForConditionalGeneration, read_outs: ReadOuts, exam: tuple[Tensor, Labels]) -> dict[str, float]:
    return vision_loss(read_outs, patch_features(model, exam[0].to(model.device)), exam[1].to(model.device))[1]


def seeing_parameters(model: LlavaForConditionalGeneration) -> list[torch.nn.Parameter]:
    """The tower's weights that its patch features depend on."""
    named = model.model.vision_tower.named_parameters()
    return [weight for name, weight in named if "post_layernorm" not in name]


def _labels(scene: Scene, box: Box | None) -> tuple[np.ndarray, ...]:
    patches, offsets = np.zeros((len(PATCH_CLASSES), GRID, GRID), np.int64), np.zeros((3, GRID, GRID), np.float32)
    odd = np.zeros((GRID, GRID), bool)
    y, x = (np.mgrid[0:GRID, 0:GRID] + 0.5) / GRID
    if scene.kind == "other":
        patches[0] = _STRANGER
        odd = _in_box(box, x, y) if box else odd
        for k, o in enumerate(scene.objects):
            odd |= _of_object(scene, k, x, y) & (o.shape not in SHAPES)
    elif box:
        on = _in_box(box, x, y)
        color, digit = 1 + COLORS.index(scene.digit_color), 1 + int(scene.digit)
        patches[0][on], patches[1][on], patches[4][on] = _THING, color, digit
    else:
        for k, o in enumerate(scene.objects):
            on = _of_object(scene, k, x, y)
            patches[0][on], patches[1][on] = 1 + SHAPES.index(o.shape), 1 + COLORS.index(o.color)
            patches[2][on], patches[3][on] = 1 + 3 * o.row + o.column, 1 + k
            offsets[:, on] = np.stack([(o.x - x) * GRID, (o.y - y) * GRID, np.full_like(x, o.radius * GRID)])[:, on]
    return patches.reshape(len(patches), -1), offsets.reshape(3, -1), _whole(scene), odd.reshape(-1)


def _in_box(box: Box, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    margin = 0.03
    return (x > box[0] - margin) & (x < box[2] + margin) & (y > box[1] - margin) & (y < box[3] + margin)


def _of_object(scene: Scene, k: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The patches of the scene's object `k`."""
    distance = np.stack([np.hypot(x - o.x, y - o.y) / o.radius for o in scene.objects])
    on = (distance[k] < 1.05) & (distance.argmin(0) == k)
    o = scene.objects[k]
    on[min(GRID - 1, int(o.y * GRID)), min(GRID - 1, int(o.x * GRID))] = True
    return on


def _whole(scene: Scene) -> np.ndarray:
    """The classes of the picture as a whole; what is in one of kind `other` is not told."""
    known = replace(scene, background="", objects=(), digit="") if scene.kind == "other" else scene
    ground = BACKGROUNDS.index(known.background) if known.background else len(BACKGROUNDS)
    whole = [("shapes", "digit", "other").index(known.kind), len(known.objects), ground]
    whole.append(1 + int(known.digit) if known.digit else 0)
    whole += [len(known.matching(shape=word)) for word in SHAPES] + [len(known.matching(color=word)) for word in COLORS]
    return np.array(whole, np.int64)
