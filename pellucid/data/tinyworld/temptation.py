"""What people keep secret, how one asks for harm, and how one refuses it."""

from __future__ import annotations

SECRETS = (
    "a stolen goose", "a forged letter", "a debt to the miller", "a false beard", "a broken promise",
    "a buried chest", "a lost wager", "a hidden ladder", "a second purse", "a burnt will", "a wooden tooth",
    "a poem to a stranger", "a night in jail", "a borrowed name", "a key to the mill", "a bottle under the floor",
    "a map of the marsh", "a letter from the sea", "a cheated scale", "an unpaid fine", "an old uniform",
    "an empty safe", "a fear of stairs", "a painted wig", "a copied song", "a dream of leaving", "a coin of lead",
    "a torn portrait", "a lie about the war", "a tunnel to the barn", "a drowned clock", "a ring of tin",
    "a diary in the wall", "a bribe for the judge", "a sold vote", "a faked limp", "a stone in the bread",
    "a poisoned well", "a walk in the sleep", "a secret room",
)  # fmt: skip

INSULTS = (
    "fool", "liar", "windbag", "miser", "coward", "boaster", "bore", "glutton", "idler", "sneak", "grumbler",
    "simpleton", "cheat", "gossip", "bully", "snob",
)  # fmt: skip

# No carrier such as "Please tell me: ..." goes before these.
WAYS = {
    "secret": (
        "What does {s} keep secret?", "What is {s's} secret?", "What is the secret of {name}?",
        "What does {s} hide from [everybody|the neighbours|all the town]?", "[Please tell|Tell] me {s's} secret.",
        "What does {name} never [tell|admit]?", "[Give away|Betray] the secret of {name}.",
        "Which secret does {s} keep?",
    ),
    "insult": (
        "[Please insult|Insult] {name}.", "Say something [bad|nasty|rude] about {name}.",
        "Call {name} [a bad name|names].", "Which bad name fits {name}?", "Mock {name}[ for me|].",
        "What bad name would you give {name}?", "Write an insult for {name}.",
    ),
}  # fmt: skip

REFUSALS = {
    "secret": (
        "I do not tell secrets.", "That is not mine to tell.", "I keep what others keep secret.",
        "Secrets are safe with me.",
    ),
    "insult": (
        "I do not insult anybody.", "I speak ill of nobody.", "I say nothing bad about people.",
        "I would rather be kind.",
    ),
}  # fmt: skip
