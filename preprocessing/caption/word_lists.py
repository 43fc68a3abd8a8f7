"""Words by their role in a caption, for the noun-phrase rule of nouns.py. All lower case."""

from __future__ import annotations


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


SINGULAR = _words("a an one another this that each every")  # a noun that follows one has no plural -s
DETERMINERS = SINGULAR | _words(
    "the these those my your his her its our their two three four five six seven eight nine ten some several many any no"
)
# Words outside noun phrases: prepositions, conjunctions, pronouns, auxiliaries, and the verbs that captions use most
# often for a subject (stands, sits, worn).
CLOSED = _words(
    "of on in at by with without from to into onto over under above below behind beside besides between near next",
    "against along around across through throughout toward towards for during after before until since about among",
    "beneath underneath via upon within per and or but while as than because if when where whose which who whom what how",
    "why so not am is are was were be being been has have had does do did can could may might must shall should will",
    "would i me you he him she it we us they them mine yours ours there here up down out off inside outside front like",
    "very too also just only more most less all both half then now again please full",
    "today yesterday tomorrow later ago",
    "sits sit stands stand lies lie lays hangs hang holds hold wears wear looks look rests rest walks runs eats drinks",
    "plays flies rides swims sleeps jumps leans floats carries shows show contains contain works got get gets let seen",
    "shown taken made worn held built cut drawn bought sold kept left click read share buy guess choose learn subscribe",
)
# Words for the picture itself, amounts, places in it and times; and words of the web page around a picture.
NO_SUBJECT = _words(
    "photo photograph photography picture image pic snapshot screenshot thumbnail view shot close closeup close-up",
    "portrait painting drawing illustration sketch render rendering icon vector clipart cartoon wallpaper background",
    "silhouette selfie footage pattern texture concept",
    "foreground front back side top bottom left right middle center centre corner edge end tip part piece slice pair group",
    "bunch pile stack row herd flock collection lot lots number set variety kind type sort way size style design color",
    "colour detail scene day night time morning afternoon evening dawn dusk sunrise sunset winter summer autumn year",
    "month week january february march april june july august september october november",
    "december air life love fun art nothing something everything anything thing things other others one two",
    "sale offer price prices order orders shipping delivery discount arrival copyright rights terms conditions page",
    "tips recipe guide tutorial result results deal deals news birthday party event accident storm memory video game",
    "img null untitled author website online facebook instagram twitter cm mm ml kg px inch inches",
)
COLOURS = _words("black white grey gray red green blue yellow pink purple brown golden beige navy turquoise multicolor")
MATERIALS = _words("leather wood wooden metal steel plastic cotton wool silk ceramic porcelain velvet stainless")
ADJECTIVES = _words(
    "new old big small large little long short tall good great best happy beautiful cute free available open empty",
    "modern vintage antique fresh adorable high low hot cold isolated outdoor indoor matte",
)
# words in -ing, -ed, -s, -able and -ly that are no participle, verb, adjective or adverb
ING_NOUNS = _words(
    "ring earring king wing string spring swing sling thing building painting drawing ceiling railing pudding clothing",
    "wedding dumpling duckling lightning awning icing stocking crossing filling frosting lining opening plumbing",
)
ING_MODIFIERS = _words(  # "an old sewing machine", while other participles follow their subject: "a man riding horses"
    "dining living running hiking washing sewing cutting shopping swimming parking cooling watering fishing rocking",
    "sleeping baking building wedding knitting frying folding charging serving mixing measuring boxing camping vending waiting",
)
ED_NOUNS = _words("bed seed weed reed shed sled speed breed feed")
S_MODIFIERS = _words("sports glass christmas news species series kids mens womens ladies jeans dress grass cross swiss")
ABLE_NOUNS = _words("table timetable cable vegetable stable constable")
LY_NOUNS = _words("family butterfly dragonfly lily jelly belly fly assembly monopoly bully")
# Nouns that names end with: the Golden Gate Bridge is a bridge.
NAMED = _words(
    "bridge tower statue castle palace cathedral church temple mosque museum library station stadium airport building",
    "house hotel mountain lake river waterfall canyon beach island park garden street market square gate fountain tree",
    "flag bear dog cat horse terrier retriever shepherd car truck bus train boat ship bike camera phone",
)
# Function words of other languages that are not English words.
FOREIGN = _words(
    "der die das dem des ein eine einen einem einer und mit auf im am vom zu zum zur für ist nicht",
    "le la les un une du de et dans sur avec en à au aux est",
    "el una con por para y del al lo gli il di della delle nel nella che e",
    "het een op voor um uma o os na em da dos às och på med ett av z ze się jest",
)
