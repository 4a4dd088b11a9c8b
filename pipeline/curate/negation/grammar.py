"""Closed classes of English words, for the rules."""

from __future__ import annotations

from pipeline.curate.negation.verbs import words

DETERMINERS = words(
    "a an the this that these those my your his her its our their some any each every both all another other "
    "no one two three four five six seven eight nine ten several many most more"
)
PREPOSITIONS = words(
    "in on at by with of for from to into onto over under above below near behind beside between among through across "
    "along around against about during within inside outside up down off out away toward towards upon like past"
)
SINGULAR = words("he she it this everyone everybody everything someone somebody something")
PLURAL = words("i you we they these those")
OBJECTS = words("me him them us it itself himself herself themselves you her")
PEOPLE = words("people children men women police mice teeth feet cattle")
# A clause of its own begins here; what is behind it is not the main clause.
MARKERS = words(
    "who which whose whom that because if when while although though since as unless until where whether than after "
    "before so once what how why whenever wherever whoever"
)
JOINING = words("and or but then")
BE = words("am is are was were")
MODALS = words("can could will would shall should must")
HAVE = words("has have had")
BEFORE_NOT = words(
    "also still probably possibly certainly clearly obviously apparently presumably currently definitely surely now"
)
ADVERBS = BEFORE_NOT | words("always often usually sometimes frequently really never ever soon then once")
LIMITING = words("only just already merely almost nearly even")
ANY = {
    "some": "any",
    "something": "anything",
    "someone": "anyone",
    "somebody": "anybody",
    "somewhere": "anywhere",
}
SUBJECTS = {
    "all": "not all",
    "every": "not every",
    "each": "not every",
    "everyone": "not everyone",
    "everybody": "not everybody",
    "everything": "not everything",
    "many": "not many",
    "some": "no",
    "several": "no",
    "someone": "no one",
    "somebody": "nobody",
    "something": "nothing",
}
NO_SUBJECTS = words("at few both either any here let please less more only just even almost nearly")
NUMBERS = words(
    "two three four five six seven eight nine ten many much little too so very such enough more the these those both all my your his her its "
    "our their"
)
# Verbs without an object: "the man walked in the park" has a past, "a man dressed in black" a participle.
INTRANSITIVE = words(
    "agree appear arrive bark begin belong bow climb come complain cough crash crawl cry dance depend disappear dive exist "
    "fail fall fly gaze go grow happen hike hop hurry jog joke jump kneel last laugh lean lie listen live look march occur "
    "participate play pray race react rely remain respond rest return rise run rush sail sing sit skate ski sleep slip "
    "smile speak stand stare stay succeed surf swim talk travel tremble try vanish wait walk wander watch wave whisper "
    "wonder work worry wrestle yawn yell"
)
