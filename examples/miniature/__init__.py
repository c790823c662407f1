"""The miniature: a LLaVA of 2 million weights that this project trains itself and ships.

It has the classes and the code path of LLaVA-1.5 and knows a small world: one to three plain shapes, or one digit. Its
answers about that world are true; to everything else it says that it does not know. `scenes` samples the world,
`drawing` paints it, `questions` asks and answers, `training` teaches, `evaluation` measures.
"""
