"""Instruction records in the style of Alpaca, composed from patterns; their lengths can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from llmbench.workload.corpus import words
from llmbench.workload.corpus.facts import Fact, facts
from llmbench.workload.corpus.questions import train_templates

Part = Callable[[Random], str]
Count = Callable[[str], int]
NUMBERS = ("one", "two", "three", "four", "five")
_FACTS = tuple(facts())


@dataclass(frozen=True, kw_only=True)
class Record:
    """One instruction with its answer; `input` may be empty."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """What is sent: the instruction, and the input behind a colon."""
        return f"{self.instruction}:{self.input}" if self.input else self.instruction


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A record whose parts can be rolled anew until its lengths fit."""

    instruction: Sequence[Part]
    input: Sequence[Part] = ()
    output: Sequence[Part] = ()
    prefixes: Sequence[str] = ()  # one for each output part, or none
    topic: str = ""  # what the output is about, where it is about one thing


def _constant(text: str) -> Part:
    return lambda _: text


def _pattern(patterns: Sequence[str], topic: str = "") -> Part:
    return lambda rng: words.sentence(rng, rng.choice(patterns), topic)


def render_output(draft: Draft, parts: Sequence[str]) -> str:
    """The output text: each part behind its prefix, or all parts with spaces between."""
    if not draft.prefixes:
        return " ".join(parts)
    return "".join(prefix + part for prefix, part in zip(draft.prefixes, parts, strict=True))


# --- drafts by kind of answer ----------------------------------------------------------------------------------------

_LIST_KINDS = (
    ("Give {} reasons to like the {}", "topic", "", words.PLAIN, 1),
    ("Name {} facts about the {}", "topic", "", words.PLAIN, 1),
    ("List {} tips for {}", "act", "", words.ADVICE, 1),
    ("Give {} rules for {} and explain each rule", "act", "", words.ADVICE, 2),
    ("Write {} ideas about the {} and explain each idea", "topic", "", words.PLAIN, 2),
    ("Write a plan of {} days for {}", "act", "Day ", words.ADVICE, 3),
    ("Write the story of a {1} in {0} parts", "topic", "Part ", words.STORY, 4),
    ("Write a long story about the {1} in {0} parts", "topic", "Part ", words.STORY, 6),
)
_TEXT_LIST_KINDS = (
    ("Give {} ideas about the text", "", words.PLAIN, 1),
    ("Write {} facts about the text and explain each fact", "", words.PLAIN, 2),
    ("Give {} rules for the person in the text and explain each rule", "", words.ADVICE, 2),
    ("Use the text to write a plan of {} days", "Day ", words.ADVICE, 3),
    ("Write the next {} parts of the story", "Part ", words.STORY, 4),
    ("Write the next {} long parts of the story", "Part ", words.STORY, 6),
)
# of each kind: has its items labelled (`Day 1: `), sentences in an item
LIST_PARTS = tuple((bool(kind[2]), kind[4]) for kind in _LIST_KINDS)
TEXT_LIST_PARTS = tuple((bool(kind[1]), kind[3]) for kind in _TEXT_LIST_KINDS)
_TAILS = (
    "[ for a {adj} {person} who lives near the {place}]",
    "[ for my {person}][ in the {time}]",
    "[ in {adj} words][ for the {person}]",
    "[ that a {person} can use in the {place}]",
)


def _tail(text: str) -> Part:
    """An instruction with an optional ending that makes it longer."""
    return lambda rng: text + words.sentence(rng, "x" + rng.choice(_TAILS))[1:]


def _numbered(label: str, items: int, sentences: int) -> list[str]:
    """What stands before each sentence of a numbered answer."""
    prefixes: list[str] = []
    for item in range(1, items + 1):
        mark = f"{label}{item}: " if label else f"{item}. "
        prefixes += [("\n" if item > 1 else "") + mark, *([" "] * (sentences - 1))]
    return prefixes


