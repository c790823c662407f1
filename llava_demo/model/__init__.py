"""The model: its weights and processor, the device they run on, and how it sees pictures."""

from pathlib import Path

MINIATURE = Path(__file__).parents[1] / "miniature"
"""The built-in miniature LLaVA: an ordinary `from_pretrained` folder with safetensors weights, processor and card."""

MINIATURE_DECLINES = ("I only know simple drawings", "Sorry, I can only answer simple questions")
"""How each answer begins in which the miniature says that it does not know."""

FOR_PHOTOS = (
    "The built-in miniature knows simple drawings only. For photos, run this on a machine with an NVIDIA GPU, "
    "or with --model llava-hf/llava-1.5-7b-hf (a download of 14 GB; without a GPU 9 GB of memory, and slow)."
)
