"""`python -m examples.bench`: our engine beside the model card's way, with the same weights, in one run.

`shapes` makes checkpoints, `plain` is the other side, `side` holds either in a process of its own, `measures` asks,
`run` puts the sides through it by turns, `report` and `plot` write, `suite_gpu` is the list for a day with a GPU.
"""
