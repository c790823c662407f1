"""The drawings behind the example pictures; `examples/draw.py` saves them."""
