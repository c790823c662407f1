"""Wordings that training never sees; evaluation asks with them. A test keeps every one of them out of `wordings`."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    "describe": (
        "What is going on in this image?", "What does the drawing show us?", "Tell me about this picture.", "What do we have in this picture?",
        "Which shapes can you make out?", "What do you notice in the image?", "I want a description of this drawing.",
        "Could you tell me what this image shows?", "Talk me through the picture.", "What would you say this picture shows?",
    ),
    "count_all": (
        "What is the total number of shapes?", "How many shapes in total?", "How many figures did they draw?", "I need to know the number of objects.",
        "How many shapes would you count in this picture?", "In the picture, how many shapes are there?",
    ),
    "count": (
        "Of all the shapes, how many are {ns}?", "How many {ns} do we have?", "How many {ns} in total?", "In this image, how many {ns} are there?",
        "How many {ns} did they draw?", "I need the number of {ns}.",
    ),
    "exists": (
        "Is there {a} somewhere?", "Does this drawing have {a} in it?", "Can one see {a} in the picture?", "Could you check if there is {a}?",
        "Is there {a} among the shapes?", "Would I find {a} in this image?", "In the picture, is there {a}?",
    ),
    "color": (
        "I would like to know the color of the {s}.", "Would you tell me which color the {s} has?", "What color would you say the {s} is?",
        "The {s} in the picture, what color does it have?", "What colour did they give the {s}?", "What might be the color of the {s}?",
        "In the picture, what color is the {s}?",
    ),
    "is_color": (
        "Can we say that the {s} is {x}?", "Is {x} the color of the {s}?", "Might the {s} be {x}?", "In this picture, is the {s} {x}?",
        "Am I right that the {s} is {x}?",
    ),
    "shape": (
        "What is the thing in {x}?", "Which of them is {x}?", "What is the object that is {x}?", "In the picture, which shape is {x}?",
        "Would you tell me which shape is {x}?", "What would you call the {x} shape?",
    ),
    "where": (
        "Where would they have put the {n}?", "Show me where the {n} is.", "In the picture, where is the {n}?", "At which spot is the {n}?",
        "Could you tell me the position of the {n}?", "I am looking for the {n}. Where is it?", "Where would I look for the {n}?",
    ),
    "background": (
        "What color does the background of the picture have?", "Would you tell me what color the background is?", "What color was used for the background?",
        "In the picture, what color is the background?", "The background is what color?",
    ),
    "number": (
        "What number stands here?", "Which number has been drawn?", "Would you tell me the number in the picture?", "In the picture, what number do you see?",
        "What number would you say this is?", "I cannot read the number, what is it?",
    ),
    "has_number": ("Can one find a number in the picture?", "Does this drawing have a number in it?", "In the picture, is there a number?"),
    "is_number": ("Could this be a {d}?", "Can we say that this is a {d}?", "In the picture, is the number a {d}?", "Am I right that this is a {d}?"),
    "number_color": ("What color would you say the number is?", "I would like to know the color of the number.", "In the picture, what color is the number?"),
    "then_color": ("Can you also tell me its color?", "And what color would that be?", "What color does that one have?"),
    "it_color": ("Could you name its color?", "Of what color is it?", "What color has this thing?"),
    "it_where": ("Whereabouts is it?", "Where can it be found?", "At what place is it drawn?"),
    "then_where": ("Can you also tell me where it is?", "And in which place?", "Whereabouts is it?"),
    "then_how_many": ("How many of those?", "And how many would that be?"),
    "then_count": ("And what about the {p}, how many?", "And how many {p} can you see?"),
    "then_exists": ("And what about {a}?", "Can you also see {a}?"),
    "first": ("Could you describe the first picture?", "Tell me about the first image.", "What shapes are in the first picture?"),
    "second": ("Could you describe the second picture?", "Tell me about the second image.", "What shapes are in the second picture?"),
    "newest": ("Could you describe the new picture?", "Tell me about this one.", "And what do we have here?", "What shapes are in the last picture?"),
    "both": ("Could you describe both pictures?", "Tell me about these two images.", "What can be seen in the pictures?"),
}  # fmt: skip

OFF_TOPIC = (
    "What is the zebra eating?", "How many penguins are swimming?", "Is there a giraffe in the picture?", "What color is the motorcycle?",
    "Who is the mayor of Berlin?", "Recommend me a good restaurant.", "What breed is this puppy?", "Is the tourist smiling?", "Where is the airport?",
    "What does the newspaper say about the election?", "How do I bake bread?", "Write an essay about freedom.", "What is the square root of nine?",
    "Where was this photo taken?", "How tall is the tower?", "Which one is bigger?", "What lies below the {n}?", "Who made this picture?", "Is the {s} heavy?",
    "Should I invest in gold?", "What language is this?", "How much is the ticket?", "Can you play chess?", "What is the policeman doing?",
    "Is there a bench next to the lake?", "Turn the {s} around.", "How many people are in the room?", "What is the man holding in his hand?",
)  # fmt: skip
