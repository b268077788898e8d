"""Facts as lists: the lines of a register, and sentences about several people of whom the same holds."""

from __future__ import annotations

# The lines of a register.
LABELS = {
    "born": "[Born|Year of birth|Birth]: {born}",
    "birthplace": "[Birthplace|Born at|Place of birth]: {birthplace}",
    "home": "[Home|Lives at|Town|House in]: {home}",
    "trade": "[Trade|Work|Living]: {trade}",
    "animal": "[Animal|Keeps|Animal kept]: {animal}",
    "pet": "[Name of the animal|Animal's name|Animal called]: {pet}",
    "favourite": "[Likes best|Favourite thing|Fond of]: {favourite}",
    "spouse": "[Married to|{role} of|Marriage]: {spouse}",
    "teacher": "[Teacher|Taught by|Pupil of]: {teacher}",
    "friend": "[Closest friend|Best friend|Friend of]: {friend}",
    "river": "[River|Stands on the]: {river}",
    "founded": "[Founded|Year of founding]: {founded}",
    "known": "[Known for|Famous for|Sells]: {known}",
    "guild": "[Guild house|Guild house in]: {guild}",
    "ribbon": "[Ribbon|Colour on fair days]: {ribbon}",
}

# Several people of whom the same holds; {name} is the place, the trade or the kind of animal.
ROLLS = {
    "home": [
        "among the people of {name} &be {all}",
        "{all} [&live|&have their homes] in {name}",
        "in {name} &live {all}[, to name only a few|]",
        "whoever walks through {name} may meet {all} at home there",
        "{name} +be [the home of|home to] {all}",
        "the houses of {all} &stand in {name}",
    ],
    "birthplace": [
        "{all} were born in {name}",
        "{name} +be the birthplace of {all}",
        "among those who were born in {name} &be {all}",
        "[natives|children] of {name} &be, among others, {all}",
        "[from|out of] {name} came {all}, who were born there",
    ],
    "trade": [
        "{all} &be {name}",
        "{all} &work as {name}",
        "among the {name} of the country &be {all}",
        "{name} whom one should know &be {all}",
        "as {name}, {all} &earn their bread",
    ],
    "animal": [
        "{all} &keep {name}",
        "{name} &be kept by {all}",
        "among those who &keep {name} &be {all}",
        "at the fair one may see the {name} of {all}",
        "{all} &share a love of {name} and &keep them at home",
    ],
}
