"""The model: its weights and processor, the device they run on, and how it sees pictures."""

from pathlib import Path

MINIATURE = Path(__file__).parents[1] / "miniature"
"""The built-in miniature LLaVA: an ordinary `from_pretrained` folder with safetensors weights, processor and card."""
