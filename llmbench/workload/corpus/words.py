"""Word lists and sentence patterns; nearly every word is one piece both here and in the Llama-2 vocabulary."""

from __future__ import annotations

import re
from random import Random

from llmbench.workload.corpus.facts import with_articles

SLOTS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "topic": (
            "book letter song story game garden house kitchen table window door road river mountain forest field "
            "lake sea village city school market church hospital park bridge beach island train car boat ship music "
            "picture food bread fruit milk tea coffee water sugar salt meat fish rice egg family friend sun moon star "
            "rain snow wind tree flower grass stone fire light color voice gift party sport health body heart mind "
            "energy memory dream hope love peace trust job office project phone computer email website paper map clock "
            "coat hat winter summer spring money time work"
        ),
        "act": "reading walking writing singing running learning teaching painting driving working playing drawing "
        "speaking listening planning building growing thinking",
        "thing": "book letter map clock bag box coat hat pen picture gift phone computer cup plate chair table lamp "
        "song story plan stone flower key ring camera",
        "place": "garden house kitchen river mountain forest field lake sea village city school market church hospital "
        "park beach island office shop hotel station library",
        "person": "friend mother father brother sister child teacher student doctor neighbor king queen soldier "
        "artist writer singer captain driver judge worker",
        "name": "Anna Peter Maria Tom John Paul Mary Jack Sam Ben Emma Lucy David Max Leo Kate James George Robert "
        "Alice",
        "animal": "dog cat horse bird fish mouse bear cow sheep",
        "good": "good great kind happy clear warm bright clean fresh sweet beautiful useful perfect safe calm gentle",
        "bad": "bad sad cold dark hard poor angry afraid slow strange tired weak",
        "adj": "good great small large warm cold simple quiet bright dark strong deep long short new old young happy "
        "brave clean fresh sweet rich soft early late calm wise gentle proud beautiful useful important special "
        "natural famous modern ancient wild little big",
        "time": "morning evening night day week month year summer winter",
        "past": "lived stood worked played walked ran sang read wrote learned waited stopped smiled cried",
        "moved": "walked ran moved came went returned",
        "made": "found lost made brought took carried opened kept showed needed wanted liked loved watched",
        "verb": "helps works grows moves plays lives stays comes",
        "do": "read write learn plan work walk play speak listen draw help rest think wait",
        "adverb": "slowly quickly quietly carefully together often always again easily",
        "weekday": "Monday Friday Saturday Sunday",
    }.items()
}

PLAIN = (
    "The {topic} is [very ]{adj}[ in the {time}].",
    "A {adj} {topic} helps you[ every {time}][ to feel {good}].",
    "Many people like the {topic}[ because it is {adj} and {adj}].",
    "You can find a[ {adj}] {topic} near the {place}[ in the {time}].",
    "It is {good} for the {person}[ and for the {person}].",
    "The {adj} {topic} makes every {time} more {good}[ for a {person}].",
    "People often think about the {topic}[ when they are in the {place}].",
    "It gives the {person} a[ {adj}] {thing}[ and a {adj} {thing}].",
    "There are many ways to see a {adj} {topic}[ in the {place}].",
    "Without it[ the {place} and] the {place} would be {bad}.",
    "Every {time} the {topic} looks {adj}[ and never {bad}].",
    "It {verb} {adverb}[ with the {thing}][ in the {place}].",
    "The {topic} is good.",
    "We love the {topic}.",
    "It is {adj}.",
    "It is {adj} and {adj}.",
)
ADVICE = (
    "Find a {adj} place[ in the {place}] and {do} {adverb}.",
    "Ask your {person}[ or a {adj} {person}] to help you[ in the {time}].",
    "Take a {adj} {thing}[ and a {thing}] with you.",
    "Think about {act}[ every {time}] before you {do}.",
    "Make a {adj} plan[ for the {time}][ and keep it in the {place}].",
    "Start {act} {adverb}[ in the {place}].",
    "Read a[ {adj}] book about {act}[ every {time}].",
    "Rest in the {time}[ so that you feel {good}].",
    "{do} {adverb}.",
    "Use a {thing}.",
    "Do not be {bad}[ when you {do} in the {place}].",
    "This keeps you {good}[ and {good}][ for a long time].",
    "It helps you to {do}[ with a {person}].",
    "Then you can {do} {adverb}[ near the {place}].",
    "A {adj} {thing} helps[ the {person}][ more than a {adj} {thing}].",
)
STORY = (
    "{name} {past} in the {place}[ every {time}].",
    "In the {time}, {name} {moved} to the {place}[ with a {adj} {animal}].",
    "The {adj} {animal} {past} near the {place}[ and {past} again].",
    "There was a {adj} {thing} under the {thing}[ in the {place}].",
    "A {person} {made} the {thing}[ and {made} a {adj} {thing}].",
    "{name} was {good}[ but the {person} was {bad}].",
    "The {person} said that the {place} was {adj}[ and {adj}].",
    "Then they {moved} {adverb} into the {place}[ and {made} a {thing}].",
    "Everything was {adj}[ in the {place}].",
    "The {animal} was {bad}.",
    "They {past} {adverb}.",
    "{name} {made} a {thing}[ for the {person}].",
)
OPINION_GOOD = (
    "The {topic} was {good}[ and {good}].",
    "I love this {topic}[ because it is {good}].",
    "What a {good} {topic}[ for a {person}].",
)
OPINION_BAD = (
    "The {topic} was {bad}[ and {bad}].",
    "I hate this {topic}[ because it is {bad}].",
    "What a {bad} {topic}[ for a {person}].",
)
CONTEXT = (
    "I have a {adj} {thing}[ in my {place}].",
    "My {person} is {adj}[ and lives near the {place}].",
    "We live in a {adj} {place}[ with a {animal}].",
    "I like {act}[ in the {time}][ with my {person}].",
    "On {weekday} I go to the {place}[ with {name}].",
    "My friend {name} likes the {topic}[ more than the {topic}].",
    "I am {adj}.",
)

_OPTION = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def sentence(rng: Random, pattern: str, topic: str = "") -> str:
    """Fill a pattern: `[...]` is kept half of the time, `{slot}` becomes a word of that list, or the topic."""
    chosen = _OPTION.sub(lambda match: match.group(1) if rng.random() < 0.5 else "", pattern)

    def word(match: re.Match[str]) -> str:
        name = match.group(1)
        return topic if topic and name == ("act" if topic.endswith("ing") else "topic") else rng.choice(SLOTS[name])

    text = with_articles(_SLOT.sub(word, chosen))
    return text[0].upper() + text[1:]
