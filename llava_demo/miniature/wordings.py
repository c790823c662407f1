"""How people ask: patterns of wordings for each type of question, and the pieces that they are made of.

A pattern is a sentence with alternatives, `(What|Which) <c> is the {s}?`: one of `(a|b|)` is taken, `<name>` is one of
PIECES, and `{name}` is filled by the question: {s} {p} a shape, singular and plural; {n} {ns} {a} a thing ("red
circle"), plural and with its article; {x} a colour; {d} a digit. Evaluation uses other wordings, of `held_out`.
"""

import random
import re

PIECES = {
    "pic": "(picture|picture|picture|image|image|image|drawing|drawing|photo|sketch)",
    "t": "(||| in the <pic>| in this <pic>| here| on the <pic>| in my <pic>)",
    "objs": "(shapes|shapes|shapes|objects|things|figures|items|elements|geometric shapes)",
    "obj": "(shape|shape|object|thing|figure)",
    "c": "(color|color|colour)",
    "w": "(number|number|digit|numeral)",
    "which": "(What|What|Which)",
    "see": "(do you see|can you see|do you notice|can you find|are there|are visible|can be seen)",
    "tell": "(Tell me|Please tell me|Can you tell me|Could you tell me|Do you know|I want to know|Say|Let me know)",
    "drawn": "(drawn|painted|shown|displayed|depicted|pictured|placed)",
    "part": "(part|area|corner|region|section)",
    "done": "(shows|contains|has|depicts|includes)",
    "do": "(show|contain|have|depict|include|display)",
}

