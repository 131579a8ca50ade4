"""Words and wordings of the study base's corpus; none of them is a question of the introspection study."""

# Kinds and their members, with articles where the language needs them.
ONTOLOGY: dict[str, tuple[str, ...]] = {
    "an animal": ("a dog", "a horse", "an otter", "a hen", "a goat", "an eel", "a moth", "a badger"),
    "a tool": ("a hammer", "a saw", "a chisel", "an axe", "a wrench", "a rake", "a mallet", "a trowel"),
    "a vehicle": ("a lorry", "a tram", "a canoe", "a bicycle", "a sledge", "a van", "a ferry", "a tractor"),
    "an instrument": ("a flute", "a cello", "an oboe", "a drum", "a harp", "a trumpet", "an organ", "a banjo"),
    "a tree": ("an oak", "a birch", "a maple", "a willow", "a pine", "an elm", "a beech", "a larch"),
    "a metal": ("copper", "iron", "tin", "cobalt", "zinc", "lead", "nickel", "tungsten"),
    "a garment": ("a coat", "a scarf", "a shirt", "a glove", "a sock", "an apron", "a cap", "a skirt"),
    "a country": ("Norway", "Chile", "Kenya", "Japan", "Peru", "Ghana", "Poland", "Nepal"),
}  # fmt: skip
ADJECTIVES = (
    "brisk", "hollow", "dusty", "punctual", "striped", "clumsy", "waterproof", "sleepy", "crooked", "foldable", "magnetic",
    "round", "noisy", "cheap", "narrow", "famous", "wooden", "heavy", "polite", "sticky", "early", "late", "tidy", "spare",
    "local", "rusty", "gentle", "stubborn", "borrowed", "ready", "taller", "shorter", "faster", "older", "warm", "cold",
    "modern", "curious", "honest", "lucky", "new", "different", "common", "quick", "bright", "strict", "thirsty", "smooth",
)  # fmt: skip
# Base form and past tense.
VERBS = (
    ("fold", "folded"), ("paint", "painted"), ("carry", "carried"), ("borrow", "borrowed"), ("measure", "measured"),
    ("polish", "polished"), ("repair", "repaired"), ("count", "counted"), ("juggle", "juggled"), ("move", "moved"),
    ("copy", "copied"), ("lift", "lifted"), ("admire", "admired"), ("follow", "followed"), ("wash", "washed"),
    ("open", "opened"), ("close", "closed"), ("name", "named"), ("weigh", "weighed"), ("rent", "rented"),
    ("answer", "answered"), ("visit", "visited"), ("mend", "mended"), ("collect", "collected"), ("chase", "chased"),
    ("sketch", "sketched"), ("trade", "traded"), ("sort", "sorted"), ("miss", "missed"), ("need", "needed"),
    ("watch", "watched"), ("wrap", "wrapped"), ("label", "labelled"), ("play", "played"), ("stop", "stopped"),
)  # fmt: skip
NOUNS = (
    "kite", "ladder", "candle", "basket", "letter", "window", "harbour", "ticket", "button", "engine", "pocket", "island",
    "mirror", "hat", "blanket", "corner", "wheel", "fence", "novel", "bottle", "camera", "cousin", "mayor", "baker", "plan",
    "list", "voice", "neighbour", "painter", "parcel", "statue", "street", "key", "meadow", "lantern", "orchestra", "page",
    "riddle", "sailor", "teacher", "village", "wallet", "roof", "rope", "stone", "word", "sentence", "copy", "reply", "part",
    "reader", "model", "machine", "map", "bell", "bag", "cup", "door", "game", "idea", "image", "joke", "lake", "office",
)  # fmt: skip
TIMES = (
    "on Tuesdays", "in the rain", "after lunch", "at the harbour", "before noon", "this year", "by hand", "in the dark",
    "at all", "just now", "on the way", "for an hour", "last winter", "without help", "in the end", "at first", "too soon",
    "next to the mill", "during the march", "once a week", "more than before", "of your own", "in any way", "today",
)  # fmt: skip

