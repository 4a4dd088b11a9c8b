"""Negation by rules and antonyms: right English, or none; and the check that negation is all that changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import ConfigError
from pipeline.curate.negation.rules import negate
from pipeline.curate.negation.verbs import Form, form_of, like
from pipeline.curate.negation.wordnet import Antonyms, read_antonyms
from pipeline.curate.negation.words import differ_by_negation, is_negated

NEGATED = {
    "auxiliary": {
        "A man is playing a guitar.": "A man is not playing a guitar.",
        "The children are sleeping": "The children are not sleeping",
        "She was happy.": "She was not happy.",
        "I am tired!": "I am not tired!",
        "He can swim.": "He cannot swim.",
        "They could see the sea": "They could not see the sea",
        "The train will arrive at noon.": "The train will not arrive at noon.",
        "You should call him.": "You should not call him.",
        "Visitors must wear a badge.": "Visitors must not wear a badge.",
        "She has finished the book.": "She has not finished the book.",
        "She has been to Paris.": "She has not been to Paris.",
        "Politicians have neglected the sick.": "Politicians have not neglected the sick.",
        "The sun has set.": "The sun has not set.",
        "He's running in the park.": "He's not running in the park.",
        "It\u2019s raining.": "It\u2019s not raining.",
        "They're late": "They're not late",
        "I've seen it.": "I have not seen it.",
        "We'll go home.": "We will not go home.",
        "She is probably asleep.": "She is probably not asleep.",
        "He is sometimes late.": "He is never late.",
        "The result is always positive.": "The result is not always positive.",
        "He will eat some soup.": "He will not eat any soup.",
        "He is tired too.": "He is not tired either.",
        "In 1990, he was a student.": "In 1990, he was not a student.",
        "That dog is big.": "That dog is not big.",
        "A red can is on the table.": "A red can is not on the table.",
        "The will of the people is strong.": "The will of the people is not strong.",
        "The food prepared for the guests was good.": "The food prepared for the guests was not good.",
        "The function can be called twice.": "The function cannot be called twice.",
        "Dogs and cats are animals.": "Dogs and cats are not animals.",
        "It is something new.": "It is not anything new.",
    },
    "verb": {
        "The dog barks.": "The dog does not bark.",
        "The dog eats food.": "The dog does not eat food.",
        "A woman plays the piano.": "A woman does not play the piano.",
        "She runs fast.": "She does not run fast.",
        "They run fast.": "They do not run fast.",
        "He tries to win.": "He does not try to win.",
        "She watches the sea.": "She does not watch the sea.",
        "He often walks home.": "He does not often walk home.",
        "He sometimes cooks.": "He never cooks.",
        "People walk along the street.": "People do not walk along the street.",
        "The dogs bark loudly.": "The dogs do not bark loudly.",
        "Two boys play football in a field.": "Two boys do not play football in a field.",
        "Birds fly.": "Birds do not fly.",
        "She went home.": "She did not go home.",
        "He wrote a letter.": "He did not write a letter.",
        "The boy kicked the ball.": "The boy did not kick the ball.",
        "They stopped the car.": "They did not stop the car.",
        "The man walked in the park.": "The man did not walk in the park.",
        "He put the cup on the table.": "He did not put the cup on the table.",
        "Obligingly, he lowered his voice": "Obligingly, he did not lower his voice",
        "He has a dog.": "He does not have a dog.",
        "They have two cars.": "They do not have two cars.",
        "He had a red bike": "He did not have a red bike",
        "He has to leave early.": "He does not have to leave early.",
        "She does her homework every day.": "She does not do her homework every day.",
        "She has something in her hand.": "She does not have anything in her hand.",
        "He likes music too.": "He does not like music either.",
        "He says that she is happy.": "He does not say that she is happy.",
        "The tall man in the red shirt laughs.": "The tall man in the red shirt does not laugh.",
        "Returns True if the file exists.": "Does not return True if the file exists.",
    },
    "quantifier": {
        "All dogs are barking.": "Not all dogs are barking.",
        "Some dogs bark.": "No dogs bark.",
        "Every student passed the test.": "Not every student passed the test.",
        "Each student passed the test.": "Not every student passed the test.",
        "Everyone likes music.": "Not everyone likes music.",
        "Someone is at the door.": "No one is at the door.",
        "Some of the apples are red.": "None of the apples are red.",
        "Several people dance in the street.": "No people dance in the street.",
        "Many people are waiting.": "Not many people are waiting.",
    },
    "there": {
        "There is a cat on the roof.": "There is no cat on the roof.",
        "There are some apples in the bowl.": "There are no apples in the bowl.",
        "There are three dogs outside.": "There are not three dogs outside.",
        "There is much to do.": "There is not much to do.",
        "There is water in the glass.": "There is no water in the glass.",
        "There was someone at the door.": "There was no one at the door.",
    },
    "imperative": {
        "Return the sum of two numbers.": "Do not return the sum of two numbers.",
        "set the value": "do not set the value",
    },
}
RULES = [(rule, text, negative) for rule, cases in NEGATED.items() for text, negative in cases.items()]


@pytest.mark.parametrize(("rule", "text", "negative"), RULES)
def test_a_sentence_is_negated(rule: str, text: str, negative: str):
    found = negate(text)
    assert not isinstance(found, str), found
    assert found.text == negative
    assert found.rule == ("imperative" if text.startswith("Returns") else rule)
    assert not is_negated(text)
    assert is_negated(negative)
    assert differ_by_negation(text, negative)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Is he here?", "a question"),
        ("He left. She stayed.", "more than one sentence"),
        (" ".join(["He is", *["very"] * 40, "tired"]), "longer than 40 words"),
        ('He said "stop" and is sad.', "a quotation"),
        ("A man dressed in black", "no rule fits"),  # a participle
        ("A young man sleeping on a bench", "no rule fits"),
        ("The man who is running can swim.", "no rule fits"),  # which of the two verbs?
        ("If it rains, he is sad.", "no rule fits"),
        ("He knows she is here.", "no rule fits"),
        ("He came and sat down.", "no rule fits"),  # "did not come and sat" is no English
        ("He is only tired.", "no rule fits"),
        ("He has limited space.", "no rule fits"),  # "has not limited" or "does not have limited"
        ("We had long anticipated his end", "no rule fits"),
        ("Both men are tall.", "no rule fits"),
        ("Only a boy can enter.", "no rule fits"),
        ("Here is the book.", "no rule fits"),
        ("This function may raise an error.", "no rule fits"),  # "may not" denies nothing
        ("Unrealized dreams and ambitions", "no rule fits"),
        ("Took a stance in the peace talks", "no rule fits"),
        ("Drop of 57 points on the index", "no rule fits"),
        ("He does like it.", "no rule fits"),
        ("Der Hund bellt laut.", "no rule fits"),
        ("x", "no rule fits"),
        ("12 + 5", "no rule fits"),
        ("...", "no rule fits"),
    ],
)
def test_a_sentence_that_may_be_read_otherwise_is_left_alone(text: str, reason: str):
    assert negate(text) == reason


@pytest.mark.parametrize(
    "text",
    ["It isn't so", "He never came", "No dogs", "can\u2019t", "Few came", "a non-empty list", "It works without it"],
)
def test_a_negation_is_found(text: str):
    assert is_negated(text)


@pytest.mark.parametrize("text", ["A few came", "The note", "notable knots", "Norway"])
def test_other_words_are_no_negation(text: str):
    assert not is_negated(text)


@pytest.mark.parametrize(
    ("text", "negative", "is_so"),
    [
        ("He is happy", "He isn't happy", True),
        ("He can swim", "He can't swim", True),
        ("He is happy", "He is unhappy", True),
        ("He has some milk", "He has no milk", True),
        ("A dog is an animal", "A dog is a cat", False),
        ("He is happy", "He is happy", False),
        ("He is happy", "She is not happy", False),  # another person
        ("He is happy", "He is not unhappy", False),  # denied twice
        ("He is happy in the park", "He is not glad there", False),
        ("He is tall and she is small", "He is not tall and she is not small", False),  # two negations
        ("He sings", "He does not dance", False),
        ("He is happy", "Sure! He is not happy, as you can see from his face", False),
        ("The door is open", "The door is closed", False),  # no antonyms are known
    ],
)
def test_negation_must_be_all_that_differs(text: str, negative: str, is_so: bool):
    assert differ_by_negation(text, negative) is is_so


def test_forms_of_verbs_are_found_and_made():
    for word in (
        "goes",
        "tries",
        "passes",
        "ran",
        "stopped",
        "tried",
        "used",
        "plays",
        "wrote",
        "left",
        "has",
        "carries",
    ):
        form = form_of(word)
        assert form is not None
        assert like(form.base, form) == word
    assert form_of("put") == Form("put", "base")
    assert form_of("lay") is None  # of "lie" or of "lay"
    assert form_of("table") is None


def _line(offset: str, word: str, antonym: str) -> str:
    return f"{offset} 00 a 01 {word} 0 001 ! {antonym} a 0101 | a meaning  "


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """WordNet of four adjectives, a verb and no adverb, in its own layout."""
    licence = "  1 This software and database is being provided to you\n"
    pairs = [("00000001", "young", "00000002"), ("00000002", "old", "00000001"), ("00000003", "open(p)", "00000004")]
    pairs.append(("00000004", "shut", "00000003"))
    data = {"adj": pairs, "verb": [("00000005", "accept", "00000006"), ("00000006", "reject", "00000005")], "adv": []}
    for part, lines in data.items():
        (tmp_path / f"data.{part}").write_text(licence + "".join(f"{_line(*line)}\n" for line in lines))
        index = [f"{word.partition('(')[0]} a 1 1 ! 1 1 {offset}  \n" for offset, word, _ in lines]
        (tmp_path / f"index.{part}").write_text(licence + "".join(index))
    uses = [
        "young%3:00:00:: 1 20",
        "young%1:09:00:: 1 1",
        "old%3:00:00:: 1 30",
        "open%3:00:00:: 1 9",
        "open%2:30:00:: 1 9",
    ]
    (tmp_path / "cntlist.rev").write_text("\n".join([*uses, "accept%2:31:00:: 1 40", "reject%2:31:00:: 1 7"]) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "negative"),
    [
        ("A young man asleep", "An old man asleep"),
        ("An old man asleep", "A young man asleep"),
        ("Young men", "Old men"),
        ("The door is open", "The door is shut"),
        ("The open door", None),  # a verb as often as an adjective
        ("She accepts the offer", "She rejects the offer"),
        ("To accept it", None),
        ("A table", None),
        ("", None),
    ],
)
def test_a_word_is_replaced_by_its_antonym(wordnet: Path, text: str, negative: str | None):
    antonyms = read_antonyms(str(wordnet))
    assert isinstance(antonyms, Antonyms)
    found = antonyms.replace(text)
    assert (None if isinstance(found, str) else found.text) == negative
    if negative is not None:
        assert differ_by_negation(text, negative, antonyms.are_antonyms)


def test_a_folder_without_wordnet_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has no file 'index.adj'.*wordnet-base"):
        read_antonyms(str(tmp_path))