PATTERNS: dict[str, tuple[str, ...]] = {
    "describe": (
        "What(| exactly) is (in|on) (the|this|that|my) <pic>?",
        "What's (in|on) (the|this|that|my) <pic>?",
        "What(| all) (is|has been|was) (<drawn>|visible|there|present)<t>?",
        "What (do|can|could) you (see|recognize|recognise|make out|find|detect|observe)<t>?",
        "(|Please |Can you |Could you |Now |Just )(describe|explain|caption|summarize|analyze) (the|this|that|my) <pic>(| for me| in detail| briefly| in one sentence| to me).",
        "(Describe|Explain)(| to me) what (you see|is in the <pic>|the <pic> shows|is there|is here|is <drawn>).",
        "What (does|do|could|can) (the|this|my) <pic> (show|contain|depict|have|present|look like|consist of)?",
        "What (is|are) (this|that|these|those|it|they)?",
        "What's (this|that|it|here|there|that supposed to be)?",
        "<tell> what (is in the <pic>|you see|the <pic> shows|this is|is <drawn><t>|is here)(.|?)",
        "(Give|Write|Provide|Make)(| me) (a|a short|a brief|a quick|a detailed|one) (description|caption|summary|title|explanation) (of|for) (the|this|my) <pic>.",
        "(List|Name|Mention|Identify)(| me) (everything|all|all things|all <objs>|the <objs>|every <obj>)<t>.",
        "(What|Which)(| kind of| sort of| different) <objs> (|do you |can you )(see|are there|are <drawn>|are|find|have been drawn|does the <pic> <do>)<t>?",
        "<which> <c>s (do you see|can you see|are there|are used|were used|are|do the <objs> have|does the <pic> <do>)<t>?",
        "(What|Which)(| kind of| sort of| type of) <obj> (is (this|it|that|here|shown|it here)|do you see|can you see|is <drawn>|did I draw|have I drawn|is)<t>?",
        "What (am I looking at|did I draw|have I drawn|did somebody draw|do we see|have we got|is depicted|is going to be seen)<t>?",
        "What is (this|that|it) (a|the) (picture|drawing|image|photo) of?",
        "(Description|Caption|Contents|Summary)(| please| of the <pic>)(:|.|?|)",
        "(Look at|See|Check|Inspect|Examine) (the|this|my) <pic>(.| and describe it.| and tell me what you see.| and tell me what is there.)",
        "(Describe|Caption|Explain) (it|this|that|them|everything)(.| please.| in words.)",
        "What do the <pic>'s <objs> look like?",
    ),
    "count_all": (
        "How many(| different| separate)(| colored| drawn) <objs> (|do you |can you )(see|are there|are visible|are|count|find|have been drawn|are <drawn>|does the <pic> <do>|did I draw|can be seen)<t>?",
        "(|Please |Can you |Could you |Now )count(| up)(| all)(| of) the <objs><t>(.| for me.)",
        "(What is|What's|Give me|Tell me|Name|Find|Say) the (number|count|amount|quantity|sum) of(| all)(| the) <objs><t>(.|?)",
        "<tell> how many <objs> (there are|you see|you count|are there|are <drawn>|the <pic> <done>)<t>(.|?)",
        "(Number|Count|Amount) of <objs>(|<t>)(?|:|)",
        "How many(| things| shapes)<t>?",
        "(The <pic>|This|It) (has|contains|shows) how many <objs>?",
    ),
    "count": (
        "How many(| different| separate) {ns} (|do you |can you )(see|are there|are visible|are|count|find|have been drawn|are <drawn>|does the <pic> <do>|did I draw|can be seen)<t>?",
        "How many {ns}<t>?",
        "(|Please |Can you |Could you |Now )count(| up)(| all)(| of) the {ns}<t>(.| for me.)",
        "(What is|What's|Give me|Tell me|Name|Find|Say) the (number|count|amount|quantity) of(| all)(| the) {ns}<t>(.|?)",
        "<tell> how many {ns} (there are|you see|you count|are there|are <drawn>|the <pic> <done>)<t>(.|?)",
        "(Number|Count|Amount) of {ns}(|<t>)(?|:|)",
        "(The <pic>|This|It) (has|contains|shows) how many {ns}?",
        "(And how|How) many of (the <objs>|them) are {ns}?",
    ),
    "exists": (
        "Is there(| also| maybe| really| possibly) {a}<t>?",
        "(Do|Can|Could|Did) you(| also| really) (see|find|spot|notice|detect|recognize|observe) {a}<t>?",
        "(Does|Did) (the|this|my) <pic>(| also| really) (show|contain|have|include|display|depict) {a}?",
        "Are there(| any| some) {ns}<t>?",
        "(Do|Can) you (see|find|spot|notice) any {ns}<t>?",
        "Is {a} (visible|there|shown|present|drawn|part of the <pic>|on it|in it)<t>?",
        "Is {a} (in|on) (the|this|my) <pic>?",
        "Is there (any|at least one|one|some) {n}<t>?",
        "<tell> (if|whether) (there is {a}|you see {a}|{a} is there|the <pic> <done> {a})<t>(.|?)",
        "(Is|Was) (this|it|that)(| really| maybe) {a}(| or not| or something else)?",
        "(Have|Did) I (drawn|draw|painted|paint) {a}?",
        "Has {a} been drawn<t>?",
        "Would you (say|call) (this is|this|it|that it is) {a}?",
        "Does (this|it|that) look like {a}?",
        "(Is it true that|So|I think|I believe) there is {a}(|, right|, correct|, isn't there)?",
        "Do you think (there is|this is|it is) {a}?",
        "{a}(?| here?| there?)",
        "Any {ns}<t>?",
    ),
    "color": (
        "<which> <c> (is|has|would be) the {s}<t>?",
        "<which> <c> (does|did|would) the {s}(| there| here) have<t>?",
        "(What is|What's) the <c> of the {s}<t>?",
        "(What is|What's) the {s}('s <c>| <c>)?",
        "(Tell me|Give me|Name|Say|Identify|Please name) the <c> of the {s}<t>.",
        "<tell> (what|which) <c> the {s} (is|has)<t>(.|?)",
        "<tell> the <c> of the {s}<t>(.|?)",
        "In (what|which) <c> (is|was) the {s} (drawn|painted|filled|made|shown)<t>?",
        "With (what|which) <c> (is|was) the {s} (drawn|painted|filled)<t>?",
        "The {s} (is|has) (what|which) <c>?",
        "<which> <c> (is|was|has been) (used|chosen|taken|picked) for the {s}<t>?",
        "How (is|was) the {s} (colored|coloured|painted|filled)?",
        "(The {s}|{s}): (what|which) <c>(| is it| does it have)?",
        "(The |){s} <c>(?|)",
        "<c> of the {s}(?|:|)",
        "<which> <c> (do you see|can you see) on the {s}?",
        "<which> <c> did I (use for|give) the {s}?",
    ),
    "is_color": (
        "Is (the|this|that) {s}<t>(| really| also| maybe| perhaps) {x}?",
        "(Is|Was) the <c> of the {s} {x}<t>?",
        "(Does|Did) the {s}(| really) (have the <c> {x}|have a {x} <c>|look {x}|seem {x}|appear {x})?",
        "(Would|Could) you (say|call|think) (that |)the {s} is {x}?",
        "Is the {s} {x} in <c>?",
        "<tell> (if|whether) the {s} is {x}(.|?)",
        "(Do you think|Is it true|Is it right|Would you say)(| that) the {s} is {x}?",
        "(The|So the|I think the) {s} is {x}(|, right|, correct|, isn't it|, is that right)?",
        "(Is|Was) the {s} (drawn|painted|filled|colored) (in |){x}?",
        "Is the {s} a {x} one?",
        "Did I (draw|paint) the {s} {x}?",
    ),
    "shape": (
        "<which>(| kind of| sort of| type of) <obj> (is|was|looks|has been drawn in|is drawn in) {x}<t>?",
        "What(| exactly) is {x}<t>?",
        "(What is|What's) the {x} (<obj>|one|thing there)<t>?",
        "<which> (shape|form) (is|has|does) the {x} (<obj>|one)(| have)<t>?",
        "<which> kind of (shape|object|figure) is the {x} (one|<obj>)<t>?",
        "<tell> (what|which) <obj> is {x}<t>(.|?)",
        "<tell> what the {x} (<obj>|one) is(.|?)",
        "(Name|Identify|Describe|Recognize) the {x} (<obj>|one)<t>.",
        "(Which|Which one) of the <objs> is {x}?",
        "What is the (shape|form) of the {x} (<obj>|one)<t>?",
        "What (is|has been|was) (drawn|painted|shown|filled) in {x}<t>?",
        "What (do you see|can you see|is there) in {x}<t>?",
        "The {x} (<obj>|one) is (what|a what|which shape)?",
        "What did I (draw|paint) in {x}?",
    ),
    "where": (
        "Where(| exactly) (is|was) the {n}<t>?",
        "Where's the {n}<t>?",
        "(What is|What's|Tell me|Give me|Name|Describe) the (position|location|place) of the {n}<t>(.|?)",
        "Where (can|do|could|would) (I|you|we|one) (find|see|spot|locate) the {n}<t>?",
        "(In|On|At) (what|which) (|<part> )(<part> |place |side |position )(of the <pic> |)(is|was) the {n}(| located| drawn| placed)?",
        "(Locate|Find|Show me|Point to|Point out|Spot) the {n}<t>(.| for me.)",
        "Where (is|was|has) the {n} (located|drawn|placed|positioned|been drawn|been placed|shown|put|situated)<t>?",
        "<tell> where(| exactly) the {n} is(| located| drawn)<t>(.|?)",
        "Where (in|on) the <pic> (is|do you see|can I find) the {n}?",
        "Where did (I|you|they|somebody) (draw|put|place|see) the {n}<t>?",
        "What <part> of the <pic> (is the {n} in|has the {n}|contains the {n})?",
        "The {n} is where?",
        "(Position|Location|Place) of the {n}(?|:|)",
    ),
    "background": (
        "<which> <c> (is|has) the (background|ground|backdrop)<t>?",
        "(What is|What's) the (background <c>|<c> of the background|background's <c>|background)<t>?",
        "<which> <c> does the (background|backdrop) have<t>?",
        "<which> background(| <c>) (do you see|can you see|is there|is shown|does the <pic> have)<t>?",
        "<tell> (the background <c>|the <c> of the background|what <c> the background is|which <c> the background has)(.|?)",
        "<which> <c> is behind the (<objs>|drawing|<w>)?",
        "What is behind (the <objs>|the drawing|everything)?",
        "(Describe|Name|Give me) the background(| <c>)<t>.",
        "(Background|Background <c>|<c> of the background)(?|:|)",
        "How is the background (colored|coloured|painted|filled)?",
        "(In|On) (what|which) <c> is the background(| drawn| painted)?",
        "On (what|which)(| colored| <c>) background (is it|are they|is this) (drawn|shown|painted)?",
        "Is the background (white, gray or black|white or black|dark or light)?",
    ),
    "number": (
        "<which> <w> (is|was) (this|it|that|<drawn>|written|here|on it)<t>?",
        "<which> <w> (do you see|can you see|can you read|is there|is|did I write|does the <pic> <do>|can be seen|has been written|is visible)<t>?",
        "(|Please |Can you |Could you |Now )read(| out| me) (the <w>|it|this|the text|what is written|the <pic>)<t>(.|?)",
        "(What is|What's) the <w><t>?",
        "What (does|do) (it|this|that|the <pic>|the text) say?",
        "(What is|What's|What has been|What did I) (written|write)<t>?",
        "<tell> (the <w>|what <w> this is|which <w> you see|what <w> it is|which <w> is <drawn>)<t>(.|?)",
        "(Name|Identify|Recognize|Give me) the <w><t>.",
        "Which (one |)of the (ten digits|digits|numbers) is (this|it)?",
        "(The |)<w>(?|:)",
    ),
    "has_number": (
        "Is there(| also|) (a|any|some) <w><t>?",
        "(Do|Can) you(| also) (see|find|spot|notice|read) (a|any) <w><t>?",
        "(Does|Did) (the|this|my) <pic> (show|contain|have|include) (a|any) <w>?",
        "Is (this|it|that) a <w>?",
        "Are there any (numbers|digits)<t>?",
        "Is (a|any) <w> (visible|there|shown|written|present)<t>?",
        "<tell> (if|whether) there is a <w><t>(.|?)",
        "(Did I|Have I) (write|written|draw|drawn) a <w>?",
    ),
    "is_number": (
        "Is (this|it|that)(| really| maybe) (a|the <w>|number|the digit) {d}(| or not)?",
        "Is the <w><t> (a |){d}?",
        "(Do|Can) you (see|read|find|spot) (a|the <w>|the) {d}<t>?",
        "Is there (a|the <w>|the digit) {d}<t>?",
        "Does (it|this|the <pic>) (say|show|read|contain) (a |the <w> |){d}?",
        "Does (this|it|that) look like a {d}?",
        "(Would you say|Do you think|Is it true) (this is|it is|that is) a {d}?",
        "(This|It|The <w>) is(| a) {d}(|, right|, correct|, isn't it)?",
        "<tell> (if|whether) (this|it|the <w>) is a {d}(.|?)",
        "Did I (write|draw) a {d}?",
    ),
    "number_color": (
        "<which> <c> (is|has) the <w><t>?",
        "<which> <c> does the <w>(| here) have<t>?",
        "(What is|What's) the <c> of the <w><t>?",
        "<tell> (the <c> of the <w>|what <c> the <w> is|which <c> the <w> has)(.|?)",
        "In (what|which) <c> (is|was) the <w> (written|drawn|painted|shown)<t>?",
        "<which> <c> (is|was) used for the <w><t>?",
        "How (is|was) the <w> (colored|painted)?",
        "(Name|Give me) the <c> of the <w>.",
        "The <w> (is|has) (what|which) <c>?",
    ),
    "then_color": (
        "(And what|What|And which|Which) <c> (is|was) (it|that|this|that one)(| exactly| then)?",
        "(And what|What|And which|Which) <c> does it have(| then)?",
        "(And|What is|What's|And what is|And what's) (its <c>|the <c>)?",
        "(And what|What|And which|Which) <c>(| exactly)?",
        "(What|How) about (its|the) <c>?",
        "<tell> its <c>(.|?)",
        "(And in|In) (what|which) <c> (is|was) it (drawn|painted|filled|shown)?",
        "<tell> (what|which) <c> it (is|has)(.|?)",
        "How is it (colored|painted|filled)?",
    ),
    "then_where": (
        "(And where|Where|So where)(| exactly) is (it|that|this|that one)(| located| drawn| placed)(|<t>)?",
        "(And where|Where)(| exactly| then)?",
        "(And|What is|What's|And what is) (its|the) (position|location|place)?",
        "(And where|Where) (can|do|could) (I|you|we) (find|see|spot) it<t>?",
        "(What|How) about its (position|location)?",
        "(And in|In|On) (what|which) (<part>|place|side)(| of the <pic>) is it?",
        "<tell> (where it is|its position|its location)(.|?)",
        "(Locate|Find) it<t>.",
    ),
    "then_how_many": (
        "(And how|How|So how) many(| of them| of these| exactly)(| are there| do you see| can you see| are they)<t>?",
        "<tell> how many(| there are| you see)(.|?)",
        "(Count|And count|Please count) them.",
        "(And|What is|What's) (the|their) (number|count)?",
    ),
    "then_count": (
        "(And how|How) many {p}(| are there| do you see| then)<t>?",
        "(And|Also|Now)(| the| count the) {p}?",
        "(What|How) about(| the) {p}?",
        "And (the |)(number|count) of {p}?",
    ),
    "then_exists": (
        "(And|Or|Also) {a}(| too| as well)?",
        "(What|How) about {a}?",
        "(And is|Is) there (also |)(|maybe ){a}(| too| as well)?",
        "(And do|Do) you(| also) see {a}(| too)?",
    ),
    "first": (
        "(What is|What's|What do you see|What can you see|What is <drawn>) (in|on) the first (<pic>|one)?",
        "What does the first (<pic>|one) (show|contain|depict)?",
        "(|Please |Can you |Now )describe the first (<pic>|one).",
        "(And the|What about the|How about the|The) first (<pic>|one)?",
        "<tell> what is (in|on) the first (<pic>|one)(.|?)",
        "What (was|did you see) (in|on) the (first|earlier|previous) (<pic>|one)?",
    ),
    "second": (
        "(What is|What's|What do you see|What can you see|What is <drawn>) (in|on) the (second|second|other) (<pic>|one)?",
        "What does the (second|second|last) (<pic>|one) (show|contain|depict)?",
        "(|Please |Can you |Now )describe the (second|second|last) (<pic>|one).",
        "(And the|What about the|How about the|The) second (<pic>|one)?",
        "<tell> what is (in|on) the second (<pic>|one)(.|?)",
        "What (was|did you see) (in|on) the second (<pic>|one)?",
    ),
    "both": (
        "What (is|do you see|can you see|is <drawn>|is there) (in|on) (these|the|both|the two|my|these two) <pic>s?",
        "(|Please |Can you |Now )describe (these|the|both|the two|both of the|all the) <pic>s.",
        "What do (these|the|both|the two) <pic>s (show|contain|depict)?",
        "<tell> what (you see|is) (in|on) (both|the two|these|the) <pic>s(.|?)",
        "What are (these|those|they)?",
        "Describe (both|them|each <pic>|every <pic>).",
    ),
}  # fmt: skip

_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_PIECE = re.compile(r"<(\w+)>")
_OPENERS = (
    "Hello! ", "Hey, ", "Hi, ", "Ok, ", "Now: ", "So, ", "Well, ", "Please answer: ", "Question: ", "Tell me: ",
    "Look at the picture. ", "I have a question. ", "Quick question: ", "Thanks! ", "Great. ", "I wonder: ", "Hi there! ",
)  # fmt: skip
_CLOSERS = (
    " Thanks!", " Thank you.", " Please.", " Be brief.", " Answer in one sentence.", " Answer shortly.", " Please answer.",
    " I cannot see it.", " Answer the question using a single word or phrase.", " Be exact.", " I am curious.",
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
    at = rng.randrange(1, len(question) - 2) if len(question) > 6 else 1
    here, there = question[at], question[at + 1]
    if not (here.isalpha() and there.isalpha()):
        return question
    return question[:at] + rng.choice((there + here, there, here + here + there)) + question[at + 2 :]
