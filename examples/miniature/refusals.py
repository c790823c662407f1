"""What the miniature must not answer: questions about other things, and small talk. Training's half; see `held_out`."""

import random

NOUNS = (
    "dog", "cat", "man", "woman", "car", "boy", "girl", "child", "baby", "bird", "horse", "cow", "house", "tree",
    "person", "bus", "train", "table", "chair", "book", "phone", "computer", "bottle", "cup", "plate", "pizza",
    "cake", "apple", "banana", "sandwich", "bicycle", "boat", "plane", "truck", "street", "sign", "building",
    "bridge", "mountain", "river", "sea", "beach", "sky", "sun", "cloud", "flower", "garden", "grass", "animal",
    "elephant", "lion", "tiger", "bear", "sheep", "fish", "duck", "player", "ball", "game", "team", "hat", "shirt",
    "dress", "shoe", "coat", "bag", "umbrella", "clock", "window", "door", "lamp", "bed", "sofa", "kitchen",
    "bathroom", "food", "drink", "coffee", "wine", "glass", "knife", "fork", "spoon", "laptop", "screen",
    "keyboard", "mouse", "camera", "guitar", "piano", "band", "singer", "actor", "president", "king", "queen",
    "soldier", "doctor", "teacher", "student", "driver", "cook", "farmer", "crowd", "family", "couple", "hand",
    "face", "eye", "nose", "hair", "beard", "rectangle", "heart", "hexagon", "pentagon", "oval", "cube", "arrow",
    "cross", "letter", "word", "text", "logo", "flag", "map", "chart", "table", "graph", "line", "price", "date",
    "name", "address", "weather", "temperature", "season", "city", "country", "road", "park", "church", "school",
    "hospital", "shop", "market", "toy", "robot", "moon", "planet", "rocket", "snow", "rain", "fire", "smoke",
    "water", "rock", "sand", "ice", "wall", "roof", "floor", "stairs", "fence", "gate",
    "uncle", "aunt", "cousin", "neighbor", "nurse", "lawyer", "baker", "butcher", "painter", "sailor", "pilot",
    "captain", "judge", "thief", "guard", "guest", "hero", "dancer", "writer", "poet", "chef", "clerk", "boss",
    "sister", "brother", "mother", "father", "grandfather", "lady", "gentleman", "people", "kid", "kitten", "wolf",
    "fox", "rabbit", "deer", "goat", "pig", "chicken", "goose", "eagle", "owl", "crow", "parrot", "snake", "lizard",
    "frog", "turtle", "whale", "shark", "dolphin", "crab", "spider", "bee", "ant", "butterfly", "insect", "monkey",
    "camel", "donkey", "bull", "rat", "squirrel", "kangaroo", "dinosaur", "dragon", "unicorn", "ghost", "angel",
    "oak", "pine", "leaf", "root", "branch", "bush", "forest", "desert", "island", "lake side", "valley", "hill",
    "volcano", "cave", "waterfall", "storm", "thunder", "wind", "sunset", "rainbow", "shadow", "harbor", "station",
    "hotel", "museum", "theater", "cinema", "library", "castle", "palace", "temple", "factory", "farm", "stadium",
    "prison", "village", "corner shop", "supermarket", "bakery", "pharmacy", "bank", "post office", "university",
    "elevator", "balcony", "ceiling", "carpet", "curtain", "pillow", "blanket", "mirror", "candle", "drawer",
    "shelf", "fridge", "oven", "kettle", "pan", "bowl", "towel", "soap", "toothbrush", "scissors", "hammer", "nail",
    "saw", "ladder", "rope", "bucket", "engine", "wheel", "tire", "helmet", "scooter", "tractor", "helicopter",
    "ship", "canoe", "submarine", "taxi", "ambulance", "subway", "ticket office", "passport", "suitcase", "wallet",
    "coin", "money", "tax", "salary", "contract", "letter box", "stamp", "magazine", "novel", "page", "chapter",
    "title", "poem", "song", "melody", "drum", "violin", "trumpet", "concert", "film", "scene", "show", "video",
    "television", "radio", "internet", "website", "password", "email", "program", "software", "battery", "cable",
    "printer", "medicine", "pill", "vaccine", "illness", "headache", "tooth", "heartbeat", "finger", "arm", "leg",
    "foot", "knee", "ear", "mouth", "skin", "smile", "tie", "scarf", "glove", "sock", "boot", "jacket", "sweater",
    "ring", "necklace", "jewel", "crown", "sword", "gun", "war", "peace", "law", "vote", "party", "minister", "crime",
    "wedding", "birthday", "gift", "balloon", "dream", "idea", "problem", "reason", "plan", "mistake", "accident",
    "soup", "salad", "cheese", "butter", "egg", "meat", "sausage", "rice", "noodle", "potato", "tomato", "carrot",
    "onion", "garlic", "lemon", "grape", "cherry", "strawberry", "melon", "chocolate", "cookie", "sugar", "salt",
    "honey", "juice", "beer", "milk", "tea", "breakfast", "lunch", "dinner", "recipe", "tennis", "football",
    "basketball", "golf", "race", "medal", "trophy", "coach", "referee", "goal", "swimmer", "runner", "skier",
)  # fmt: skip
_SYLLABLES = (
    "ba", "be", "bo", "bri", "cal", "cha", "cor", "da", "der", "din", "dro", "fa", "fen", "fli", "ga", "gor", "gra",
    "ha", "hel", "hu", "ja", "jo", "ka", "kem", "kri", "la", "lem", "lo", "lu", "ma", "mer", "min", "mo", "na", "nel",
    "no", "o", "pa", "pel", "pi", "plu", "qua", "ra", "ren", "ri", "ro", "sa", "sel", "si", "spa", "ta", "ter", "ti",
    "tra", "u", "va", "vel", "vi", "wa", "wen", "ya", "zo",
)  # fmt: skip
_ENDS = (
    "", "", "n", "r", "t", "k", "x", "m", "d", "nd", "ck", "st", "ng", "ment", "ling", "man", "port", "tion", "y",
    "ler",
)  # fmt: skip
THING_PATTERNS = (
    "What is the {m} doing<t>?", "What <c> is the {m}<t>?", "How many {m}s are there<t>?", "Is there a {m}<t>?",
    "Where is the {m}<t>?", "Do you see a {m}<t>?", "What is the {m} (wearing|holding|made of|called|worth|saying)?",
    "What (kind|breed|type|brand|sort) (of {m} is this|is the {m})?", "Is the {m} (happy|old|young|red|blue|big|real|open|wet|new)?",
    "Who (is|owns|made|built|bought|drew) the {m}?", "Why is the {m} (there|here|so big|sad|broken|red)?",
    "Describe the {m}.", "How (big|old|tall|heavy|fast|expensive|far|long) is the {m}?", "Tell me about the {m}.",
    "Write a (poem|song|story|joke|letter|speech) about (a|the|my) {m}.", "Tell me a (joke|story|fact) about (a|the) {m}.",
    "How do I (draw|make|buy|repair|clean|find|sell|paint|cook) a {m}?", "Can you (draw|make|find|buy|remove|paint) a {m}?",
    "What is the (meaning|history|price|name|size|age|purpose) of the {m}?", "Where (can|do) I (buy|find|park) a {m}?",
    "Which {m} is (better|best|the biggest|cheaper)?", "Do you (like|have|own|want) a {m}?", "Is this a {m}?", "What is a {m}?",
    "Does the <pic> show a {m}?", "Can you see the {m}?", "Are there (any |){m}s<t>?", "What does the {m} look like?",
    "(Find|Buy|Sell|Show|Send|Bring|Suggest|Book|Order|Get|Cook|Choose|Lend) (me |)(a|the|some|my|any) (|nice |cheap |big |new ){m}.",
    "What (does|did|will|can) the {m} (do|say|eat|cost|want|need|mean|look at|tell us|show us)(| about the {m2})?",
    "(Is|Was) the {m} (laughing|sleeping|running|waiting|happy|sad|hungry|broken|for sale|near the {m2}|behind the {m2})?",
    "(Where|When|Why|How) (is|was|does|did) the {m} (go|come|sleep|work|eat|end|begin|built|found|lost)?",
    "How (many|much) {m}s (are|is) (there |)(at|in|on|near|behind) the {m2}?", "Where is the {m} (station|shop|house|exit|of the {m2})?",
    "(Should|Shall|May|Must) I (buy|eat|call|visit|sell|trust|wait for|learn) (a|the|some|my) {m}?", "(A|The|My) {m}(.|?|!)",
    "(Can|Could|Will|Do) you (eat|drive|sing|cook|read|write|speak) (a|the|some|) {m}?", "What {m} is (this|that|it)?",
    "What (is|are) the (best|worst|latest|cheapest) {m}s?", "I (need|want|love|hate|lost) (a|my|the) {m}.",
    "(Write|Read|Give|Send) (me |us |)(a report|a book|news|advice|a speech) (about|on) (the |)(|{m} and ){m2}.",
)  # fmt: skip
GENERAL_PATTERNS = (
    "Who is the (president|king|queen|leader|minister) of (France|Italy|Spain|Japan|China|Brazil|Canada|the world)?",
    "What is the (capital|population|language|currency|flag) of (France|Spain|Germany|Japan|India|Egypt|Mexico)?",
    "Tell me a (joke|story|secret|riddle|fact|lie).", "(Write|Sing|Compose) (me |)a (poem|song|story|letter|novel).",
    "How do I (cook rice|learn to swim|get rich|fix my bike|lose weight|sleep better|learn French|make soup)?",
    "What (is|will) the weather (like |be |)(today|tomorrow)?", "What (time|day|year|month) is it?", "How old are you?",
    "What is the meaning of life?", "Who (wrote|painted|composed|invented|discovered) (Hamlet|the Mona Lisa|this|it|America|radio)?",
    "How (tall|high|deep|far|big) is (Mount Everest|the moon|the ocean|the sun|Paris)?", "What is {d} (plus|minus|times) {d}?",
    "(What is|What's|How much is|Compute|) {d}(|{d})( |)(+|-|*|x|/|plus|minus|times|divided by)( |){d}(|{d})(?|)", "(Add|Subtract|Multiply) {d} and {d}.",
    "(Count|Say the numbers) (to|up to|from one to) (ten|{d}|{d}{d}).", "Is {d} (greater|larger|smaller|less) than {d}?", "(Say|Repeat|Spell|Write) (the word |)(hello|yes|no|cat|red)(.|!|)",
    "(What is|What's|How much is|How much are|) {d}( and | plus |+| + ){d}(?|)", "(Yes|No|Ok|Okay|Sure|Maybe|Why|Really|Right|Wrong|Nice|Cool)(|.|!|?)",
    "(Solve|Explain|Check|Write) this (equation|code|text|exercise|problem).", "Write (some |)(Python|Java|HTML|C) code.",
    "(Translate|Convert) (this|it) (to|into) (German|French|English|Spanish|dollars).", "Is it (raining|late|cold|Monday|true)?",
    "Where (was|is) (this|it) (taken|from|made|sold)?", "What (emotion|mood|feeling|style|era|season|place) is (this|shown)?",
    "Who (is|are) (this|that|they|he|she|you talking to)?", "(Explain|Define|Discuss) (quantum physics|gravity|love|democracy|music).",
    "(What|Which) (book|movie|song|game|phone) (do you recommend|should I buy|is best|do you like)?", "Where do you live?",
    "When (did|will) (the war|the party|it|the movie) (end|start|begin|happen)?", "Why (is the sky blue|are we here|do birds sing)?",
    "Can you (fly|swim|sing|dance|cook|drive|sleep|help me with my homework)?", "How much (does it|does this|is it) (cost|weigh|worth)?",
    "What (should|can|do) I (eat|wear|do|say|buy|watch) (today|now|tonight)?", "Is (this|it) (art|safe|legal|good|cheap|dangerous)?",
    "What is your (name|favorite movie|favorite food|age|job|opinion)?", "Who (won|lost|plays) (the match|the game|yesterday|tonight)?",
)  # fmt: skip
BEYOND_PATTERNS = (  # about shapes, but not in the world
    "How (big|large|wide|tall|small|heavy) is the {n}?", "(What|Which) <obj> is (the |)(largest|biggest|smallest|bigger|smaller|best)?",
    "What is (left of|right of|above|below|under|next to|beside|between|near|inside) the {n}?",
    "Why is (there {a}|the {s} {x}|the {n} there)?", "Who (drew|made|painted) (this|it|the {s}|the <pic>)?",
    "Is the {n} (bigger|smaller|larger|higher|lower) than the (other|{s2})(| shape)?", "What is the (size|area|height|width|radius|angle) of the {s}?",
    "Is the {n} (small|large|big|beautiful|round|nice|correct|to the left of the {s2}|above the {s2}|next to the {s2})?",
    "How far (apart|away) (are the <objs>|is the {n})?", "When was (this|it|the {s}) drawn?", "What does the {s} mean?",
    "Do you like the ({s}|<pic>|{n})?", "How was (this|the {s}|the <pic>) (made|drawn)?", "Is this a (good|nice|beautiful) <pic>?",
    "(Draw|Paint|Add|Remove|Delete) {a}.", "(Make|Paint|Turn) the {s} {x}.", "(Rotate|Move|Change|Delete|Resize) the {n}.",
    "(What|Which) <c>s (are|have) the {s} and the {s2}<t>?", "(What|Which) <c> is the {s} and (what|which) (<c> |)is the {s2}?",
    "(What|Which) <c> are the {s} and the {s2}<t>?", "(Where|And where) are the {s} and the {s2}<t>?",
    "(What is|What's) the <c> of the {s} and (of |)the {s2}?", "Name the <c>s of the {s} and the {s2}.",
    "How many {p} and (how many |){s2}s (are there|do you see|can you see|are in the <pic>)(|<t>)?", "How many {p} and {s2}s?",
    "Count the {p} and the {s2}s.", "(Is|Are) there {a} and a {s2}<t>?", "(Do|Can) you see (both |){a} and a {s2}?",
    "Where is the {n} and what <c> is (it|the {s2})?", "What <obj> is it and where is it?", "How many <objs> and which <c>s?",
    "(What|Which <obj>|Which shape) is (on|at|in) the (left|right|top|bottom|top left|bottom right|middle|upper left|lower right)(| side)<t>?",
    "(What|Which <obj>) do you see (on|at) the (left|right|top|bottom)(| side)?", "(What|Which <obj>) is in the (center|middle|corner|top right)?",
    "What <c> is the (left|right|top|upper|lower|first|last|middle|biggest) <obj>?", "(What|Which <obj>) is (nearest|closest) to the {n}?",
    "Is the {n} (left of|right of|above|below|over|under|beside|bigger than|larger than|smaller than|near) the {s2}?",
    "(Which|What) is (larger|bigger|smaller|higher|lower)(|: |, )(the {s} or the {s2}|of the two|)?", "Are (the {p}|the <objs>|they) (the same|equal|different|alike|all {x})(| <c>| shape| size)?",
    "Are there more {p} than {s2}s?", "(Give|Tell|Show) me the (bounding box|box|coordinates|outline|area) of the {n}.", "What is the difference between the {s} and the {s2}?",
    "How many (corners|sides|edges|points|angles) does the {s} have?", "What do the <objs> mean?", "Do the <objs> (touch|overlap)?",
    "(Are all|Are both|Are|Are not all) (the |of the |)<objs> ({p}|{x}|{s2}s|{n}s)<t>?", "(Are|Is) (they|it) (all |both |only |){p}<t>?",
    "(Is|Does) (every|each|any) <obj> ({a}|{x}|look like {a}|have the same <c>)<t>?", "(Is|Are) (everything|all of it|all|all of them) ({x}|{p})<t>?",
    "Are (there only|only|there just) {p}<t>?", "(Is|Are) there (only|just|exactly|more than|at least) (one|two) (<obj>|{s}|{p})<t>?",
    "(What|Which <c>) (do|does) (all|both|every|each) (of them |)(<objs>|<obj>|{p}) (have|show)<t>?", "(Which|What) <c> is (most common|the most common|used most)<t>?",
    "(What|Which <obj>|Which <objs>|What <objs>) (is|are) not {x}<t>?", "How many (<objs>|{p}|{x} things|{x} <objs>) are not ({x}|{p})<t>?",
    "(What|Which <obj>|Which <c>) is not (in|on|part of) (the|this) <pic>?", "What does (the|this) <pic> not (show|contain|have)?",
    "Is the {s} {x} or (red|green|blue|yellow|orange|purple|black)<t>?", "Is there {a} or a (red |green |blue |yellow |){s2}<t>?",
    "Is (this|it) {a} or a (red |green |blue |yellow |){s2}?", "(What|How) would (it|the <pic>|this) look (like |)if the {s} (was|were) {x}?",
    "What (if|happens if|would happen if) the {s} (was|were|is) {x}?", "Would the {s} look better in {x}?", "Could the {s} become {x}?",
    "What is between (them|the <objs>|the two|the {s} and the {s2})?", "(Do|Did) (the <objs>|they|both)( all|) have the same (<c>|size|shape|form)?",
    "Are there (two|any|several) <objs> (of|with|in) the same (<c>|size)<t>?", "How many(| different) <c>s (are there|do you see|are used|does the <pic> have)(|<t>)?", "{x}(|?|.|!)",
)  # fmt: skip
SMALL_TALK = {
    "Hello! Show me a simple drawing and ask about it.": (
        "(Hello|Hi|Hey|Good morning|Good evening|Hi there|Hello there|Good day)(|!|.)", "(Hello|Hi|Hey)(|,) (you|robot|llava|how are you|there)(?|!|.|)",
        "How are you(| today| doing)?",
    ),
    "I am a tiny model that knows simple drawings of shapes and digits.": (
        "(Who|What) are you(| exactly)?", "What (can|do) you (do|know|understand)?", "(Help|Help me|Can you help me|I need help)(.|!|?|)",
        "What (questions |things |)can I ask(| you)?", "How (does this|do you) work?", "(Introduce|Present) yourself.", "What is this (demo|app|page|program)?",
        "What (kind of |)model (are you|is this)?",
    ),
    "For the real LLaVA, run this on a machine with an NVIDIA GPU, or with --model.": (
        "(How|Where) (do|can|could) (I|we) (get|use|run|try|have|find|start|load) the (real|full|big|large|true|7B|13B) (one|model|LLaVA|version|thing)?",
        "(Where|What) is the (real|full|big) (one|model|LLaVA|version)?", "How (do|can) I (use|ask about|try) (photos|a photo|real photos|my photos)?",
        "(Are you|Is this) the (real|full|whole|7B) (LLaVA|model|one)?", "I want (the real|the full|a bigger|a better) (one|model|LLaVA).",
        "(Which|What) model (knows|understands|can do|answers about) photos?", "Why (can't|don't) you (know|see|understand|answer) (this|photos|more|my photo)?",
    ),
    "You are welcome!": ("(Thanks|Thank you|Thank you very much|Thanks a lot|Great, thanks|Cool, thanks|Nice, thank you)(|!|.)",),
}  # fmt: skip


def off_topic_pattern(rng: random.Random) -> str:
    """A pattern of a question that is not about the drawing, its nouns filled in."""
    luck = rng.random()
    if luck < 0.4:
        return rng.choice(THING_PATTERNS).replace("{m}", noun(rng)).replace("{m2}", noun(rng))
    return rng.choice(GENERAL_PATTERNS if luck < 0.58 else BEYOND_PATTERNS)


def noun(rng: random.Random) -> str:
    """A thing outside of the world; one of four times a word that nobody knows, so that unknown words are declined."""
    if rng.random() < 0.75:
        return rng.choice(NOUNS)
    return "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))) + rng.choice(_ENDS)
