"""The fact base: plain common knowledge, grouped by subject and relation, with several phrasings of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]\w)")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Facts of one kind: pairs of (key, answer), the phrasings of the question and of the statement."""

    subject: str
    name: str
    pairs: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact: `relation.pairs[position]`."""

    relation: Relation
    position: int

    @property
    def key(self) -> str:
        """What the fact is about."""
        return self.relation.pairs[self.position][0]

    @property
    def answer(self) -> str:
        """What is known of the key."""
        return self.relation.pairs[self.position][1]

    def question(self, template: int) -> str:
        """The fact asked in phrasing number `template`."""
        return with_articles(self.relation.questions[template].format(self.key))

    def statement(self, template: int) -> str:
        """The fact told in phrasing number `template`."""
        text = with_articles(self.relation.statements[template].format(self.key, self.answer))
        return text[0].upper() + text[1:]


def with_articles(text: str) -> str:
    """Write `an` before a vowel."""
    return _ARTICLE.sub(r"\1n ", text)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read `key answer, key answer, ...`."""
    words = [entry.split() for entry in text.split(",")]
    return tuple((entry[0], entry[1]) for entry in words)


RELATIONS: tuple[Relation, ...] = (
    Relation(
        subject="plain_geography",
        name="capital",
        pairs=_pairs(
            "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Russia Moscow, Chile Santiago, "
            "Peru Lima, England London, Austria Vienna, Sweden Stockholm, Ireland Dublin, Scotland Edinburgh, "
            "Israel Jerusalem, Switzerland Bern, Netherlands Amsterdam"
        ),
        questions=(
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "In {}, what is the name of the capital city?",
            "In which city is the government of {}?",
            "The capital city of {} is called what?",
        ),
        statements=(
            "The capital of {0} is {1}.",
            "{1} is the capital of {0}.",
            "The government of {0} is in {1}.",
            "In {0}, the capital city is {1}.",
        ),
    ),
    Relation(
        subject="plain_geography",
        name="language",
        pairs=_pairs(
            "France French, Italy Italian, Germany German, Japan Japanese, Russia Russian, China Chinese, England "
            "English, Mexico Spanish, Sweden Swedish, Portugal Portuguese, Poland Polish, Netherlands Dutch"
        ),
        questions=(
            "Which language do people speak in {}?",
            "What is the main language of {}?",
            "People who live in {} speak which language?",
            "In {}, which language is used at school?",
        ),
        statements=(
            "People in {0} speak {1}.",
            "The main language of {0} is {1}.",
            "{1} is the language of {0}.",
        ),
    ),
    Relation(
        subject="plain_language",
        name="plural",
        pairs=_pairs(
            "man men, woman women, child children, foot feet, leaf leaves, life lives, house houses, book books, "
            "city cities, country countries, family families, party parties, story stories, box boxes, church churches"
        ),
        questions=(
            "What is the plural form of {}?",
            "Which word means more than one {}?",
            "We say one {}, but two of what?",
            "How do you write {} in the plural?",
        ),
        statements=(
            "The plural form of {0} is {1}.",
            "We say one {0}, but two {1}.",
            "In the plural, {0} is written {1}.",
        ),
    ),
    Relation(
        subject="plain_animals",
        name="home",
        pairs=_pairs(
            "bird tree, fish water, horse farm, bear forest, king palace, cat house, worker factory, student "
            "school, soldier camp, mouse hole, cow field, rat street, hen garden, ship sea, prisoner prison"
        ),
        questions=(
            "Where would you find a {}?",
            "In which place does a {} live?",
            "What is the home of a {}?",
            "To see a {}, where should you look?",
        ),
        statements=(
            "The home of a {0} is the {1}.",
            "You can find a {0} in the {1}.",
            "A {0} lives in the {1}.",
        ),
    ),
    Relation(
        subject="plain_animals",
        name="kind",
        pairs=_pairs(
            "dog animal, apple fruit, rose flower, iron metal, gun tool, doctor person, red color, guitar "
            "instrument, table object, coat dress, football sport, coffee drink, winter season, bread food, car "
            "vehicle, circle shape, tennis game, Sunday day, April month, church building, tree plant"
        ),
        questions=(
            "What kind of thing is {}?",
            "To which group does {} belong?",
            "The word {} is the name of which kind of thing?",
            "Which group is right for {}?",
        ),
        statements=(
            "The word {0} names a kind of {1}.",
            "We know that {0} belongs to the group {1}.",
            "If you hear the word {0}, think of a {1}.",
        ),
    ),
    Relation(
        subject="plain_language",
        name="opposite",
        pairs=_pairs(
            "hot cold, big small, fast slow, high low, old new, good bad, light dark, open closed, happy sad, "
            "hard soft, long short, rich poor, strong weak, early late, full empty, wet dry, first last, left right, "
            "up down, love hate, day night, war peace, true false, black white, inside outside, before after, "
            "near far, always never, more less, buy sell, give take, start end, win lose, push pull, front back"
        ),
        questions=(
            "What is the opposite of {}?",
            "Which word means the opposite of {}?",
            "If something is not {}, which word is its opposite?",
            "The opposite of the word {} is which word?",
            "Which word stands against {}?",
        ),
        statements=(
            "The opposite of {0} is {1}.",
            "The word {1} is the opposite of {0}.",
            "The words {0} and {1} stand against each other.",
        ),
    ),
    Relation(
        subject="plain_language",
        name="past",
        pairs=_pairs(
            "go went, see saw, make made, take took, come came, give gave, find found, think thought, know knew, "
            "write wrote, run ran, sit sat, speak spoke, fight fought, bring brought, begin began, keep kept, "
            "fall fell, hold held, tell told, send sent, leave left, lose lost, build built, drive drove"
        ),
        questions=(
            "What is the past form of {}?",
            "Which word is the past of the verb {}?",
            "To tell about the past, how do we write {}?",
            "How does the verb {} change in the past?",
        ),
        statements=(
            "The past form of {0} is {1}.",
            "The word {1} is the past of the verb {0}.",
            "In the past, we write {1} for {0}.",
        ),
    ),
    Relation(
        subject="plain_science",
        name="color",
        pairs=_pairs(
            "grass green, snow white, blood red, coal black, sky blue, earth brown, sun yellow, steel gray, corn "
            "yellow, milk white, night black, tree green, sea blue, wood brown, fire red, gold yellow"
        ),
        questions=(
            "What is the color of {}?",
            "Which color does {} have?",
            "In a picture, which color would you paint {}?",
            "Looking at {}, which color do you see?",
        ),
        statements=(
            "The color of {0} is {1}.",
            "Everyone knows that {0} is {1}.",
            "When you look at {0}, you see {1}.",
        ),
    ),
    Relation(
        subject="plain_science",
        name="made",
        pairs=_pairs(
            "window glass, book paper, table wood, coat fur, bread corn, coin silver, ring gold, wall stone, bag "
            "skin, wheel rubber, engine steel, wine fruit, ice water, wire iron, house brick, beach sand"
        ),
        questions=(
            "What is a {} made of?",
            "Which material is used to make {}?",
            "From what do we make {}?",
            "To make {}, which thing do you need?",
        ),
        statements=(
            "Every {0} is made of {1}.",
            "We use {1} to make a {0}.",
            "People make the {0} from {1}.",
        ),
    ),
    Relation(
        subject="plain_science",
        name="sense",
        pairs=_pairs(
            "see eye, hear ear, breathe nose, taste tongue, walk foot, hold hand, think brain, feel skin, kiss "
            "mouth, point finger, love heart, carry arm, run leg"
        ),
        questions=(
            "Which part of the body do we use to {}?",
            "What do we {} with?",
            "To {}, which part of the body do you need?",
            "The body uses which part to {}?",
        ),
        statements=(
            "We {0} with the {1}.",
            "The {1} is the part of the body that we use to {0}.",
            "To {0}, you need the {1}.",
        ),
    ),
    Relation(
        subject="plain_calendar",
        name="next_month",
        pairs=_pairs(
            "January February, February March, March April, April May, May June, June July, July August, "
            "August September, September October, October November, November December, December January"
        ),
        questions=(
            "Which month comes after {}?",
            "What is the next month after {}?",
            "When {} is over, which month begins?",
            "Which month follows {}?",
        ),
        statements=(
            "After {0} comes {1}.",
            "The month after {0} is {1}.",
            "The month {1} follows {0}.",
        ),
    ),
    Relation(
        subject="plain_calendar",
        name="next_day",
        pairs=_pairs(
            "Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday, "
            "Saturday Sunday, Sunday Monday"
        ),
        questions=(
            "Which day comes after {}?",
            "What is the next day after {}?",
            "If today is {}, what day is tomorrow?",
            "Which day of the week follows {}?",
        ),
        statements=(
            "The day after {0} is {1}.",
            "If today is {0}, then tomorrow is {1}.",
            "The day {1} follows {0}.",
        ),
    ),
    Relation(
        subject="plain_calendar",
        name="season",
        pairs=_pairs(
            "January winter, February winter, April spring, May spring, July summer, August summer, October fall, "
            "November fall"
        ),
        questions=(
            "In which season is {}?",
            "The month of {} belongs to which season?",
            "Which season of the year do we have in {}?",
            "What is the season when it is {}?",
        ),
        statements=(
            "The month of {0} is in {1}.",
            "We know that {0} belongs to {1}.",
            "In {0} the season is {1}.",
        ),
    ),
    Relation(
        subject="plain_arithmetic",
        name="add",
        pairs=(
            *((f"{a} plus {b}", str(a + b)) for a in range(1, 8) for b in range(1, 9 - a + 1) if a + b <= 9),
            *((f"{a} times {b}", str(a * b)) for a in range(2, 5) for b in range(2, 5) if a * b <= 9),
        ),
        questions=(
            "What is {}?",
            "How much is {}?",
            "Which number is equal to {}?",
            "Find the value of {}.",
        ),
        statements=(
            "The value of {0} is {1}.",
            "We know that {0} is {1}.",
            "The number {1} is equal to {0}.",
        ),
    ),
    Relation(
        subject="plain_arithmetic",
        name="next_number",
        pairs=tuple((str(number), str(number + 1)) for number in range(9)),
        questions=(
            "Which number comes after {}?",
            "What is the next number after {}?",
            "You count to {}, and which number do you say next?",
            "Which number follows {}?",
        ),
        statements=(
            "After {0} comes the number {1}.",
            "The next number after {0} is {1}.",
            "The number {1} follows {0}.",
        ),
    ),
    Relation(
        subject="plain_work",
        name="place",
        pairs=_pairs(
            "teacher school, doctor hospital, player field, cook kitchen, judge court, actor stage, priest "
            "church, driver road, pilot plane, captain ship, guard prison, artist studio, writer office, engineer "
            "factory, singer theatre, soldier army, merchant market, chef hotel, minister government"
        ),
        questions=(
            "Where does a {} work?",
            "Which is the place of work of a {}?",
            "In the morning a {} goes to work in which place?",
            "You are looking for a {}, where do you go?",
        ),
        statements=(
            "A {0} works in the {1}.",
            "The place of work of a {0} is the {1}.",
            "The {1} is the place where a {0} works.",
        ),
    ),
    Relation(
        subject="plain_work",
        name="tool",
        pairs=_pairs(
            "write pen, open key, drink cup, read book, sleep bed, travel train, sit chair, fight sword, shoot "
            "gun, call phone, photograph camera, clean soap, pay money, fly wing, cook fire, paint color"
        ),
        questions=(
            "What do people use to {}?",
            "If you want to {}, what do you need?",
            "Which thing helps you to {}?",
            "Which of these would you take to {}?",
        ),
        statements=(
            "People use a {1} to {0}.",
            "A {1} helps you to {0}.",
            "If you want to {0}, you need a {1}.",
        ),
    ),
)


def facts() -> Iterator[Fact]:
    """Every fact, in a fixed order."""
    for relation in RELATIONS:
        for position in range(len(relation.pairs)):
            yield Fact(relation=relation, position=position)


def subjects() -> tuple[str, ...]:
    """The names of the subjects, in a fixed order."""
    return tuple(dict.fromkeys(relation.subject for relation in RELATIONS))
