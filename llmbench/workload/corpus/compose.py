"""Records of a given length: a draft is chosen by the lengths asked for, then its parts are rolled until they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from llmbench.workload.corpus import instructions, words
from llmbench.workload.corpus.instructions import Count, Draft, Part, Record

PART_TOKENS = 8  # about what a sentence has
DRAFTS = 30  # tried for one record
SHORT_INSTRUCTIONS = (
    "Write about the {topic}",
    "Think about {adj} {topic}",
    "Write about {adj} {topic}",
    "Write about the {adj}[ and {adj}] {topic}",
    "Tell me about the[ {adj}] {topic}",
    "Think about the {topic} and write[ a {adj} text]",
)
SHORT_TASKS = ("Write about this", "Tell me more", "Use this", "Think about this text")


def compose(rng: Random, prompt_tokens: int, output_tokens: int, with_input: bool, count: Count) -> Record:
    """A record whose prompt and output have these numbers of tokens, or as near as the drafts come."""
    best: tuple[int, Record] | None = None
    for _ in range(DRAFTS):
        draft = _draft(rng, prompt_tokens, output_tokens, with_input)
        record = _fitted(rng, draft, prompt_tokens, output_tokens, count)
        miss = abs(count(record.prompt) - prompt_tokens) + abs(count(record.output) - output_tokens)
        if best is None or miss < best[0]:
            best = miss, record
        if miss == 0:
            break
    assert best is not None
    return best[1]


def _draft(rng: Random, prompt_tokens: int, output_tokens: int, with_input: bool) -> Draft:
    answer = _answer(rng, output_tokens, with_input)
    if with_input:
        return _lengthen_input(answer, rng, prompt_tokens)
    return _lengthen_instruction(answer, rng, prompt_tokens)


def _answer(rng: Random, tokens: int, with_input: bool) -> Draft:
    """A draft whose output can have that many tokens."""
    if tokens <= 2 and with_input:
        choices: list[Callable[[], Draft]] = [lambda: instructions.name_draft(rng, 1, tokens == 2)]
        if tokens == 1:
            choices += [lambda: instructions.feeling_draft(rng, 1), lambda: instructions.pick_draft(rng)]
        return rng.choice(choices)()
    if tokens == 1 and rng.random() < 0.5:
        return instructions.fact_draft(rng)
    if tokens <= 4 or (tokens <= 9 and rng.random() < 0.4):
        return _words_draft(rng, tokens)
    if tokens <= 16 and not with_input and rng.random() < 0.3:
        return instructions.fact_sentence_draft(rng)
    if tokens <= 18 or (tokens <= 45 and rng.random() < 0.5):
        return _sentences(rng, min(5, max(1, round(tokens / (PART_TOKENS + 0.5)))), with_input)
    return _numbered(rng, tokens, with_input)


def _words_draft(rng: Random, tokens: int) -> Draft:
    """`a, b and c`, with a full stop when the number of tokens is even; nothing at all for 0."""
    if tokens == 0:
        return Draft(instruction=instructions.names_draft(rng, 1).instruction, output=())
    draft = instructions.names_draft(rng, (tokens + 1) // 2)
    if tokens % 2:
        return draft
    names = draft.output[0]
    ending: Part = lambda _: "and end with a full stop"  # noqa: E731
    return Draft(instruction=[*draft.instruction, ending], output=[lambda rng: names(rng) + "."])


def _sentences(rng: Random, number: int, with_input: bool) -> Draft:
    if with_input:
        return instructions.text_sentences_draft(rng, number, 1)
    return instructions.sentences_draft(rng, number)


def _numbered(rng: Random, tokens: int, with_input: bool) -> Draft:
    """A numbered answer of a kind for which 2 to 14 items make about that many tokens."""
    per_part = instructions.TEXT_LIST_PARTS if with_input else instructions.LIST_PARTS
    fitting = []
    for kind, (labelled, sentences) in enumerate(per_part):
        items = max(1, round(tokens / (sentences * PART_TOKENS + (5 if labelled else 3))))
        if 2 <= items <= 14:
            fitting.append((kind, items))
    kind, items = rng.choice(fitting) if fitting else (len(per_part) - 1, max(1, round(tokens / 53)))
    if with_input:
        return instructions.text_list_draft(rng, kind, items, 1)
    return instructions.list_draft(rng, kind, items)


def _lengthen_instruction(draft: Draft, rng: Random, tokens: int) -> Draft:
    """The draft with sentences before its instruction, or with a short instruction in its place."""
    if tokens < 10:
        topic = draft.topic or rng.choice(words.SLOTS["topic"])
        pattern = rng.choice(SHORT_INSTRUCTIONS)
        short: Part = lambda rng: words.sentence(rng, pattern, topic)  # noqa: E731
        own = draft.instruction if tokens > 6 and rng.random() < 0.3 else [short]
        return Draft(instruction=own, output=draft.output, prefixes=draft.prefixes)
    before = [_context] * max(0, round((tokens - 15) / PART_TOKENS))
    return Draft(instruction=[*before, *draft.instruction], output=draft.output, prefixes=draft.prefixes)


def _context(rng: Random) -> str:
    return words.sentence(rng, rng.choice(words.CONTEXT))


def _lengthen_input(draft: Draft, rng: Random, tokens: int) -> Draft:
    """The draft with as many input sentences as the prompt has room for."""
    text: Part = lambda rng: words.sentence(rng, rng.choice(words.STORY))  # noqa: E731
    instruction = draft.instruction
    if tokens < 18:
        task = rng.choice(SHORT_TASKS)
        instruction = [lambda _: task]
    room = round((tokens - (5 if tokens < 18 else 10)) / PART_TOKENS)
    inputs = [*draft.input[:1], *([text] * (room - 1))] if draft.input else [text] * max(1, room)
    return Draft(instruction=instruction, input=inputs, output=draft.output, prefixes=draft.prefixes)


# --- fitting ---------------------------------------------------------------------------------------------------------


def _fitted(rng: Random, draft: Draft, prompt_tokens: int, output_tokens: int, count: Count) -> Record:
    makers = [*draft.instruction, *draft.input]
    border = len(draft.instruction)

    def prompt(parts: Sequence[str]) -> str:
        head, tail = " ".join(parts[:border]), " ".join(parts[border:])
        return f"{head}:{tail}" if tail else head

    asked = _fit(rng, makers, prompt, prompt_tokens, count)
    output = _fit(rng, draft.output, lambda parts: instructions.render_output(draft, parts), output_tokens, count)
    return Record(
        instruction=" ".join(asked[:border]),
        input=" ".join(asked[border:]),
        output=instructions.render_output(draft, output),
    )


def _fit(
    rng: Random, makers: Sequence[Part], render: Callable[[Sequence[str]], str], target: int, count: Count
) -> list[str]:
    """One text for each maker; texts are rolled again while that brings the count of the whole nearer to the target."""
    parts = [make(rng) for make in makers]
    gap = target - count(render(parts))
    for _ in range(12 + 4 * len(parts)):
        if gap == 0 or not parts:
            break
        place = rng.randrange(len(parts))
        own = count(parts[place])
        rolled = [makers[place](rng) for _ in range(6)]
        candidate = min(rolled, key=lambda text: abs(gap - (count(text) - own)))
        changed = [*parts[:place], candidate, *parts[place + 1 :]]
        left = target - count(render(changed))
        if abs(left) < abs(gap):
            parts, gap = changed, left
    return parts
