"""The model: its weights and processor, the device they run on, and how it sees pictures."""

from pathlib import Path

MINIATURE = Path(__file__).parents[1] / "miniature"
"""The built-in miniature LLaVA: an ordinary `from_pretrained` folder with safetensors weights, processor and card."""

MINIATURE_DECLINES = (
    "I only know simple drawings",
    "Sorry, I can only answer simple questions",
    *(f"The {which} picture shows something that I do not know" for which in ("first", "second")),
)
"""How each answer begins in which the miniature says that it does not know."""

FOR_PHOTOS = (
    "The built-in miniature knows simple drawings only. For photos, run this with an NVIDIA GPU (6 GB of its memory "
    "free), or without one by --model llava-hf/llava-interleave-qwen-0.5b-hf (4 GB of memory; a download of 1.7 GB) or "
    "--model llava-hf/llava-1.5-7b-hf (9 GB of memory; a download of 14 GB; 5 tokens a second on two cores)."
)
