"""Forms of common English verbs: the base form behind a third person or a past, and the forms of a base.

Used by the rules and by the swap of antonyms. A closed list, so that results do not depend on what is installed; a verb that
is not in it is not negated.
"""

from __future__ import annotations

from typing import NamedTuple


def words(text: str) -> frozenset[str]:
    """Return the words of a text that lists them."""
    return frozenset(text.split())


# Base, past, participle.
_IRREGULAR = """
arise arose arisen|bear bore borne|beat beat beaten|become became become|begin began begun|bend bent bent|bet bet bet
bind bound bound|bite bit bitten|bleed bled bled|blow blew blown|break broke broken|breed bred bred|bring brought brought
build built built|burst burst burst|buy bought bought|cast cast cast|catch caught caught|choose chose chosen
cling clung clung|come came come|cost cost cost|creep crept crept|cut cut cut|deal dealt dealt|dig dug dug|do did done
draw drew drawn|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed fed|feel felt felt
fight fought fought|find found found|flee fled fled|fly flew flown|forbid forbade forbidden|forget forgot forgotten
forgive forgave forgiven|freeze froze frozen|get got got|give gave given|go went gone|grind ground ground|grow grew grown
hang hung hung|have had had|hear heard heard|hide hid hidden|hit hit hit|hold held held|hurt hurt hurt|keep kept kept
kneel knelt knelt|know knew known|lay laid laid|lead led led|leave left left|lend lent lent|let let let|lie lay lain
light lit lit|lose lost lost|make made made|mean meant meant|meet met met|overcome overcame overcome
override overrode overridden|overwrite overwrote overwritten|pay paid paid|put put put|quit quit quit|read read read
rebuild rebuilt rebuilt|rewrite rewrote rewritten|ride rode ridden|ring rang rung|rise rose risen|run ran run|say said said
see saw seen|seek sought sought|sell sold sold|send sent sent|set set set|shake shook shaken|shine shone shone
shoot shot shot|show showed shown|shrink shrank shrunk|shut shut shut|sing sang sung|sink sank sunk|sit sat sat
sleep slept slept|slide slid slid|speak spoke spoken|spend spent spent|spin spun spun|split split split
spread spread spread|spring sprang sprung|stand stood stood|steal stole stolen|stick stuck stuck|sting stung stung
strike struck struck|strive strove striven|swear swore sworn|sweep swept swept|swim swam swum|swing swung swung
take took taken|teach taught taught|tear tore torn|tell told told|think thought thought|throw threw thrown
understand understood understood|undo undid undone|wake woke woken|wear wore worn|weave wove woven|weep wept wept
win won won|wind wound wound|withdraw withdrew withdrawn|write wrote written
"""
_REGULAR = """
abandon absorb accept accompany achieve acquire act adapt add adjust admire admit adopt advise affect agree aim alert align
allocate allow alter amuse analyze announce annoy answer appear append apply appoint appreciate approach approve argue arrange
arrest arrive ask assert assign assist assume attach attack attempt attend attract avoid award bake balance ban bark bathe
behave believe belong bless block boast boil book borrow bother bounce bow brush burn call camp cancel capture care carry
carve cause celebrate change charge chase chat check cheer chew claim clap clarify clean clear climb close collapse collect
combine comb comfort command comment communicate compare compete compile complain complete compose compress compute
concentrate concern conclude conduct configure confirm connect consider consist construct consume contact contain continue
contribute control convert convince cook copy correct count cover crash crawl create cross crowd cry cure damage dance dare
deactivate debug decide declare decline decode decorate decrease define delay delete deliver demand deny depend deploy derive
describe deserve design desire destroy detect determine develop differ disable disagree disappear discard discover discuss
display distribute dive divide donate doubt download drag dream dress drop dry earn edit educate elect embrace emit employ
enable encode encounter encourage end endure enforce engage enhance enjoy enlarge ensure enter entertain equal escape
establish estimate evaluate examine exceed exchange excite execute exercise exist expand expect experience explain explode
explore export express extend extract face fail fade fasten fetch file fill filter finish fire fit fix flash float flow focus
fold follow force format frighten function gain gather gaze generate grab grant greet grin grip groan guarantee guard
guess guide handle happen harm hate haunt heal heat help hesitate hike hope hop hug hunt hurry identify ignore illustrate
imagine implement imply import impress improve include increase indicate influence inform inherit initialize inject injure
insert insist inspect install instruct intend interest introduce invent invert invest invite invoke involve iterate jail jog
join joke judge juggle jump justify kick kill kiss knit knock label lack land last laugh launch lean learn lick lift like
limit link list listen live load lock log long look love lower maintain manage map march mark marry match matter measure melt
mention merge migrate miss mix modify monitor mount mourn move multiply murder nail name need nod normalize note notice
notify number obey object observe obtain occupy occur offend offer open operate oppose order organize own pack paint parse
park participate pass paste pause perform permit persuade pick pile place plan plant play point polish populate possess post
pour practice praise pray precede predict prefer prepare present preserve press pretend prevent print process produce
prohibit project promise promote propose protect protest prove provide publish pull pump punch punish purchase push
qualify question queue quote race rain raise reach react realize receive recognize recommend record recover reduce refer
reflect refresh refuse regard register regret reject relate relax release rely remain remember remind remove rename render
rent repair repeat replace reply report represent request require rescue reserve reset resolve respect respond rest restore
restrict result resume retain retire retrieve return reuse reveal reverse review reward risk roar rob roll rub ruin rule rush
sail satisfy save scan scare scatter scold scrape scratch scream search seem select separate serve settle shape share shave
shelter ship shock shop shout signal sign simplify skate ski skip slip slow smash smell smile smoke snatch sneeze snow solve
sort sound spark specify spell spill spoil spot spray squeeze stack stain stamp stare start state stay step stir stop store
strengthen stretch stroke study submit succeed suffer suggest suit supply support suppose surf surprise surround suspect
suspend switch talk tap taste tease tend terrify test thank tick tie touch tour trace trade train transfer transform
translate transport trap travel treat tremble trick trip trouble trust try tug turn twist type undress unite
unlock unpack update upgrade upload urge use validate value vanish vary verify view visit vote wait walk wander want warm
warn wash waste watch water wave weigh welcome whisper whistle wink wipe wish wonder work worry wrap wreck wrestle yawn
yell yield zip
"""
_DOUBLED = words(
    "admit ban chat clap compel control debug drag drop equip fit grab grin grip hop hug jog knit log map nod occur omit "
    "permit plan prefer refer regret rob rub scan ship shop skip slip spot step stir stop submit tap trap trip tug wrap "
    "zip"
)


