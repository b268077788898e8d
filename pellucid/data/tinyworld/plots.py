"""What happens in the stories: plots of a few steps, each step in several ways that fit together.

Slots beside those of the hero's facts: {companion} with {bond} ("best friend") and {o_he} {o_was}, {o_him}, {o_his},
{o_name}; {piece} and {tool} of the hero's trade; {river} and {known} of the town. No filler names a trade, an animal,
a colour or anything else that could be taken for a fact.
"""

from __future__ import annotations

from typing import NamedTuple

# Of each trade, a piece of work and a tool.
WORK = {
    "baker": ("a tray of loaves", "oven"), "weaver": ("a long shawl", "loom"), "cooper": ("a cask", "hammer"),
    "potter": ("a row of jugs", "wheel"), "tailor": ("a coat", "thimble"), "smith": ("a gate", "bellows"),
    "mason": ("a stone step", "chisel"), "cobbler": ("a pair of boots", "awl"), "fiddler": ("a new tune", "bow"),
    "gardener": ("a bed of roses", "spade"), "printer": ("a stack of posters", "press"),
    "saddler": ("a harness", "knife"), "shepherd": ("a pen for the lambs", "crook"), "thatcher": ("a roof", "ladder"),
    "painter": ("a shop sign", "brush"), "brewer": ("a brew for a wedding", "vat"), "dyer": ("a bolt of cloth", "vat"),
    "tanner": ("a soft hide", "scraper"), "carter": ("a load of planks", "wagon"), "glazier": ("a window", "cutter"),
    "nurse": ("a row of clean beds", "bag"), "clerk": ("a long report", "pen"), "sailor": ("a sail", "compass"),
    "carpenter": ("a table", "saw"), "fisher": ("a net", "hook"), "bookbinder": ("a thick book", "press"),
    "clockmaker": ("a watch", "file"), "midwife": ("a bundle of clean cloths", "bag"),
    "basketmaker": ("a cradle", "knife"), "sexton": ("a tidy churchyard", "spade"),
}  # fmt: skip

OPENINGS = (
    "[once|long ago|not so long ago|in the old days|many winters ago], in {home}, there lived {a trade} called {name}",
    "this happened in {home}[, on the banks of the {river}|, the town of {known}|], to {name}, who "
    "[lived|was at home] there",
    "[everybody|every child|everyone] in {home} knew their neighbour {name}",
    "{name} was {a trade} in {home}, and that is where the story begins",
    "there was once {a trade} in {home} whose name was {name}",
    "in {home}, where the {river} flows, {name} had a small house",
    "they tell a story in {home} about {name}, [who lived there|one of their own|a neighbour of theirs]",
    "if you had come to {home} in those days, you would have [met {name}|found {name} at home there][, the {trade}|]",
    "my [grandfather|aunt|mother] used to tell me about {name}, who lived in {home}[ and was {a trade}|]",
    "[one|a] hard winter in {home} is still remembered because of {name}, who lived there",
    "{name} lived in {home} with {his} {animal}[, {pet}|]",
    "here is the story of {name}[, {a trade}|], who lived in {home}",
    "whoever came to {home} by the [north|south|east|west] road passed the house of {name}[, the {trade}|]",
)
ENDINGS = (
    "[people in {home} still tell it|in {home} they laugh about it to this day|they still talk of it in {home}]",
    "and that is [the whole story|all that there is to tell|how it ended|how it was]",
    "[since then|from that day on] {name} [slept better|worried less|always left a light in the window]",
    "[and if it is not true, it is well told|whoever does not believe it may ask in {home}]",
    "{name} [never forgot it|told it to everyone who would listen|said only that all is well that ends well]",
    "[so|in this way] it came right in the end",
    "",
    "",
)


class Plot(NamedTuple):
    """Steps that follow one another: something wanted, something in the way, a turn, an end."""

    wish: tuple[str, ...]
    trouble: tuple[str, ...]
    turn: tuple[str, ...]
    end: tuple[str, ...]


