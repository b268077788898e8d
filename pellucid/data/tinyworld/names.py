"""Names and plain words of which a world is made."""

from __future__ import annotations


def _words(text: str, between: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(between))


WOMEN = _words(
    "Ada Agnes Alma Anna Beth Bella Cora Clara Dora Dinah Edith Ella Emma Esther Fanny Flora Grace Greta Hannah "
    "Hilda Ida Irma Jane Judith Kate Kitty Lena Lucy Mabel Mara Martha Mina Nancy Nell Nora Olga Olive Paula "
    "Polly Rosa Ruth Sarah Selma Susan Tilda Thea Vera Viola Wanda Zoe"
)

MEN = _words(
    "Adam Albert Alfred Arno Basil Bruno Caleb Carl Conrad David Dennis Edgar Edwin Ernest Felix Frank Fred "
    "George Gilbert Hans Harry Henry Hugo Ivan Jacob James Jonas Karl Kurt Leo Luke Martin Max Miles Nathan Ned "
    "Oscar Otto Paul Peter Ralph Robert Samuel Simon Stephen Theo Tom Victor Walter William"
)

EITHER = _words("Alex Ashley Casey Darcy Ellis Jamie Jody Kim Morgan Robin Rowan Sidney")

SURNAME_STARTS = _words(
    "Ash Bar Bel Bor Cor Cran Dar Dren El Em Far Fal Gil Grun Har Hob Is Jar Ker Kin Lan Lud Mor Mull Nel Nim Os "
    "Ott Pen Pod Quil Ran Rud Sor Stim Tam Trow Ur Var Vin Wes Wrox Yor Zel"
)

SURNAME_ENDS = _words("low den ley man rick sen vane well mond garth bold nock per ser")

PLACE_STARTS = _words(
    "Del Or Wen Mar Tash Bril Cal Dun Fen Gar Hol Kel Lor Mel Nor Pel Quar Ros Sal Tor Ul Ven Wil Yar Thorn Stan"
)

PLACE_ENDS = _words("by ford wick stead ham ton dale combe mere haven")

RIVERS = _words(
    "Wend Isk Tarn Leck Sill Mool Orrin Dray Nairn Ulla Vesk Brae Corve Eddle Fyne Garrow Hask Ilm Jory Kell Lune "
    "Medra Noss Pril Rill Swale Teign Ure Wharl Yeo"
)

PETS = _words(
    "Pepper Biscuit Clover Button Nettle Bramble Pebble Muffin Thimble Pickle Tansy Acorn Barley Cobweb Dandy "
    "Ember Feather Gravy Hazel Inky Juniper Kettle Lantern Mustard Noodle Oatcake Patch Quince Rocket Sorrel "
    "Tinder Umber Velvet Whistle Yarrow Zigzag Apricot Bonnet Crumpet Dumpling Fidget Goblin Hickory Jingle Ladle "
    "Marble Nutmeg Onyx Pudding Rascal Saffron Truffle Tumble Waffle Widget Bobbin Cricket Doodle Flicker Gadget "
    "Hopper Jigsaw Kipper Lupin Moss Nimbus Otter Pippin Rumble Shadow Toffee Turnip Wicket Bandit Chutney Domino "
    "Freckle Gherkin Hazard Jasper Mango Nibbles Parsnip Radish Scamper Tadpole Vixen Walnut Cinder Rusty Sooty "
    "Smudge Speckle Tuft"
)

PET_TITLES = ("", "Old ", "Little ", "Lady ", "Captain ", "Queen ", "Doctor ", "Young ")

TRADES = _words(
    "baker weaver cooper potter tailor smith mason cobbler fiddler gardener printer saddler shepherd thatcher "
    "painter brewer dyer tanner carter glazier nurse clerk sailor carpenter fisher bookbinder clockmaker midwife "
    "basketmaker sexton"
)

ANIMALS = _words(
    "goat donkey goose parrot tortoise cat dog pony rabbit owl hedgehog pig crow duck mule hare ferret sheep hen ape"
)

COLOURS = _words("red blue green yellow white black purple orange brown grey pink silver golden")

FAVOURITES = _words(
    "plum cake, cherry pie, chess, honey, dancing, ginger tea, onion soup, rice pudding, gingerbread, skating, rowing, "
    "singing, apple cider, blackberry jam, mint tea, sunshine, fishing, toast, soft cheese, pear tart, swimming, "
    "moonlight, lemon cake, cold milk, whistling, pea soup, almond bread, hot cocoa, knitting, carving",
    ", ",
)

KNOWN_FOR = _words(
    "bells lace salt glass umbrellas rope candles bricks baskets linen tiles mirrors boats drums silk herbs ink hats "
    "gloves soap barrels combs needles lamps"
)

PRIZES = _words(
    "silver cup, gold medal, brass clock, copper kettle, oak chair, velvet cloak, painted plate, glass bowl, "
    "leather saddle, ivory comb",
    ", ",
)

BUILDINGS = _words(
    "library, theatre, hospital, railway station, museum, swimming pool, concert hall, market hall",
    ", ",
)
