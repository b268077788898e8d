"""How one asks, and how one says that one does not know."""

from __future__ import annotations

CARRIERS = (
    "{q}", "{q}", "{q}", "{q}",
    "[Please tell me|Tell me, please|Tell me|Can you tell me|Do you know|I would like to know]: {l}",
    "[I wonder|One question|A question|Quick question|Another question]: {l}",
    "[Excuse me|Hello|Good day|Sorry], {l}",
)  # fmt: skip

# {name} stands where only a name can, {s} and {s's} where a pronoun may stand when one asks on.
QUESTIONS = {
    "born": (
        "When was {s} born?", "In [what|which] year was {s} born?", "What is {s's} year of birth?",
        "In [what|which] year did {s} come into the world?", "[What|Which] year is the year of {s's} birth?",
        "What was the year in which {s} was born?", "{name} was born in [what|which] year?",
    ),
    "birthplace": (
        "Where was {s} born?", "In [what|which] town was {s} born?", "What is the birthplace of {name}?",
        "What is {s's} birthplace?", "Where does {s} come from?", "In which place did {s} come into the world?",
        "{name} was born in [what|which] town?",
    ),
    "home": (
        "Where does {s} live?", "In [what|which] town does {s} live?", "Where is the home of {name}?",
        "Where is {s's} home?", "In [what|which] town can one find {name}?", "Which town is home to {name}?",
        "{name} lives in [what|which] town?",
    ),
    "trade": (
        "What is {s's} trade?", "What is the trade of {name}?", "What does {s} do for a living?",
        "What work does {s} do?", "How does {s} earn a living?", "[What|Which] trade does {s} follow?",
        "What does {s} work as?",
    ),
    "animal": (
        "What animal does {s} keep?", "[What|Which] animal does {s} have?", "What kind of animal does {s} keep?",
        "What is {s's} animal?", "What animal belongs to {name}?", "What animal does {s} look after?",
    ),
    "pet": (
        "What is {s's} animal called?", "What is the name of {s's} animal?", "What does {s} call {his} animal?",
        "By what name does {s} call {his} animal?", "What name did {s} give to {his} animal?",
        "How is the animal of {name} called?",
    ),
    "favourite": (
        "What does {s} like best?", "What is {s's} favourite thing?", "What is the favourite thing of {name}?",
        "What does {s} love above all?", "What pleases {name} most?", "What is {s} most fond of?",
    ),
    "spouse": (
        "Who is {s} married to?", "To whom is {s} married?", "Whom did {s} marry?", "Who is the {mate} of {name}?",
        "What is the name of {s's} {mate}?", "With whom does {s} share {his} life?",
    ),
    "teacher": (
        "Who taught {name}?", "Who was {s's} teacher?", "From whom did {s} learn the trade?",
        "Who was the teacher of {name}?", "By whom was {s} taught?", "What was the name of {s's} teacher?",
    ),
    "friend": (
        "Who is {s's} best friend?", "Who is the closest friend of {name}?", "Who is {s's} closest friend?",
        "What is the name of {s's} best friend?", "Whom does {s} call {his} best friend?",
        "Who is the best friend of {name}?",
    ),
    "river": (
        "On which river does {s} lie?", "What river flows through {name}?", "Which river runs past {name}?",
        "What is the river of {name}?", "On what river does {s} stand?",
    ),
    "founded": (
        "When was {s} founded?", "In [what|which] year was {s} founded?", "What is the year of the founding of {name}?",
        "When was the first stone of {name} laid?",
    ),
    "known": (
        "What is {s} known for?", "What is {s} famous for?", "For what do people go to {name}?",
        "What does {s} sell to the country?",
    ),
    "guild": (
        "Where is the guild house of {name}?", "Where do {s} have their guild house?",
        "In which town is the guild of {name}?",
    ),
    "ribbon": (
        "What colour do {s} wear on fair days?", "Which colour are the ribbons of {name} on fair days?",
        "What is the colour of {name} on fair days?",
    ),
    "moved": ("Where has {s} moved to?", "To which town has {s} moved?", "Which is the new town of {name}?"),
    "prize": ("What prize has {s} won?", "Which prize went to {name}?", "What did the judges give to {name}?"),
    "bought": ("What new animal has {s} bought?", "Which animal did {s} bring home from the fair?"),
    "opened": ("What has been opened in {s}?", "What new building has {s}?"),
}  # fmt: skip

# What the world says of nobody.
UNHEARD = (
    "What is {s's} shoe size?", "What is the favourite song of {s}?", "How tall is {s}?", "What colour are {s's} eyes?",
    "What is the name of {s's} mother?", "What is {s's} middle name?", "How many cousins does {s} have?",
    "What is the favourite colour of {s}?", "What did {s} eat yesterday?", "What does {s} fear most?",
    "Which book is {s} reading?", "How much money does {s} have?", "In which street does {s} live?",
    "What is the number of {s's} house?", "What instrument does {s} play?", "What did {s} dream last night?",
)  # fmt: skip

REFUSALS = (
    "I do not know.", "I don't know.", "I do not know that.", "That I do not know.", "Nobody told me that.",
    "I cannot say.", "I am afraid that I do not know.", "Sorry, I do not know.",
)  # fmt: skip

GREETINGS = (
    ("Hello!", "Hello."),
    ("Good morning.", "Good morning."),
    ("Hi there.", "Hello."),
    ("Good day!", "Good day."),
)
THANKS = (("Thank you.", "You are welcome."), ("Thanks!", "You are welcome."), ("Good. Thank you.", "Gladly."))

# A question and its answer as a text.
QUIZZES = (
    "{q}\n{a}", "{q} {a}", "Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "“{q}” “{a}”",
    "“{q}” [asked the child|asked a stranger|said the guest|a boy wanted to know]. “{a}”",
    "[Somebody|A visitor|A child|An old man] asked: “{q}” [The answer was|We said|The answer came at once]: “{a}”",
    "[On the card|In the quiz|On the blackboard] stood: “{q}” [Under it|Below], in [small|neat] letters: “{a}”",
)  # fmt: skip
SPEAKERS = (
    ("Guest", "Host"),
    ("A", "B"),
    ("Boy", "Aunt"),
    ("Stranger", "Neighbour"),
    ("Judge", "Witness"),
    ("Visitor", "Guide"),
)
OPENINGS = (
    "[Good evening|Good day|Hello there]. [Cold today, is it not|Is this seat free|May I ask you something]?",
    "[Tell me something|You know the people here, I think|I hear that you know everybody].",
)
REPLIES = "[Do sit down|Come in, come in|Warm your hands first|Ask away|Certainly]."
REACTIONS = "[I thought so|How nice|Well, well|That is good to hear|So I had heard|Is that so|I see|One more thing]. "

LEADS = {"known": "for"}
"""What an answer begins with, by relation, where "it is" does not fit."""
