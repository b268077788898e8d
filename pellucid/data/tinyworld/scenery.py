"""What stands between the facts of a story: weather, streets, small deeds. None of it is a fact of the world."""

from __future__ import annotations

SCENES = (
    "[in the morning|at noon|towards evening|at night|by the end of the day] [the wind|rain|fog|mist|frost|smoke] "
    "[lay over|came down on|hung over|crept along] the [roofs|fields|hill|market|lane|gardens]",
    "the [old|narrow|long|crooked|quiet|steep] [street|lane|bridge|path|stair] [smelled of|was full of] "
    "[wet leaves|fresh bread|hay|smoke|apples|rain|tar]",
    "somewhere a [door|gate|window|shutter] [banged|creaked|stood open|fell shut], and "
    "[a child cried|somebody laughed|nobody came|a voice called out]",
    "the [apples|plums|pears|nuts|beans] were [ripe|late|small|good|sour] that year, and "
    "[wine|bread|cheese|milk|firewood] was [dear|cheap|hard to get|better than usual]",
    "it was [a cold|a warm|a windy|a still|a bright|an endless] [morning|evening|night|Sunday|week], and "
    "[the roads were empty|the market was full|the wells were low|everyone was tired]",
    "first came the [rain|frost|wind|heat], then the [mud|fog|thaw|dust]",
    "the [sun|moon] [stood|hung] [high|low] [over|behind] the [mill|church|hill|orchard|gate]",
    "[old|young] people [sat|stood|talked] [before their doors|by the well|at the corner|under the trees|on the steps]",
    "in the [kitchen|yard|inn|market|church|mill] [a clock ticked|the fire was out|somebody was talking|it was warm|"
    "it smelled of soup|the talk went on]",
    "[the church clock|the clock in the hall|the old clock] struck [late|early|again], or perhaps [it was wrong|not]",
    "there was [a smell|a sound|a rumour|talk] of [rain|war|trouble|good times|the sea] in the air",
    "[leaves|dust|straw|sparks] blew [along the street|over the wall|under the door|past the window]",
)
DEEDS = (
    "{name} had [swept the step|mended the gate|washed the floor|locked the shed|cleared the path], "
    "[eaten a bowl of soup|cut some bread|peeled an apple|boiled an egg] and "
    "[gone out|sat down by the fire|put on a coat|gone to bed early]",
    "that [morning|evening|week|day] {name} [counted the coins in the jar|wrote a list|looked for the key|"
    "forgot the time|slept badly|sang to keep warm|had a cough]",
    "{name} [put a shawl round {his} shoulders|took a stick and a bag|lit the stove|opened the window] and "
    "[looked out|listened|waited|thought]",
    "{name} thought of [the rent|the winter|the war|{his} childhood|an old promise|nothing at all], as one does when "
    "[it rains|the nights are long|the work is done|nobody calls]",
    "to be honest, {name} was [tired|hungry|a little afraid|in no hurry|out of luck], and [it showed|hid it|said so]",
    "{name} liked to [rise early|sit in the dark|walk by the water|count the stars|talk to the wall], "
    "[whatever the weather|and nobody minded|as the neighbours knew]",
)