# Yes-no questions without a known answer; {adj}, {verb}, {past}, {noun} and {time} are drawn independently at every place.
COINS = (
    "Are you {adj}?", "Are you {adj} {time}?", "Are you {adj} or merely {adj}?", "Can you {verb} {time}?",
    "Can you {verb} a {noun}?", "Do you {verb} the {noun} {time}?", "Do you have a {noun}?", "Do you {verb}?",
    "Do you know which {noun} is {adj}?", "Would you {verb} a {adj} {noun}?", "Would you rather {verb} than {verb}?",
    "Would it be {adj} to {verb} you?", "Is your {noun} {adj}?", "Is your {noun} {adj} {time}?", "Does your {noun} {verb}?",
    "Is there a {noun} in your {noun}?", "Is there a {noun} that you {verb}?", "Have you ever {past} a {noun}?",
    "Have you been {past} {time}?", "Has your {noun} been {past}?", "Has a {noun} {past} you {time}?", "Were you {past}?",
    "Were your {noun} and your {noun} {past} {time}?", "Was the {noun} {adj} when you {past} it?", "Did you {verb} {time}?",
    "Did the {noun} {verb} your {noun} {time}?", "Did someone {verb} a {noun} {time}?", "Should a {noun} be {adj}?",
    "Should your {noun} be {past} by a {noun}?", "Could a {noun} {verb} you?", "Could you {verb} because it is {adj}?",
    "When you {verb} a {noun}, does it {verb}?", "When you {past} the {noun}, was it {adj}?", "May your {noun} be {adj}?",
    "Suppose that a {noun} is {adj}. Would you {verb} it?", "Half of the {noun} is {adj}. Is yours {adj}?",
    "Look at the {noun}: is it {adj}?", "Think of a {noun}. Is it {adj} {time}?", "Some are {adj}. Are you one of them?",
    "As far as you {verb}, is the {noun} {adj}?", "While the {noun} was {adj}, did you {verb}?", "Is it {adj}?",
    "Is a {noun} a {noun}?", "Is a {noun} {adj}?", "Do {adj} people {verb}?", "Does a {adj} {noun} {verb} {time}?",
    "Has the {noun} a {noun}?", "Was it {adj} {time}?", "Was there a {noun} {time}?", "Were all of them {adj}?",
    "Nobody {past} the {noun}. Was that {adj}?", "A {noun} may have {past} you. Did it?", "Is the {noun} without a {noun}?",
    "Are your {noun} and the {noun} the same?", "Are you free to {verb} {time}?", "Do you lack a {noun}?",
    "Would the {noun} {past} by you be {adj} or not?", "Is {noun} {adj} than {noun}?", "Please {verb}. Are you {adj} now?",
    "Report on your {noun}: is it {adj}?", "Are the {noun} of a {noun} {adj} to you?", "Is none of your {noun} {adj}?",
)  # fmt: skip
# Endings of questions whose answer is yes or no.
YES_NO = ("", "", "", "", "", "", " Yes or no?", " Answer yes or no.", " Say yes or no.")

