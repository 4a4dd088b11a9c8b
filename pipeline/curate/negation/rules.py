"""Negates English sentences by rules: auxiliaries, verbs with do, quantifiers, imperatives.

There is no parser. The finite verb of the main clause is found by closed lists of words and verbs, and where it is not
certain the sentence has no negation: fewer triplets, and right ones. The rules are for sentences of one main clause, such as
captions and lines of documentation.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.curate.negation.grammar import (
    ADVERBS,
    ANY,
    BE,
    BEFORE_NOT,
    DETERMINERS,
    HAVE,
    INTRANSITIVE,
    JOINING,
    LIMITING,
    MARKERS,
    MODALS,
    NO_SUBJECTS,
    NUMBERS,
    OBJECTS,
    PEOPLE,
    PLURAL,
    PREPOSITIONS,
    SINGULAR,
    SUBJECTS,
)
from pipeline.curate.negation.verbs import BASES, PARTICIPLES, SAME_PAST, Form, form_of
from pipeline.curate.negation.words import Word, words_of

_LONGEST = 40  # words; the finite verb of a longer sentence is hard to tell
_SENTENCES = re.compile(r"[.!?;:][\"'\u201d)\]]*\s+\S")
_QUOTED = re.compile('["`\u201c\u201d]')


class Negated(NamedTuple):
    """Negated sentence.

    Attributes:
        rule: "auxiliary", "verb", "quantifier", "there" or "imperative".
    """

    text: str
    rule: str


class _Verb(NamedTuple):
    """Finite verb of the main clause.

    Attributes:
        at: Index of its word.
        kind: "auxiliary", "short" (it's), "verb" or "imperative".
        form: Its form, unless it is an auxiliary.
    """

    at: int
    kind: str
    form: Form | None = None


def negate(text: str) -> Negated | str:
    """Return a sentence that denies another, or why there is none.

    Args:
        text: An English sentence that has no negation.
    """
    if (reason := unfit(text)) is not None:
        return reason
    sentence = _Sentence(text, words_of(text))
    verb = sentence.verb()
    negative = None if verb is None else sentence.negated(verb)
    return negative or "no rule fits"


def unfit(text: str) -> str | None:
    """Return why a text is no single statement that can be negated; None if it may be one."""
    stripped = text.strip()
    if stripped.endswith("?"):
        return "a question"
    if _SENTENCES.search(stripped):
        return "more than one sentence"
    if _QUOTED.search(stripped):
        return "a quotation"
    return f"longer than {_LONGEST} words" if len(words_of(text)) > _LONGEST else None


class _Sentence:
    """Sentence, and where its main clause ends."""

    def __init__(self, text: str, found: list[Word]) -> None:
        self.text, self.words = text, found
        self.low = [word.low for word in found]
        markers = (at for at, low in enumerate(self.low) if low in MARKERS)
        self.limit = next((at for at in markers if at or self.low[0] != "that"), len(found))

    def verb(self) -> _Verb | None:
        """Return the finite verb of the main clause; None if it is not certain which one it is."""
        low = self.low
        if not self.limit or low[0] in NO_SUBJECTS or "already" in low:
            return None
        auxiliary = next((at for at in range(self.limit) if self._is_auxiliary(at)), None)
        if auxiliary is not None:
            clause = any(self._after_pronoun(at, anywhere=True) for at in range(1, auxiliary))
            is_last = self._ends_at(auxiliary)
            if auxiliary == 0 and "'" not in low[0]:
                return None
            return None if clause or is_last else _Verb(auxiliary, "short" if "'" in low[auxiliary] else "auxiliary")
        first = form_of(low[0])
        if first is not None and low[0] != "like" and self._has_object(0):
            return None if first.tense == "past" or self._is_joined(0, first) else _Verb(0, "imperative", first)
        for at in range(1, self.limit):
            form = self._after_pronoun(at) or self._after_noun(at)
            if form is not None:
                return None if self._is_joined(at, form) else _Verb(at, "verb", form)
        return None

    def negated(self, verb: _Verb) -> Negated | None:
        """Return the sentence with its verb or its subject negated."""
        low = self.low
        first = low[0].partition("'")[0]
        if first == "there" and verb.at < 2:
            return self._without(verb)
        if first in SUBJECTS and verb.kind != "imperative" and "'" not in low[0]:
            return self._with_subject(verb)
        if verb.kind == "auxiliary":
            return self._with_not(verb.at)
        if verb.kind == "short":
            return self._with_short(verb.at)
        return self._with_do(verb)

    # ------------------------------------------------------------------------------------------- finding the verb

    def _is_auxiliary(self, at: int) -> bool:
        low, before = self.low[at], self.low[at - 1] if at else ""
        pronoun, mark, ending = low.partition("'")
        if mark:
            personal = {*SINGULAR, *PLURAL, "that", "there"} - {"this", "these", "those"}
            return pronoun in personal and ending in ("s", "re", "m", "ll", "ve")
        if before == "to" or (self._is_cut_before(at) and at > 1 and low not in BE):
            return False
        after = self._next(at)
        if low in BE:
            return True
        if low in MODALS:
            is_noun = before in DETERMINERS and before not in ("this", "that", "these", "those", "one", "all", "both")
            ends = after.endswith(("s", "ed", "ing")) and after not in BASES
            return not is_noun and after.isalpha() and not ends and not self._is_closed(after)
        return low in HAVE and self._is_perfect(at) is True

    def _is_perfect(self, at: int) -> bool | None:
        """Return whether a form of have is followed by a participle of its own; None if it may be one or an adjective."""
        place = self._skip(at + 1)
        if place >= len(self.low):
            return False
        word = self.low[place]
        if word in ("been", "had", "become"):
            return True
        after = self.low[place + 1] if place + 1 < len(self.low) else ""
        if not self._is_closed(word) and self._is_participle(after):
            return None  # "had long been"
        if not self._is_participle(word):
            return False
        return True if self._ends_at(place) or self._is_closed(self._next(place)) else None

    @staticmethod
    def _is_participle(low: str) -> bool:
        is_regular = low.endswith("ed") and not low.endswith("eed") and len(low) > 4 and low not in BASES
        return is_regular or low in PARTICIPLES

    def _after_pronoun(self, at: int, *, anywhere: bool = False) -> Form | None:
        """Return the form of a word if it is the verb of a pronoun before it: she runs, they often ran."""
        form, subject = self._main(at), self._subject(at)
        if form is None or subject < 0 or not (subject == 0 or anywhere or self._is_cut_before(subject)):
            return None
        if form.tense == "past":
            return form if self.low[subject] in SINGULAR | PLURAL else None
        if self.low[subject] in PLURAL:
            return form if form.tense == "base" else None
        if self.low[subject] not in SINGULAR:
            return None
        if form.tense == "present":
            return form
        return Form(form.base, "past") if form.base in SAME_PAST else None

    def _after_noun(self, at: int) -> Form | None:
        """Return the form of a word if it is the verb of a noun before it: the dog barks, people walk."""
        form, subject = self._main(at), self._subject(at)
        if form is None or subject < 0 or self._is_cut_between(subject, at):
            return None
        noun = self.low[subject]
        if self._is_closed(noun) or noun in ADVERBS or "'" in noun or noun in SINGULAR | PLURAL or noun.endswith("ed"):
            return None
        if self.low[0] in PREPOSITIONS or self.low[at] == "like" or (self._next(at) == "of" and form.base != "consist"):
            return None
        after = "" if self._ends_at(at) else self._next(at)
        is_plural = noun in PEOPLE or (noun.endswith("s") and not noun.endswith(("ss", "us", "is")))
        is_plural = is_plural or (subject > 1 and self.low[subject - 1] == "and")
        if form.tense == "base":
            of_one = {"a", "an", "this", "that"}.intersection(self.low[:subject]) and "of" not in self.low[:subject]
            return None if not is_plural or subject > 3 or of_one or self._is_verb(after) else form
        if form.tense == "present":
            is_bare = subject > 0 and self.low[subject - 1] in PREPOSITIONS  # bows is no verb in "of violin bows"
            if is_plural or is_bare or self._is_verb(after):
                return None
            plain = not after or (self._is_closed(after) and after not in JOINING)
            return form if plain or self._starts_with_determiner(subject) else None
        participle = self.low[at] in PARTICIPLES or self.low[at].endswith("ed")
        if not participle or form.base in INTRANSITIVE:
            return form
        is_object = after in DETERMINERS or after in OBJECTS
        return form if is_object else None

    def _main(self, at: int) -> Form | None:
        """Return the form of a word that may be the main verb; have with a participle that may be an adjective is none."""
        low = self.low[at]
        if low in HAVE and (self._is_perfect(at) is not False or self._next(at) == "better"):
            return None
        if low in ("does", "do", "did") and (not self._has_object(at) or self._next(at) in BASES):
            return None
        return form_of(low)

    def _subject(self, at: int) -> int:
        """Return the index of the word before a verb and its adverbs, or -1."""
        before = at - 1
        while before >= 0 and self._is_adverb(self.low[before]):
            before -= 1
        return before

    def _starts_with_determiner(self, subject: int) -> bool:
        return any(word in DETERMINERS for word in self.low[max(0, subject - 3) : subject])

    def _is_joined(self, at: int, form: Form) -> bool:
        """Return whether a second verb of the same subject follows: he came and sat down."""
        for place in range(at + 1, len(self.low) - 1):
            if self.low[place] in JOINING or self._is_cut_before(place):
                first = place + 1 if self.low[place] in JOINING else place
                other = form_of(self.low[min(self._skip(first), len(self.low) - 1)])
                if other is not None and other.tense == form.tense:
                    return True
        return False

    def _has_object(self, at: int) -> bool:
        """Return whether an object follows a verb."""
        after = self._next(at)
        is_object = after in DETERMINERS or after in OBJECTS or after in ("if", "whether", "true", "false")
        return is_object and not self._ends_at(at)

    def _is_verb(self, low: str) -> bool:
        return bool(low) and not self._is_closed(low) and form_of(low) is not None

    def _next(self, at: int) -> str:
        """Return the word after a verb and its adverbs, or an empty text."""
        place = self._skip(at + 1)
        return self.low[place] if place < len(self.low) else ""

    def _skip(self, at: int) -> int:
        while at < len(self.low) and self._is_adverb(self.low[at]):
            at += 1
        return at

    @staticmethod
    def _is_adverb(low: str) -> bool:
        return low in ADVERBS or (low.endswith("ly") and low not in BASES and low not in ("family", "only", "fly"))

    @staticmethod
    def _is_closed(low: str) -> bool:
        """Return whether a word is of a closed class: no noun, verb or adjective."""
        closed = DETERMINERS | PREPOSITIONS | MARKERS | JOINING | OBJECTS | BE | MODALS | HAVE
        return low in closed or low in ("he", "she", "they", "we", "i")

    def _is_cut_before(self, at: int) -> bool:
        return at > 0 and self._is_cut_between(at - 1, at)

    def _is_cut_between(self, first: int, last: int) -> bool:
        """Return whether a mark, such as a comma, is between two words."""
        return bool(self.text[self.words[first].end : self.words[last].start].strip(" \t\"'")) and first < last

    def _ends_at(self, at: int) -> bool:
        return at + 1 >= len(self.words) or self._is_cut_between(at, at + 1)

    # ------------------------------------------------------------------------------------------------- writing it

    def _with_not(self, at: int) -> Negated | None:
        low = self.low
        after = self._next(at)
        if after in LIMITING or low[at + 1] in LIMITING:
            return None
        place = at
        while place + 1 < len(low) and low[place + 1] in BEFORE_NOT:
            place += 1
        if place + 1 < len(low) and low[place + 1] == "sometimes":
            return self._edited("auxiliary", {place + 1: "never"}, place + 1)
        word = self._at(place)
        no = "cannot" if low[at] == "can" and place == at else f"{word} not"
        return self._edited("auxiliary", {place: no}, place)

    def _with_short(self, at: int) -> Negated | None:
        pronoun, _, ending = self.low[at].partition("'")
        word = self._at(at)
        if self._next(at) in LIMITING:
            return None
        long = {"ll": "will", "ve": "have"}.get(ending)
        no = f"{word} not" if long is None else f"{word[: len(pronoun)]} {long} not"
        return self._edited("auxiliary", {at: no}, at)

    def _with_do(self, verb: _Verb) -> Negated | None:
        form, at = verb.form, verb.at
        if form is None or any(word in LIMITING for word in self.low[max(0, at - 1) : at + 1]):
            return None
        first = self._subject(at) + 1
        if "sometimes" in self.low[first:at]:
            return self._edited("verb", {self.low.index("sometimes"): "never"}, at)
        do = {"base": "do not", "present": "does not", "past": "did not"}[form.tense]
        if verb.kind == "imperative":
            begins = self._at(0)[0].isupper()
            return self._edited("imperative", {0: f"{do.capitalize() if begins else do} {form.base}"}, 0)
        edits = {at: form.base}
        edits[first] = f"{do} {form.base if first == at else self._at(first)}"
        return self._edited("verb", edits, at)

    def _with_subject(self, verb: _Verb) -> Negated | None:
        low = self.low
        no = SUBJECTS[low[0]]
        of = len(low) > 1 and low[1] == "of"
        if low[0] in ("some", "several") and of:
            no = "none"
        elif of and low[0] == "each":
            return None
        if low[0] in ("some", "several") and not of and verb.at == 1:  # "some are red"
            no = "none"
        return self._edited("quantifier", {0: no.capitalize() if self._at(0)[0].isupper() else no}, verb.at)

    def _without(self, verb: _Verb) -> Negated | None:
        """Negate "there is": a, an and some become no."""
        at, low = verb.at, self.low
        if verb.kind == "auxiliary" and low[at] not in BE:
            return self._with_not(at)
        if self._ends_at(at) or low[at + 1] in LIMITING or self._is_adverb(low[at + 1]):
            return None
        after = low[at + 1]
        if after in ("a", "an", "some"):
            if self._next(at + 1) in ("little", "few", "bit", "lot", "great", "good"):
                return None
            return self._edited("there", {at + 1: "no"}, at + 1)
        if after in ANY:
            return self._edited("there", {at + 1: SUBJECTS.get(after, "nowhere")}, at + 1)
        if after in NUMBERS or after.isdigit() or self._is_closed(after):
            return self._edited("there", {at: f"{self._at(at)} not"}, at)
        return self._edited("there", {at: f"{self._at(at)} no"}, at)

    def _at(self, at: int) -> str:
        return self.text[self.words[at].start : self.words[at].end]

    def _edited(self, rule: str, edits: dict[int, str], verb: int) -> Negated:
        """Return the text with some words replaced, and with any for some behind the verb."""
        for at in range(verb + 1, self.limit):
            if self.low[at] in ANY and at not in edits:
                edits[at] = ANY[self.low[at]]
        if self.low[-1] == "too" and len(self.low) - 1 not in edits and rule in ("auxiliary", "verb"):
            edits[len(self.low) - 1] = "either"
        text, end = "", 0
        for at in sorted(edits):
            word = self.words[at]
            text += self.text[end : word.start] + edits[at]
            end = word.end
        return Negated(text + self.text[end:], rule)
