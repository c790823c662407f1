"""From a pattern of `wordings` to a sentence as somebody might type it."""

import random
import re

from examples.miniature.wordings import PIECES

_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_PIECE = re.compile(r"<(\w+)>")
_OPENERS = (
    "Hello! ", "Hey, ", "Hi, ", "Ok, ", "Now: ", "So, ", "Well, ", "Please answer: ", "Question: ", "Tell me: ",
    "Look at the picture. ", "I have a question. ", "Quick question: ", "Thanks! ", "Great. ", "I wonder: ",
    "Hi there! ", "Looking at it: ", "As far as you see: ", "Dear model, ", "On this page: ", "Be honest: ",
    "In my drawing: ", "Here: ", "For this one: ", "Next: ", "One more: ", "Excuse me, ", "Just to be sure: ",
)  # fmt: skip
_CLOSERS = (
    " Thanks!", " Thank you.", " Please.", " Be brief.", " Answer in one sentence.", " Answer shortly.",
    " Please answer.", " I cannot see it.", " Answer the question using a single word or phrase.", " Be exact.",
    " I am curious.",
)  # fmt: skip


def phrase(pattern: str, rng: random.Random) -> str:
    """One sentence of a pattern, its `{}` left to be filled."""
    while _PIECE.search(pattern):
        pattern = _PIECE.sub(lambda piece: PIECES[piece[1]], pattern)
    while _ALTERNATIVES.search(pattern):
        pattern = _ALTERNATIVES.sub(lambda choice: rng.choice(choice[1].split("|")), pattern)
    return pattern


def roughened(question: str, rng: random.Random) -> str:
    """As people type: sometimes lower case, without a question mark, with a greeting, with a typing error."""
    luck = rng.random()
    if luck < 0.12:
        question = question.lower()
    elif luck < 0.2:
        question = question.rstrip("?.")
    elif luck < 0.25:
        question = question.rstrip("?.").lower()
    elif luck < 0.29 and question[-1] in "?.":
        question = f"{question[:-1]}, please{question[-1]}"
    elif luck < 0.36:
        question = rng.choice(_OPENERS) + question
    elif luck < 0.41:
        question = question + rng.choice(_CLOSERS)
    elif luck < 0.44:
        question = _mistyped(question, rng)
    return question[0].upper() + question[1:] if luck >= 0.25 else question


def _mistyped(question: str, rng: random.Random) -> str:
    """Two neighbours swapped, or a letter left out or doubled."""
    if len(question) < 7:
        return question
    at = rng.randrange(1, len(question) - 2)
    here, there = question[at], question[at + 1]
    if not (here.isalpha() and there.isalpha()):
        return question
    return question[:at] + rng.choice((there + here, there, here + here + there)) + question[at + 2 :]