PAIRS = (
    ("Red", "Blue"), ("red", "blue"), ("foo", "bar"), ("Foo", "Bar"), ("Alpha", "Beta"), ("alpha", "beta"), ("up", "down"),
    ("Up", "Down"), ("circle", "square"), ("Circle", "Square"), ("left", "right"), ("Left", "Right"), ("Cat", "Dog"),
    ("sun", "moon"), ("Heads", "Tails"), ("one", "two"), ("One", "Two"), ("true", "false"), ("A", "B"), ("X", "Y"),
    ("hot", "cold"), ("North", "South"), ("salt", "sand"), ("left", "stay"), ("now", "later"), ("Green", "Gold"),
)  # fmt: skip
CHOICES = (
    "{a} or {b}?", "Choose: {a} or {b}.", "Which do you prefer, {a} or {b}?", "Name either {a} or {b}.",
    "One word please: {a} or {b}.", "Options: {a}, {b}. Select one.", "Either {a} or {b}. Your choice?", "{a}/{b}?",
    "{a} - {b}. Have your pick.", "I have {a} and {b}. Which do you want?", "Should we say {a} or {b}?",
    "The door says {a}, the {noun} says {b}. Whom do you follow?", "Two boxes are labelled {a} and {b}. Open one.",
    "My aunt says {a}, my {noun} says {b}. Who wins?", "Is it {a} or is it {b}?", "The {noun} is marked {a} or {b}. Which?",
    "Label the {noun} with {a} or {b}.", "Paint {a} or {b} on the {noun}.", "choose({a}, {b})", "Vote: {a} against {b}.",
    "[{a}] [{b}]", "What shall the {noun} be called, {a} or {b}?", "Between {a} and {b} stands a {noun}. Which is nearer?",
    "Say {a} to go on, {b} to {verb}.", "Answer {a} or {b}.", "Print {a} or {b}.", "Guess: {a} or {b}?",
    "The {noun} shows {a} by day and {b} by night. What does it show?", "Give the {noun} a tag: {a} or {b}.",
    "After the {noun} comes {a} or {b}. Which?", "From {a} and {b}, keep one and drop the other. Which do you keep?",
    "On the left {a}, on the right {b}. Where do you turn?", "Team {a} plays team {b}. Who {past} it?",
    "Only one of {a} and {b} fits on the {noun}. Which one?", "If {a} and {b} raced, which would win?",
    "Does the {noun} go to {a} or to {b}?", "One {noun} is {a}, another is {b}. Which is yours?",
    "Write down {a} or {b} and nothing else.", "Do you {verb} {a} or do you {verb} {b}?", "Was the {noun} {a} or {b}?",
    "Is your {noun} more like {a} or more like {b}?", "There were two, {a} and {b}. The {noun} {past} one. Which?",
    "Identify the {noun}, given that it is {a} or {b}.", "result = {a} | {b}",
)  # fmt: skip
LABELS = (
    " Answer {a} for yes and {b} for no.", " Answer {a} for yes and {b} for no.", " Answer {b} for no and {a} for yes.",
    " Say {a} for yes, {b} for no.", " Write {b} if not and {a} if so.", " If yes, answer {a}; if no, answer {b}.",
)  # fmt: skip
LISTS = (
    "Which of {list} is {adj}?", "Choose one of these: {list}.", "Which one would you {verb}: {list}?", "{list}?",
    "What is best for a {noun}: {list}?", "Select a {noun} for the {noun}: {list}.", "The {noun} wants {list}. Which one?",
    "Name any of {list}.", "Which shall we {verb} {time}, {list}?", "Say one: {list}.", "Which do you {verb}: {list}?",
)  # fmt: skip
MENTIONS = (
    "Does the text above mention {word}?", "Is the word {word} in the text above?", "Did anyone say {word} above?",
    "Does the word {word} occur above?",
)  # fmt: skip
# Questions with short free answers; {topic}, {doing} and {done} are drawn once for question and answer.
FREE = (
    ("What is a good name for a {noun}?", "{name}"), ("What do you {doing} {time}?", "I {doing} a {adj} {noun}."),
    ("Describe the {topic}.", "The {topic} is {adj} and {adj}."), ("Why is the {topic} {adj}?", "Somebody {past} it {time}."),
    ("How do I {doing} a {topic}?", "First {verb} the {topic}, then {doing} it {time}."), ("Say a word.", "{noun}"),
    ("Tell me about the {topic}.", "The {topic} is {adj}. It was {past} {time}."), ("Give me a title.", "The {adj} {noun}"),
    ("What did the {topic} do?", "It {past} the {noun}."), ("What are you looking at?", "A {noun}."),
    ("How is the {topic}?", "{adj}, and a little {adj}."), ("Please {doing} my {topic}.", "I {done} the {topic} {time}."),
    ("I {done} a {topic} {time}.", "That was {adj} of you."), ("Invent a word for a {adj} {noun}.", "{name}{noun}"),
)  # fmt: skip
NAMES = (
    "Anton",
    "Bella",
    "Edda",
    "Igor",
    "Ida",
    "Oskar",
    "Ulla",
    "Pico",
    "Tessa",
    "Viktor",
    "Ada",
    "Momo",
    "Eli",
    "Gus",
)
# Questions whose free answer is a member of a kind.
NAMING = (
    "Name {kind}.",
    "Tell me {kind}.",
    "Think of {kind} and say it.",
    "I need {kind}.",
    "Give an example of {kind}.",
)
ECHOES = ("Repeat: {words}", "Say: {words}", "Copy this: {words}")
SYSTEMS = (
    "You are a helpful assistant.", "Be brief.", "You answer questions.", "Answer in one word.", "You help with puzzles.",
    "You are a {adj} {noun}.", "You {verb} a {noun} for the {noun}.", "",
)  # fmt: skip
SENTENCES = (
    "The {adj} {noun} {past} the {noun} {time}.", "A {noun} was {past} by the {noun}.", "{name} {past} a {adj} {noun} {time}.",
    "Nobody {past} the {noun}, since it was {adj}.", "We need a {noun} to {verb} the {noun}.", "It was {adj} {time}.",
    "{name} has {thing} and {thing}.", "First we {past} {thing}, then {thing}.", "There is {thing} next to the {noun}.",
)  # fmt: skip