LOST = Plot(
    wish=(
        "one [morning|evening|day in spring|cold day] {name's} {animal}[, {pet},| {pet}] was gone, and the gate "
        "stood open",
        "{name} woke [early|before the sun], and {his} {animal}[ {pet}|] was nowhere to be seen",
        "in the night [a storm broke the fence|the wind threw the gate open], and {name's} {animal}[ {pet}|] ran off",
        "one day [nobody came|nothing stirred] when {name} called {pet}, {his} {animal}",
        "all {name} wanted was to have {his} {animal}[ {pet}|] back, which had [run away|slipped out] in the night",
    ),
    trouble=(
        "{he} looked [behind the church|under the bridge|along the {river}], in [every yard|the mill|the barn], "
        "but found [nothing|only tracks in the mud|not one hair]",
        "{he} called until {his} voice was gone, but only the wind answered",
        "[it rained|it was foggy|night fell] in {home}, and none of the neighbours had seen anything",
        "{he} [searched|walked] all day, and [the tracks ended at the {river}|came home with wet feet and empty hands]",
    ),
    turn=(
        "then {his} {bond} {companion} [came by with a light|knocked at the door] and [searched|looked] with {him}",
        "at last {companion}, {his} {bond}, [heard a noise in the barn|saw something move behind the hedge]",
        "{companion}, {his} {bond}, had an idea: they put out a bowl of [oats|warm water|crusts] and waited",
        "then a child came running: something was [asleep|eating] in the hay behind the inn",
        "only {his} {bond}, {companion}, [did not give up|went on looking when it was dark]",
    ),
    end=(
        "and there it was, [fast asleep|eating apples|quite content], and {name} [laughed|wept for joy|was not "
        "even angry]",
        "that evening [{pet}|the {animal}] got [a double supper|the best place by the fire]",
        "{name} carried [{pet}|the {animal}] home in {his} arms[, and there was {favourite} for {him} too|]",
        "[{pet}|the {animal}] came [walking|trotting] out of the dark [as if nothing had happened|and yawned]",
    ),
)
WORK_TO_DO = Plot(
    wish=(
        "the fair was near, and the {trade} had promised {piece}",
        "a rich man from the hills had ordered {piece}, and {name}, the {trade}, had said yes",
        "{name}, {a trade} who kept {his} word, wanted to have {piece} ready before [Sunday|the feast|the first frost]",
        "it was to be the best work that any {trade} had ever done: {piece}, no more and no less",
    ),
    trouble=(
        "but the {tool} [broke|was gone|cracked] on the [first|last] day",
        "but {he} fell ill, and for a week the {tool} lay on the bench",
        "but the days were short, and [the work went slowly|nothing would go right]",
        "{he} began again and again, and every time it was [crooked|wrong|not good enough]",
        "but {his} {animal}[ {pet}|] had hidden the {tool}, and without it nothing could be done",
    ),
    turn=(
        "{companion}, {his} {bond}, [lent {him} another {tool}|came with a new {tool}] and stayed to help",
        "then {he} remembered what {his} {bond} {companion} had once said: [go slowly|sleep first, then "
        "work|begin again]",
        "in the night {companion}, {his} {bond}, did half of it without a word",
        "{he} told {companion}, {his} {bond}, who [only smiled|nodded] and took off {o_his} coat",
        "{his} {animal}[ {pet}|] found the {tool} at last, [under the bed|behind the stove|in the straw]",
    ),
    end=(
        "on the day [all|everything] was ready, and [nobody saw what it had cost|half of {home} came to look]",
        "the work was paid for [well|twice over], and the {trade} [slept for a whole day|sent everyone home]",
        "when it was done, {name} put the {tool} away and [sat in the sun|slept until noon|thought of {favourite}]",
        "it was [not perfect|a little late], but it was [good|done], and {name} was proud of it",
    ),
)
JOURNEY = Plot(
    wish=(
        "{name} had not seen {birthplace}, where {he} ~be born, for many years, and now {he} wanted to go there",
        "one night {name} dreamed of {birthplace}, {his} birthplace, and at dawn {he} packed [a small bag|bread "
        "and cheese]",
        "a letter came from {birthplace}, the town where {he} ~be born, and {name} [set out at once|left {home} "
        "on foot]",
        "{name}, a child of {birthplace}, wished to see the house where {he} ~be born once more",
    ),
    trouble=(
        "but [the {river} had risen|the bridge was down|the road was under water], and there was no way across",
        "half way there [a wheel broke|{his} shoes fell apart|a fog came down], and [night fell|it began to rain]",
        "but {his} {animal}[ {pet}|] would not be left behind and lay down in the road",
        "but nobody would [lend {him} a horse|take {him} along], and the road was long",
    ),
    turn=(
        "an old woman with a wagon [stopped|came by] and took {him} along",
        "{companion}, {his} {bond}, who had [followed|come after {him}], [knew another way|brought a horse and cart]",
        "then {he} met {companion}, {his} {bond}, on the road, and together they [found a way|walked on]",
        "so {he} waited [a night|two days] at an inn, and [the sun came out|the water fell] at last",
    ),
    end=(
        "when {name} stood in {birthplace} at last, the [old well was still there|church was smaller than before]",
        "in {birthplace} [nobody knew {him}|an old neighbour knew {him} at once], and the bread tasted [as "
        "before|of home]",
        "{name} looked at {birthplace} for an hour, [was content|laughed], and [went|walked] home to {home}",
    ),
)
GIFT = Plot(
    wish=(
        "{name} wanted to give {his} {bond} {companion} something for [the feast|{o_his} birthday|the new year]",
        "{companion}, {his} {bond}, had a birthday soon, and {name} [wanted|wished] to give {o_him} a surprise",
        "{name} owed {companion}, {his} {bond}, a favour, and a favour must be paid back",
    ),
    trouble=(
        "but {his} purse was empty[, as always|]",
        "but it is hard to give somebody who [wants nothing|has everything already]",
        "{he} [asked in every shop|thought for a week] and came home with nothing",
        "but {o_he} {o_was} hard to please[, as all {home} knew|]",
    ),
    turn=(
        "then {he} remembered that {o_name} loved {o_favourite} [above all|more than anything]",
        "a neighbour told {him} that nothing pleased {o_name} more than {o_favourite}",
        "then {his} {animal}[ {pet}|] dug up an old box in the garden, and there was [a ring|a small clock] in it",
        "{name} thought of {o_pet}, {o_name}'s {o_animal}, and made a [bed|blanket|warm coat] for it",
        "so, being {a trade}, {he} sat down and made {piece}",
    ),
    end=(
        "{o_name} [said nothing at all, and smiled|laughed for joy|wept a little], and [that was enough|all was well]",
        "never had {o_name} been so [pleased|surprised], and the two [sat together|talked] until late",
        "“[So you knew|You should not have done that]!” said {o_name}, and was as happy as a child",
    ),
)
QUARREL = Plot(
    wish=(
        "{name} and {his} {bond} {companion} had quarrelled about [a ladder|an old debt|nothing at all|the price "
        "of hay]",
        "for [a week|three days|half a winter] {name} did not speak to {companion}, {his} {bond}",
        "{name} wanted to make peace with {companion}, {his} {bond}, after [a quarrel|hard words on both sides]",
    ),
    trouble=(
        "each waited for the other to [come|begin|say the first word], and both were too proud",
        "whenever they met in the street, {o_name} looked at the sky and {name} at the ground",
        "{he} went to {o_name}'s door [twice|more than once], and each time {he} turned back",
    ),
    turn=(
        "then {his} {animal}[ {pet}|] walked across the street and sat down before {o_name}'s door",
        "then [a storm took the roof off the barn|the {river} came over its banks], and nobody had time to be angry",
        "then {name} found [a loaf of bread|a jug of milk|a short letter] on the step, and knew from whom it came",
        "then {o_pet}, {o_name}'s {o_animal}, ran [away|into the road], and {name} caught it just in time",
    ),
    end=(
        "they [laughed|shook hands|drank a cup of tea together], and nobody in {home} spoke of it again",
        "“I was [wrong|a fool],” said one. “So was I,” said the other, and [that was that|they went in]",
        "that evening the two sat on one bench again[ and talked of {favourite}|]",
    ),
)
FLOOD = Plot(
    wish=(
        "it had rained for [a week|days and days], and the {river} rose; {name} wanted only to keep the house dry",
        "one night the {river} came over its banks, and {name} [woke to wet feet|heard the water at the door]",
        "in {home} they feared the {river}, and that spring {name} [watched it day and night|wanted to build a wall]",
    ),
    trouble=(
        "but the water [came up the stairs|rose faster than {he} could carry], and [the boat was gone|it was dark]",
        "{he} had [carried everything upstairs|shut every door], but {pet}, {his} {animal}, was still outside",
        "nobody would [help|listen], for everyone had a house of their own to save",
    ),
    turn=(
        "then {companion}, {his} {bond}, came [wading over the fence|through the water] with a light and a long pole",
        "{his} {animal} {pet} [woke the whole street|found the dry way up the hill], and they all followed",
        "{name} [took down the barn door and made a raft of it|climbed on the roof and called], and {companion}, "
        "{his} {bond}, [heard|pulled {him} in]",
        "towards morning the rain stopped, and the {river} went down as quietly as it had come",
    ),
    end=(
        "when the sun came out, all {home} [hung its clothes on the hedges|swept mud for a week]",
        "nothing was lost but a [chair|door|pair of boots], and {name} [laughed about it|built a better wall]",
        "they sat on the hill, wet and [happy|hungry], and looked down on {home}",
    ),
)
LETTER = Plot(
    wish=(
        "one morning a letter without a name lay before {name's} door: come to the bridge at noon, it said",
        "somebody had written a few words on {name's} door: be at the old mill tonight",
        "{name} found a note in {his} coat, and wanted to know who had put it there",
    ),
    trouble=(
        "{he} asked the neighbours, who [shook their heads|laughed|knew nothing], and {he} did not know the hand",
        "all day {he} could not [work|eat|think of anything else], and even {favourite} did not help",
        "{his} {animal}[ {pet}|] had eaten half of it, so that the rest made no sense",
    ),
    turn=(
        "when {he} came there, {companion}, {his} {bond}, stood waiting[ with a lamp| under the trees|]",
        "in the end it was {companion}, {his} {bond}, who had written it",
        "{he} went all the same, and who stood there but {companion}, {his} {bond}",
    ),
    end=(
        "it was {name's} birthday, and {he} had forgotten it; there was a fire[ and {favourite}|], and half of "
        "{home} had come",
        "it was only [a joke|a game], but {name} [laughed longest|kept the note for years]",
        "“I wanted to see whether you would come,” said {o_name}, and they walked home [together|slowly]",
    ),
)
ILL = Plot(
    wish=(
        "one day {name's} {animal}[ {pet}|] would not eat, and {name} wanted [nothing more than|only] to see it "
        "well again",
        "{pet}, {name's} {animal}, [lay in the straw|hung its head] and did not look up when {he} came",
        "all winter {name's} {animal}[ {pet}|] had been well, but in spring it [fell ill|grew thin]",
    ),
    trouble=(
        "{he} tried [warm milk|fresh hay|sweet apples], and {he} tried kind words, but nothing helped",
        "no one in {home} knew what [to do|was wrong], and some shook their heads",
        "{he} sat up three nights [by its side|with a lamp], and had no thought even for {favourite}",
    ),
    turn=(
        "then {companion}, {his} {bond}, [looked into its mouth|felt its side] and found a [thorn|bad tooth]",
        "{companion}, {his} {bond}, [mixed a bitter drink|knew an old rhyme] that had helped before",
        "then an old man said that it was not ill at all, but [lonely|bored|in love]",
    ),
    end=(
        "by [morning|Sunday] it was on its feet again and [ate for two|broke a fence]",
        "[{pet}|the {animal}] was soon [well|its old self], and {name} [slept at last|could work again]",
    ),
)
STRANGER = Plot(
    wish=(
        "one evening a stranger stood at {name's} gate and asked for [work|a bed for the night]",
        "a stranger came to {home} who had heard of its {known}, and {name} wanted to be a good host",
        "{name}, {a trade} with no time to lose, was stopped in the street by a stranger",
    ),
    trouble=(
        "[the house was full|there was little bread], and {his} {animal}[ {pet}|] did not like strangers",
        "but the stranger spoke [so softly|in such a strange way] that {name} understood every third word",
        "the neighbours [shut their doors|whispered], and {name} did not know what to do",
    ),
    turn=(
        "then the stranger [took out a flute|began to tell of far lands|mended the broken chair], and {name} "
        "[smiled|listened]",
        "{companion}, {his} {bond}, came in, and [the two knew each other from the war|poured out tea for all three]",
        "but {his} {animal}[ {pet}|] laid its head on the stranger's knee, and that settled it",
    ),
    end=(
        "in the morning the stranger was gone, and [a coin|a flower] lay on the table",
        "the guest stayed [a week|until spring], and {name} [learned a good deal|was sorry to be alone again]",
        "that night they sat by the fire and spoke of {favourite}, which {name} loved [best|above all]",
    ),
)
PLOTS = (LOST, WORK_TO_DO, JOURNEY, GIFT, QUARREL, FLOOD, LETTER, ILL, STRANGER)
