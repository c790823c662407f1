"""The miniature's LLaVA: its sizes, its first weights, and the read-outs that only training uses."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from examples.miniature.scenes import BACKGROUNDS, COLORS, DIGITS, MAX_OBJECTS, SHAPES

SIDE, PATCH = 96, 12  # pixels
GRID = SIDE // PATCH
PATCHES = GRID * GRID
WIDTH, LAYERS, HEADS = 128, 4, 4
VOCABULARY = 1024
CONTEXT = 4096
PAD, BOS, EOS, UNKNOWN, IMAGE_TOKEN = range(5)

# What the tower is taught to tell: of each patch, and of the whole picture (from the mean of its patches).
PATCH_CLASSES = {"shape": 7, "color": 1 + len(COLORS), "cell": 10, "rank": 1 + MAX_OBJECTS, "digit": 1 + len(DIGITS)}
PICTURE_CLASSES = {"kind": 3, "count": 4, "background": 1 + len(BACKGROUNDS), "digit": 1 + len(DIGITS)} | {
    f"number_{word}": 1 + MAX_OBJECTS for word in SHAPES + COLORS
}


def build() -> LlavaForConditionalGeneration:
    """An untrained miniature: CLIP tower, projector and Llama of LLaVA-1.5's classes, 1.9 M weights."""
    sizes = {
        "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    }  # fmt: skip
    vision = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=PATCH, projection_dim=WIDTH)
    text = LlamaConfig(
        **sizes,
        vocab_size=VOCABULARY,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.04,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_TOKEN,
            image_seq_length=PATCHES,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
        )
    )
    _start_vision(model.model.vision_tower)
    _start_language(model.model.language_model)
    defaults = model.generation_config
    defaults.bos_token_id, defaults.eos_token_id, defaults.pad_token_id = BOS, EOS, PAD
    return model


def patch_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the projector is given: (pictures, 3, SIDE, SIDE) -> (pictures, PATCHES, WIDTH), without the class token."""
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


class ReadOuts(nn.Module):
    """Linear maps from patch features to labels; they teach the tower what matters and are then thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.whole_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.patch = nn.Linear(WIDTH, sum(PATCH_CLASSES.values()))
        self.offset = nn.Linear(WIDTH, 3)
        self.whole = nn.Linear(WIDTH, sum(PICTURE_CLASSES.values()))

    def forward(self, features: Tensor) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
        """(pictures, PATCHES, WIDTH) -> logits per patch class, offsets (.., PATCHES, 3), logits per picture class."""
        patches, whole = self.norm(features), self.whole_norm(features.mean(1))
        per_patch = self.patch(patches).split(list(PATCH_CLASSES.values()), -1)
        return per_patch, self.offset(patches), self.whole(whole).split(list(PICTURE_CLASSES.values()), -1)


@torch.no_grad()
def _start_vision(tower: CLIPVisionModel) -> None:
    """Patch filters are rotated low-frequency cosines of opponent colours, keys start as queries.

    From CLIP's own first weights, shapes were not learned in 30,000 pictures; from these they are in some minutes.
    """
    embeddings = tower.embeddings
    k = np.arange(PATCH)
    cosines = np.array([np.cos(math.pi * (2 * k + 1) * u / (2 * PATCH)) for u in range(PATCH)])
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    opponent = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]], float)
    opponent /= np.linalg.norm(opponent, axis=1, keepdims=True)
    grid = range(PATCH)
    lowest = sorted((u * u + v * v + (0.3 if c else 0), u, v, c) for u in grid for v in grid for c in range(3))[:WIDTH]
    filters = np.stack([opponent[c][:, None, None] * np.outer(cosines[u], cosines[v]) for _, u, v, c in lowest])
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    weights = (turn @ torch.from_numpy(filters).float().reshape(WIDTH, -1)).reshape(WIDTH, 3, PATCH, PATCH)
    embeddings.patch_embedding.weight.copy_(weights * (3.5 / PATCH))
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[1:] = _positions() * 0.7
    for layer in tower.encoder.layers:
        nn.init.normal_(layer.self_attn.q_proj.weight, std=0.085)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
        nn.init.normal_(layer.self_attn.v_proj.weight, std=0.06)
        nn.init.normal_(layer.self_attn.out_proj.weight, std=0.05)
        nn.init.normal_(layer.mlp.fc1.weight, std=0.09)
        nn.init.normal_(layer.mlp.fc2.weight, std=0.04)


@torch.no_grad()
def _start_language(language: LlamaModel) -> None:
    """Keys start as queries: attention begins as likeness, so a word finds the patches that training likens to it."""
    for layer in language.layers:
        nn.init.normal_(layer.self_attn.q_proj.weight, std=0.085)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def _positions() -> Tensor:
    """Sines and cosines of row and column: (PATCHES, WIDTH)."""
    rows, columns = torch.meshgrid(torch.arange(float(GRID)), torch.arange(float(GRID)), indexing="ij")
    waves = torch.exp(torch.linspace(math.log(math.pi / (1.5 * GRID)), math.log(math.pi * 0.95), WIDTH // 4))
    return torch.cat([f(a.reshape(-1, 1) * waves) for a in (rows, columns) for f in (torch.sin, torch.cos)], 1)