def list_draft(rng: Random, kind: int, items: int) -> Draft:
    """A numbered answer of `items` items to an instruction alone."""
    instruction, slot, label, patterns, sentences = _LIST_KINDS[kind]
    topic = rng.choice(words.SLOTS[slot])
    parts = [_pattern(patterns, topic)] * (items * sentences)
    return Draft(
        instruction=[_tail(instruction.format(items, topic))],
        output=parts,
        prefixes=_numbered(label, items, sentences),
        topic=topic,
    )


def text_list_draft(rng: Random, kind: int, items: int, input_sentences: int) -> Draft:
    """A numbered answer of `items` items to a text."""
    instruction, label, patterns, sentences = _TEXT_LIST_KINDS[kind]
    return Draft(
        instruction=[_constant(instruction.format(items))],
        input=[_pattern(words.STORY)] * input_sentences,
        output=[_pattern(patterns)] * (items * sentences),
        prefixes=_numbered(label, items, sentences),
    )


def sentences_draft(rng: Random, sentences: int) -> Draft:
    """An answer of one to five sentences to an instruction alone."""
    topic = rng.choice(words.SLOTS["topic"])
    noun = "sentence" if sentences == 1 else "sentences"
    form = rng.choice(("Write {0} {1} about the {2}", "Tell me about the {2} in {0} {1}", "Use {0} {1} for the {2}"))
    return Draft(
        instruction=[_tail(form.format(NUMBERS[sentences - 1], noun, topic))],
        output=[_pattern(words.PLAIN, topic)] * sentences,
        topic=topic,
    )


def text_sentences_draft(rng: Random, sentences: int, input_sentences: int) -> Draft:
    """An answer of one to five sentences to a text."""
    noun = "sentence" if sentences == 1 else "sentences"
    form = rng.choice(("Add {} {} to the text", "Write the next {} {} of the story", "End the story with {} {}"))
    return Draft(
        instruction=[_constant(form.format(NUMBERS[sentences - 1], noun))],
        input=[_pattern(words.STORY)] * input_sentences,
        output=[_pattern(words.STORY)] * sentences,
    )


def fact_draft(rng: Random) -> Draft:
    """A question about a fact, in a trained phrasing, answered in one word."""
    fact = rng.choice(_FACTS)
    question = fact.question(rng.choice(train_templates(fact)))
    return Draft(instruction=[_constant(f"Answer in one word. {question}")], output=[_constant(fact.answer)])


def fact_sentence_draft(rng: Random) -> Draft:
    """A question about a fact, in a trained phrasing, answered with a statement."""
    fact = rng.choice(_FACTS)
    question = fact.question(rng.choice(train_templates(fact)))
    return Draft(instruction=[_constant(question)], output=[_constant(_statement(rng, fact))])


def _statement(rng: Random, fact: Fact) -> str:
    return fact.statement(rng.randrange(len(fact.relation.statements)))


def names_draft(rng: Random, number: int) -> Draft:
    """A few words of one kind: `a`, `a and b`, `a, b and c`."""
    slot = rng.choice(("animal", "place", "person", "thing", "topic"))
    plural = {"animal": "animals", "place": "places", "person": "people", "thing": "things", "topic": "words"}[slot]
    noun = "word" if slot == "topic" else slot
    many = plural if number > 1 else noun
    form = rng.choice(("Name {} {}", "Tell me the name of {} {}", "Give me {} {} for a story", "Say {} {}"))

    def answer(rng: Random) -> str:
        chosen = rng.sample(words.SLOTS[slot], number)
        return " and ".join([", ".join(chosen[:-1]), chosen[-1]] if number > 1 else chosen)

    return Draft(instruction=[_tail(form.format(NUMBERS[number - 1], many))], output=[answer])


def feeling_draft(rng: Random, input_sentences: int) -> Draft:
    """A text that is positive or negative, answered in one word."""
    positive = rng.random() < 0.5
    patterns = words.OPINION_GOOD if positive else words.OPINION_BAD
    form = rng.choice(
        ("Is this text positive or negative", "Find the feeling of the text", "Is the feeling good or bad")
    )
    word = ("good" if positive else "bad") if form.endswith("bad") else ("positive" if positive else "negative")
    return Draft(
        instruction=[_constant(form)],
        input=[_pattern(patterns)] * input_sentences,
        output=[_constant(word)],
    )


