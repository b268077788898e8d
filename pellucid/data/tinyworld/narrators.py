"""Who tells: the narrators of the entries, each with openings, turns of speech, asides and an end of their own."""

from __future__ import annotations

from pellucid.data.tinyworld.sentences import FRAMES, PLAIN_FRAMES, Style

GAZETTEER = Style(
    heading=("{name}.", "{name}", "On {name}.", "Entry: {name}."),
    reports=(
        "according to the [register|town book|records], {c}",
        "it is [recorded|on record|written] that {c}",
        "the [records|books] [say|show] that {c}",
    ),
    fillers=("[more|little else|nothing more] is [recorded|noted] under this [heading|name]", "see also the town book"),
    naming=(0.5, 0.1),
    filler_rate=0.04,
)
NEIGHBOUR = Style(
    openers=(
        "[oh|well|ah|now], [do sit down|come in|have a chair][|, I have just made tea]",
        "you [ask|want to hear|wish to know] about {name}, I [see|hear]",
        "[let me tell you|you shall hear|I will tell you] about {name}",
        "well, {name}, [there is a story|now where shall I begin|I could talk all day]",
        "",
    ),
    reports=(
        "they do say that {c}",
        "{c}, [believe it or not|mark my words|as I always say|as the whole street knows|if you please]",
        "everyone [here|in our street] knows that {c}",
        "[you know|you see|mind you], {c}",
        "my [sister|cousin|aunt|mother] tells me that {c}",
        "I know well that {c}",
    ),
    fillers=(
        "I [always|often|never quite] [liked|trusted|understood|admired] [such people|that kind|folk like that], "
        "[and why not|and I say so|whatever others think]",
        "[my knee|my back|our roof|that clock|the stove] [is bad again|wants mending|is no better], [but who asks|"
        "but never mind|since you look]",
        "[but I am not one to talk|not that I ask such things|I say no more|so there you are]",
        "[dear me|goodness], how the time [goes|flies]",
        "I [like|respect] {him} for it",
        "have [another cup|some more tea|a piece of bread]",
        "I told [my sister|the others] so at once",
        "people will talk, [you know|of course]",
    ),
    closers=("[but you did not hear it from me|and that is all I will say|now you know as much as I do]", "", ""),
    report_rate=0.35,
    filler_rate=0.15,
    naming=(0.45, 0.25),
)
SCHOOLCHILD = Style(
    openers=(
        "my [essay|homework|page] is about {name}",
        "I [want|am going|would like] to write about {name}",
        "at school they told us to write about [somebody|something] we [know|like], so I chose {name}",
        "this is [what I know|all I found out] about {name}",
    ),
    reports=(
        "I [know|have learned|found out] that {c}",
        "my [mother|father|aunt|brother] [says|told me] that {c}",
        "[also|and|then] {c}",
        "another [thing|fact] is that {c}",
    ),
    fillers=(
        "I [drew a picture|wrote this|asked my mother|practised] [twice|on Sunday|all by myself|with a cold|after "
        "school]",
        "I [like|love] that",
        "I think [that is nice|this is funny|so too]",
        "[I did not know that before|my brother did not believe it|we laughed about it]",
        "when I am big I want [to be like that|the same]",
    ),
    closers=("the end", "that is [all|everything] I know", "I hope you liked my [essay|page]", ""),
    frames=(
        *PLAIN_FRAMES,
        "{s} {V1}",
        "{s} {V1}, and {he} {H1}",
        "{W1}, and {he} {H1}[| too]",
        "as for {name}, {he} {H1}",
    ),
    report_rate=0.35,
    filler_rate=0.12,
    naming=(0.45, 0.25),
)
LETTER = Style(
    openers=(
        "Dear [cousin|aunt|friend|sister|uncle|mother], you asked me about {name}",
        "My dear [cousin|friend|sister], I promised to write about {name}",
        "Dear [friend|uncle|all], [at last I have met|yesterday I heard more of|I must tell you of] {name}",
    ),
    reports=(
        "I [hear|am told|understand] that {c}",
        "[as you may know|as I wrote before|you will be glad to hear], {c}",
        "you will hardly believe it, but {c}",
        "it [seems|turns out] that {c}",
    ),
    fillers=(
        "[the garden is|my cough is|the roof is|my sister is] [well|better|no worse|much as before], and the [rain|"
        "wind|frost|heat] [has stopped|goes on|keeps us in]",
        "the [weather|air] is [fine|cold|mild] here",
        "I [hope|trust] that you are [well|all well|warm and dry]",
        "[the children send their love|do write soon|I wish you were here]",
        "I was [glad|pleased|surprised] to learn it",
    ),
    closers=(
        "[with love|yours, as ever|your old friend|with all good wishes]",
        "write [soon|back soon], [and keep well|please]",
        "more in my next letter",
    ),
    report_rate=0.3,
    filler_rate=0.11,
)
DIARY = Style(
    openers=(
        "[a long day|rain until noon|a hot road], and then [good company|a warm inn|news]: I heard of {name}",
        "today I [came to know of|heard much about|wrote down what they told me of] {name}",
        "[Monday|Tuesday|Friday|Sunday]. [Walked|Rode|Rested] all morning. In the evening they spoke of {name}",
        "",
    ),
    reports=(
        "[my host|the people at the inn|an old man|a woman at the well] told me that {c}",
        "I [noted|wrote down|learned] that {c}",
        "{c}, [or so I was told|as they told me|they said]",
    ),
    fillers=(
        "[bread|soup|cheese|eggs|beans] and [cold tea|weak beer|warm milk|water] for [supper|breakfast|dinner]; [a "
        "hard|a good|a short|a noisy] [bed|night|road]",
        "[crossed|climbed|passed] a [bridge|hill|wood|ford|village] [before noon|in the rain|with sore feet|in a "
        "hurry]",
        "[my feet hurt|my boots were wet|the soup was good|the bed was hard]",
        "I [slept|ate] well",
        "[tomorrow|in the morning] I [shall walk|go] on",
        "I was sorry to leave",
    ),
    closers=("[so to bed|then I slept|the candle is nearly out]", "", ""),
    past=True,
    report_rate=0.3,
    filler_rate=0.12,
)
BALLAD = Style(
    openers=(
        "[come gather, good people|now listen, my dears|sit closer, my friends], and hear about {name},",
        "[I sing|a song I sing|my song is] of {name},",
    ),
    reports=("[oh|ay|hey], {c},", "{c}, [hey ho|oh ho|so they sing],", "and all the world knows that {c},"),
    fillers=(
        "[the wind|the rain|the moon|the mist] [on|over|behind] the [hill|mill|roof|sea|wall] and [the stars|the "
        "frost|a light] [in|on|above] the [sky|lane|well|grass|trees],",
        "[the wind in the trees and the rain on the hill|the moon on the hill and the stars in the sky],",
        "[sing high, sing low|turn round, turn round|tap your feet and clap your hands],",
        "[and so the song goes on|and the night is long],",
    ),
    closers=("[and so ends my song|and now the song is done|sing it again when I am gone].",),
    frames=("{s} {V1},", "{W1},", "{s} {V1} and {V2},", "{P1}, {s} {V1},", "[and|oh,] {W1},"),
    join="\n",
    report_rate=0.3,
    filler_rate=0.18,
    past=True,
    naming=(0.45, 0.25),
    compare_rate=0.05,
)
NEWSPAPER = Style(
    heading=("News of {name}.", "Who is who: {name}.", "People and places: {name}.", "{name}: a portrait."),
    openers=(
        "[many readers have|a reader from the hills has] asked us about {name}",
        "this week our paper [turns to|writes about] {name}",
        "",
    ),
    reports=(
        "this paper has learned that {c}",
        "our [reporter|writer] was told that {c}",
        "{c}, [sources say|we are told|as our readers may remember]",
        "it can now be said that {c}",
    ),
    fillers=(
        "[the price of hay|the new bridge|the weather|the harvest|the mail] [is|remains] [a matter for another day|"
        "the talk of the week|as before]",
        "[more on page two|our paper will report again|letters to the paper are welcome]",
        "[no one could be found who says otherwise|the news spread quickly]",
    ),
    report_rate=0.3,
    filler_rate=0.05,
    naming=(0.5, 0.05),
)
SPEECH = Style(
    openers=(
        "[friends|dear guests|neighbours], [raise your cups|be quiet a moment|lend me your ears]: this is about {name}",
        "it is my [duty|pleasure|task] tonight to say a few words about {name}",
    ),
    reports=(
        "[I need not tell you|you all know|we have not forgotten|let nobody forget] that {c}",
        "it is true, is it not, that {c}",
        "let me say [at once|plainly|with joy] that {c}",
    ),
    fillers=(
        "[the soup|the night|my throat] is [getting cold|growing short|dry], so I [go on|shall hurry]",
        "[do not laugh|hear, hear|thank you|you may smile]",
        "[I shall be brief|I am nearly done|have patience with me]",
    ),
    closers=("[to {name}|long life to {name}|let us drink to {name}]", "I thank you"),
    report_rate=0.35,
    filler_rate=0.12,
    naming=(0.5, 0.2),
)
GRANDMOTHER = Style(
    openers=(
        "[hush now|close your eyes|lie still, little one], and I will tell you about {name}",
        "one more [story|tale] before you sleep: it is about {name}",
        "I never told you about {name}",
    ),
    reports=(
        "[they say|people say|in my day they said] that {c}",
        "and, [my dear|little one|child], {c}",
        "you must know that {c}",
        "{c}, [as sure as the moon is round|so I was told when I was small]",
    ),
    fillers=(
        "[when I was small|in those days|before the war] [the winters were longer|bread was dear|we walked to "
        "school], [but we were happy|and nobody minded|you may believe me]",
        "[pull up your blanket|no, do not get up|listen to the rain]",
        "[yes, it is true|you may well smile|I remember it well]",
    ),
    closers=("[now sleep|and now good night|the rest I tell you tomorrow]",),
    report_rate=0.35,
    filler_rate=0.13,
    naming=(0.45, 0.25),
)
GUIDE = Style(
    openers=(
        "[next on our walk|the next name on our list]: {name}",
        "[visitors|strangers|travellers] often ask about {name}",
        "a short guide to {name}",
    ),
    reports=(
        "please note that {c}",
        "[few visitors know|it is worth knowing|one should remember] that {c}",
        "our guests are always told that {c}",
    ),
    fillers=(
        "on your [left|right] [a wall|an old well|a stair|a gate|the bridge], [much repaired|older than it looks|"
        "not to be climbed]",
        "[mind the step|follow me, please|keep together, please]",
        "[the tour goes on|we now cross the road]",
    ),
    report_rate=0.3,
    filler_rate=0.07,
    naming=(0.45, 0.1),
)
LECTURE = Style(
    openers=(
        "[consider|take|let us consider] {name}",
        "of {name} [several things|a few things|some things] are known",
        "here is what we know about {name}",
    ),
    reports=(
        "first of all, {c}",
        "[it follows from the papers|we may be sure|there is no doubt] that {c}",
        "in other words, {c}",
        "[moreover|besides|in addition], {c}",
    ),
    fillers=(
        "the [point|matter|question] is [small|old|plain] but [useful|not without interest|often forgotten]",
        "[this is important|so much for that|the point is clear]",
    ),
    report_rate=0.4,
    filler_rate=0.06,
    frames=FRAMES,
    naming=(0.5, 0),
)
NARRATORS = (
    GAZETTEER, GAZETTEER, NEIGHBOUR, SCHOOLCHILD, LETTER, DIARY, BALLAD, NEWSPAPER, SPEECH, GRANDMOTHER, GUIDE, LECTURE,
)  # fmt: skip
