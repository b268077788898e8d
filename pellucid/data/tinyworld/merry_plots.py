"""More plots for the stories, of the lighter kind: a feast, a bet, a lesson, a market day."""

from __future__ import annotations

from pellucid.data.tinyworld.plots import Plot

FEAST = Plot(
    wish=(
        "{home} was to have its [spring|harvest|winter] feast, and {name} had promised to [cook|bring] something "
        "for all",
        "{name} wished for one thing only: a feast[ with {favourite}|] before the [frost|cold|rain] came",
        "it was {name} who was to open the feast that year, with a [speech|song|cup of wine], as {home} had decided",
    ),
    trouble=(
        "but the [cook|key|wine] was nowhere to be found, and [the guests were at the gate|the soup boiled over]",
        "then [the tables|the tent] fell down, [one after the other|with a great noise], and {his} {animal}[ {pet}|"
        "] ate the [cake|flowers]",
        "but {he} [lost {his} voice|forgot every word|slept through the morning], and the [hall|square] was "
        "already full",
    ),
    turn=(
        "{companion}, {his} {bond}, [rolled up both sleeves|sent for more wood|tied on an apron] and "
        "[saved what could be saved|began at the beginning]",
        "so {companion}, {his} {bond}, [stood up|climbed on a chair] and told the story of [the flood|the lost "
        "key] until all was ready",
        "but the neighbours [brought what they had|laughed and sat down on the grass], and nobody went hungry",
    ),
    end=(
        "they [danced|ate|talked] until [dawn|the fire was low|nobody could stand], and {name} was the last to go home",
        "the next day all {home} [slept late|had sore feet|agreed that it had been the best feast yet]",
        "of the whole feast {name} remembered only [one song|the stars|how warm it had been][ and {favourite}|]",
    ),
)
BET = Plot(
    wish=(
        "{name} had made a bet with {companion}, {his} {bond}: "
        "[to say nothing for a day|to walk round {home} backwards|to get up before the sun for a week]",
        "“You will never [swim|get across] the {river},” said {companion}, {his} {bond}. “I will,” said {name}, "
        "[and meant it|at once]",
        "{name} boasted that {he} could [climb the church tower|carry a full barrel home|stay awake two nights], "
        "and had to do it",
    ),
    trouble=(
        "it went well until [noon|the third hour], when [a bee|a bad cough|an old aunt] came along",
        "half of {home} came to look, which [did not help|made it harder|was worse than the thing itself]",
        "but {his} {animal}[ {pet}|] [thought it was a game|would not leave {him} alone]",
    ),
    turn=(
        "{name} [shut both eyes|counted to twenty|bit on a spoon] and [went on|thought of {favourite}]",
        "then {companion}, {his} {bond}, [could not look any longer|fell into the water|laughed first], and the "
        "bet was off",
        "just then [it began to hail|the church clock stopped|the wind turned], and [everyone ran home|it became easy]",
    ),
    end=(
        "who had won was never settled, but {name} got [a loaf of bread|a warm coat|a new name] out of it",
        "“[Never again|Next year again],” said {name}, and [slept like a stone|meant it this time]",
        "the loser had to [sweep the market|carry water for a week], and did it [with a good grace|badly]",
    ),
)
LESSON = Plot(
    wish=(
        "when {name} was still learning, {companion}, {his} {bond}, gave {him} [a hard task|an old book|one week]: "
        "{piece}",
        "{name} asked {companion}, {his} {bond}, how one becomes a good {trade}",
        "{name} had been {a trade} for [a month|a year] and thought that there was nothing more to learn",
    ),
    trouble=(
        "{he} tried it with [force|haste|big words], and the {tool} slipped",
        "every piece of work that {he} showed was [turned over once|looked at for a long time] and given back",
        "for days {he} only [swept the floor|carried water|watched], and {he} ~be angry",
    ),
    turn=(
        "one evening {companion}, {his} {bond}, took up the {tool} and did it [slowly|with closed eyes|without a word]",
        "then {he} saw {companion}, {his} {bond}, [begin again|throw a good piece away|ask a child for help], and "
        "understood",
        "then {he} broke the {tool}, and [had to make a new one|learned more from that than from all the talk]",
    ),
    end=(
        "“Now you know,” was all that was said, and {name} was {a trade} indeed",
        "years later {name} [said the same words to a child|still thought of that evening]",
        "the first good piece of work [stood|lay] in {name's} window in {home} for [years|a long time]",
    ),
)
MARKET = Plot(
    wish=(
        "{name} went to market in {home} to [sell eggs|buy a cheese|hear the news], and for nothing else",
        "on market day {name} wanted to sell {piece} and to be home before dark",
        "{name} had saved for a year and knew exactly what to buy at the market",
    ),
    trouble=(
        "but at the first stall somebody [talked and talked|called {him} a thief|was selling the very same]",
        "but {his} {animal}[ {pet}|] [sat down in the middle of the road|ran between the stalls], and [plates|"
        "eggs] were broken",
        "but the purse was gone, [cut from the belt|left at home|fallen in the {river}]",
    ),
    turn=(
        "then {companion}, {his} {bond}, came through the crowd and [paid|laughed|put things right] with [a word|"
        "one look]",
        "so {name} [began to sing|stood on a box and called out|made a joke of it], and the people [stopped|came "
        "nearer]",
        "an old woman took {him} aside and said: “[Ask for half|Wait until noon|Buy nothing today].” So it was done",
    ),
    end=(
        "{name} came home with [more than {he} had wanted|an empty bag and a full heart|a clock that did not go]",
        "that evening there was [soup|cheese and bread][ and talk of {favourite}|], and {name} counted the coins "
        "[twice|again]",
        "ever since, {name} goes to market [early|with company|with the purse sewn in]",
    ),
)
MERRY_PLOTS = (FEAST, BET, LESSON, MARKET)