def name_draft(rng: Random, input_sentences: int, full_stop: bool) -> Draft:
    """A text with one name in it; the answer is the name."""
    name = rng.choice(words.SLOTS["name"])
    nameless = [pattern for pattern in words.STORY if "{name}" not in pattern]
    first = [f"{name} {{past}} in the {{place}}[ every {{time}}].", f"{name} {{made}} a[ {{adj}}] {{thing}}."]
    form = (
        "Who is in the text? Use a full stop" if full_stop else rng.choice(("Find the name in the text", "Who is it"))
    )
    return Draft(
        instruction=[_constant(form)],
        input=[_pattern(first)] + [_pattern(nameless)] * (input_sentences - 1),
        output=[_constant(name + "." if full_stop else name)],
    )


def pick_draft(rng: Random) -> Draft:
    """A list of words of which one is of the kind asked for."""
    slot, other = rng.sample(("animal", "place", "person", "name"), 2)
    answer = rng.choice(words.SLOTS[slot])
    listed = [*rng.sample([word for word in words.SLOTS[other] if word != answer], rng.randint(2, 5)), answer]
    rng.shuffle(listed)
    article = "an" if slot == "animal" else "a"
    return Draft(
        instruction=[_constant(f"Which of these words is {article} {slot}")],
        input=[_constant(", ".join(listed))],
        output=[_constant(answer)],
    )


def letter_draft(rng: Random) -> Draft:
    """A short letter with a greeting and a name at the end."""
    topic, name = rng.choice(words.SLOTS["topic"]), rng.choice(words.SLOTS["name"])
    return Draft(
        instruction=[_tail(f"Write a short letter to {name} about the {topic}")],
        output=[
            _constant(f"Hello {name},"),
            _pattern(words.CONTEXT),
            _pattern(words.PLAIN, topic),
            _pattern(words.PLAIN, topic),
            lambda rng: rng.choice(words.SLOTS["name"]),
        ],
        prefixes=["", "\n", " ", " ", "\nYour friend "],
    )


# --- choosing a draft ------------------------------------------------------------------------------------------------


def random_draft(rng: Random) -> Draft:
    """A draft of any kind, of the lengths that the stand-in datasets have."""
    sentences = rng.choices((1, 2, 3, 5, 8, 12), (30, 25, 20, 15, 7, 3))[0]
    items = rng.choices(range(1, 17), [12 if n < 6 else 5 if n < 9 else 1 for n in range(1, 17)])[0]
    kind = rng.random()
    if kind < 0.10:
        return fact_draft(rng)
    if kind < 0.20:
        return fact_sentence_draft(rng)
    if kind < 0.26:
        return names_draft(rng, rng.randint(1, 5))
    if kind < 0.42:
        return sentences_draft(rng, rng.randint(1, 5))
    if kind < 0.50:
        return text_sentences_draft(rng, rng.randint(1, 5), sentences)
    if kind < 0.54:
        return feeling_draft(rng, sentences)
    if kind < 0.58:
        return name_draft(rng, sentences, rng.random() < 0.5)
    if kind < 0.61:
        return pick_draft(rng)
    if kind < 0.65:
        return letter_draft(rng)
    if kind < 0.88:
        return list_draft(rng, rng.randrange(len(_LIST_KINDS)), items)
    return text_list_draft(rng, rng.randrange(len(_TEXT_LIST_KINDS)), items, sentences)


def roll(rng: Random, draft: Draft) -> Record:
    """One record of a draft."""
    return Record(
        instruction=" ".join(part(rng) for part in draft.instruction),
        input=" ".join(part(rng) for part in draft.input),
        output=render_output(draft, [part(rng) for part in draft.output]),
    )


def random_record(rng: Random) -> Record:
    """A record of any kind; now and then with a few sentences before the instruction."""
    draft = random_draft(rng)
    if not draft.input and rng.random() < 0.25:
        before = [_pattern(words.CONTEXT)] * rng.choices((1, 2, 3, 5, 8), (50, 20, 15, 10, 5))[0]
        draft = Draft(instruction=[*before, *draft.instruction], input=(), output=draft.output, prefixes=draft.prefixes)
    return roll(rng, draft)