class Form(NamedTuple):
    """Form of a verb.

    Attributes:
        base: The base form.
        tense: "present" (third person), "past" or "base".
    """

    base: str
    tense: str


def third_person(base: str) -> str:
    """Return the third person of a verb: goes, tries, passes, runs."""
    if base in ("have", "be"):
        return {"have": "has", "be": "is"}[base]
    if base.endswith("y") and base[-2] not in "aeiou":
        return f"{base[:-1]}ies"
    return f"{base}es" if base.endswith(("s", "sh", "ch", "x", "z", "o")) else f"{base}s"


def _regular_past(base: str) -> str:
    if base.endswith("e"):
        return f"{base}d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return f"{base[:-1]}ied"
    return f"{base}{base[-1]}ed" if base in _DOUBLED else f"{base}ed"


_THREE = [tuple(verb.split()) for verb in _IRREGULAR.replace("\n", "|").split("|") if verb]
_PAST = {base: past for base, past, _ in _THREE}
BASES = frozenset(_PAST) | frozenset(_REGULAR.split())
PARTICIPLES = frozenset(part for _, _, part in _THREE) | {"been", "gotten", "proven"}
_FORMS: dict[str, Form] = {}
for _base in sorted(BASES):
    _FORMS[_PAST.get(_base, _regular_past(_base))] = Form(_base, "past")
for _base in sorted(BASES):
    _FORMS[third_person(_base)] = Form(_base, "present")
_FORMS["lay"] = Form("lie", "past")
SAME_PAST = frozenset(base for base, past, _ in _THREE if past == base)  # "he put" is a past


def form_of(word: str) -> Form | None:
    """Return base and tense of a finite form, in lower case; None if it is none of a verb that is known.

    A base form is only "base" if no past and no third person is spelled like it.
    """
    if word == "lay":  # of "lie" or of "lay"
        return None
    found = _FORMS.get(word)
    if found is not None and found.base != word:
        return found
    return Form(word, "base") if word in BASES else None


def like(base: str, form: Form) -> str:
    """Return another verb in the same form."""
    if form.tense == "base":
        return base
    return third_person(base) if form.tense == "present" else _PAST.get(base, _regular_past(base))
