"""What `--dataset` can name beside Alpaca files: kinds with settings, and their errors."""

import json
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import plan, prefixes, sources, spread
from llmbench.workload.exact import Writer
from llmbench.workload.plan import Turn

TOKENIZER = Tokenizer.from_file(embedded_path())


def need(number: int = 20, seeds: plan.Seeds | None = None) -> sources.Need:
    return sources.need(number, TOKENIZER, seeds or plan.seeds(0))


def load(text: str, number: int = 20, seeds: plan.Seeds | None = None) -> list[Turn]:
    return [cast("Turn", sample) for sample in sources.load(text, need(number, seeds)).samples]


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode(text, bos=False)


def write(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return path


def says(*turns: tuple[str, str]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}


# --- spreads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["7", "constant:7", "exponential:7", "uniform:4:10", "normal:70:7", "lognormal:7:3", "zipf:1.5:40"]
)
def test_a_spread_has_the_mean_that_it_says(text: str) -> None:
    found = spread.parse(text)
    assert found.draw(np.random.default_rng(1), 50_000).mean() == pytest.approx(found.mean, rel=0.03)


def test_the_standard_deviation_of_a_lognormal_spread_is_that_of_its_numbers() -> None:
    assert spread.parse("lognormal:100:50").draw(np.random.default_rng(1), 200_000).std() == pytest.approx(50, rel=0.03)


def test_whole_numbers_of_a_uniform_spread_have_the_same_chance_at_both_ends() -> None:
    counts = np.bincount(spread.parse("uniform:2:4").whole(np.random.default_rng(1), 30_000, 1, 99))
    assert counts[2:] == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norml:3:1", "Did you mean 'normal'"),
        ("normal:3", "should be normal:MEAN:SD"),
        ("x", "not a number|unknown"),
        ("uniform:9:3", "LOW is above HIGH"),
        ("-1", "not below 0"),
        ("lognormal:0:3", "MEAN must be above 0"),
        ("zipf:1:0", "MOST must be 1 or more"),
        ("normal:a:b", "normal:MEAN:SD"),
    ],
)
def test_a_wrong_spread_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread.parse(text)


# --- exact lengths ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 2**32), st.booleans())
def test_a_composed_text_has_exactly_the_tokens_asked_for(num_tokens: int, seed: int, follows: bool) -> None:
    before = "Rain is good for the lake." if follows else ""
    text = WRITERS[seed % 2].text(num_tokens, after=before)
    assert text.startswith(before)
    assert len(tokens(text)) == num_tokens + len(tokens(before))


WRITERS = [Writer(TOKENIZER, np.random.default_rng(seed)) for seed in (0, 1)]


class Letters:
    """A vocabulary without words: every letter is a token."""

    source = "letters"

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [1] * bos + [ord(letter) for letter in text]


def test_another_tokenizer_counts_its_own_way_and_one_that_cannot_do_it_is_named() -> None:
    writer = Writer(cast("Tokenizer", Letters()), np.random.default_rng(0))
    assert len(writer.text(41)) == 41
    with pytest.raises(InputError, match="letters: no text of exactly"):
        writer.text(1, after="x")  # a space and a letter are two


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["synthetic", "prefix", "multiturn"])
def test_composed_datasets_come_of_their_seeds_and_are_as_many_as_the_requests(kind: str) -> None:
    assert load(kind) == load(kind)
    assert 20 <= len(load(kind)) <= 25
    assert load(kind) != load(kind, seeds=plan.seeds(0, prompts=5))


def test_synthetic_prompts_have_the_lengths_that_were_drawn_and_all_differ() -> None:
    turns = load("synthetic:prompt=uniform:20:40,output=normal:50:5,most=45", 200)
    lengths = [len(tokens(turn.prompt)) for turn in turns]
    assert (min(lengths), max(lengths)) == (20, 40)
    assert max(turn.output_tokens or 0 for turn in turns) == 45
    assert len({turn.prompt for turn in turns}) == 200


def test_other_prompts_do_not_change_the_lengths() -> None:
    lengths = [
        [
            (len(tokens(turn.prompt)), turn.output_tokens)
            for turn in load("synthetic", seeds=plan.seeds(0, prompts=seed))
        ]
        for seed in (1, 2)
    ]
    assert lengths[0] == lengths[1]


def test_prompts_of_a_group_begin_with_the_same_tokens_and_go_on_alone() -> None:
    turns = load("prefix:groups=3,shared=50,own=uniform:5:9,output=12", 60)
    ids = [tokens(turn.prompt) for turn in turns]
    beginnings = {tuple(prompt[:50]) for prompt in ids}
    assert len(beginnings) == 3
    assert {len(prompt) for prompt in ids} == set(range(55, 60))
    assert {turn.output_tokens for turn in turns} == {12}
    assert len({turn.prompt for turn in turns}) == 60


def test_skewed_groups_have_a_favourite() -> None:
    turns = load("prefix:groups=4,shared=20,own=10,skew=3", 200)
    groups = [tuple(tokens(turn.prompt)[:20]) for turn in turns]
    assert max(groups.count(group) for group in set(groups)) > 130


def test_a_turn_holds_the_conversation_so_far_and_waits_a_think_time() -> None:
    turns = load("multiturn:turns=3,prompt=5,output=7,think=uniform:1:2", 9)
    assert [turn.think_s is None for turn in turns] == [True, False, False] * 3
    for before, after in pairwise(turns[:3]):
        assert after.prompt.startswith(f"{before.prompt} {before.output}\nUser: ")
        assert after.think_s is not None
        assert 1 <= after.think_s < 2


def test_think_times_are_of_the_seed_of_the_schedule() -> None:
    one, other = (load("multiturn:think=exponential:1", seeds=plan.seeds(0, schedule=seed)) for seed in (1, 2))
    assert [turn.prompt for turn in one] == [turn.prompt for turn in other]
    assert [turn.think_s for turn in one] != [turn.think_s for turn in other]


TALK = says(("system", "be kind"), ("human", "one?"), ("gpt", "1"), ("human", "two?"), ("gpt", "2"), ("human", "bye"))


def test_sharegpt_is_the_first_question_and_its_answer_and_silent_conversations_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "share.json", TALK, says(("gpt", "hello")), says(("human", "a"), ("human", "b")))
    assert load(f"sharegpt:path={path}") == [Turn(prompt="one?", output="1")]


def test_sharegpt_conversations_can_be_sent_turn_by_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "share.json", TALK)
    turns = load(f"multiturn:path={path},think=2")
    assert [(turn.prompt, turn.output, turn.think_s) for turn in turns] == [
        ("User: one?\nAssistant:", "1", None),
        ("User: one?\nAssistant: 1\nUser: two?\nAssistant:", "2", 2.0),
    ]
    assert len(load(f"multiturn:path={path},most=1")) == 1


def test_messages_of_role_and_content_are_conversations_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]
    path = write(tmp_path / "chat.jsonl", {"messages": messages})
    assert load(f"sharegpt:{path}") == [Turn(prompt="one?", output="1")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": 3}, "record 0: neither conversations nor messages"),
        ({"conversations": "x"}, "record 0: conversations must be a list"),
        ({"conversations": [{"from": "human"}]}, r"record 0: conversations\[0\]: value is missing"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\]: value must be a string"),
        (says(("gpt", "hello")), "in no record"),
        (7, "record 0 must be an object"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_conversation_is_refused_with_file_record_and_field(
    tmp_path: Path, record: object, message: str
) -> None:
    path = write(tmp_path / "share.json", record)
    with pytest.raises(InputError, match=f"share.json: .*{message}"):
        load(f"sharegpt:path={path}")


def test_fields_of_json_lines_can_have_any_name_and_lie_deep(tmp_path: Path) -> None:
    path = write(
        tmp_path / "qa.jsonl",
        {"q": {"text": "why?"}, "answer": "so", "n": 5},
        "",
        {"q": {"text": "who?"}, "answer": "I", "n": 6},
    )
    assert load(f"jsonl:path={path},prompt=q.text,output=answer,tokens=n") == [
        Turn(prompt="why?", output="so", output_tokens=5),
        Turn(prompt="who?", output="I", output_tokens=6),
    ]


def test_a_path_of_json_lines_needs_no_kind_and_an_output_is_taken_where_there_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.jsonl", {"prompt": "a", "output": "b"}, {"prompt": "c"})
    assert load(str(path)) == [Turn(prompt="a", output="b"), Turn(prompt="c")]


@pytest.mark.parametrize(
    ("settings", "record", "message"),
    [
        ("prompt=question", {"questions": "x"}, "line 2: question is missing: .*Did you mean 'questions'"),
        ("prompt=p", {"p": 3}, "line 2: p must be a string"),
        ("prompt=p,output=o", {"p": "x"}, "line 2: o is missing"),
        ("prompt=p,tokens=n", {"p": "x", "n": 0}, "line 2: n must be a whole number above 0"),
        ("prompt=p.q", {"p": "x"}, "line 2: p.q is missing"),
        ("prompt=p", "{]", "line 2: not JSON"),
    ],
)
def test_wrong_json_lines_are_refused_with_file_line_and_field(
    tmp_path: Path, settings: str, record: object, message: str
) -> None:
    good = {"question": "a", "p": {"q": "a"} if "p.q" in settings else "a", "o": "b", "n": 1}
    path = write(tmp_path / "qa.jsonl", good, record)
    with pytest.raises(InputError, match=f"qa.jsonl: {message}"):
        load(f"jsonl:path={path},{settings}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthetc:prompt=3", "unknown dataset 'synthetc'. Did you mean 'synthetic'"),
        ("sharegtp", "Did you mean 'sharegpt'"),
        ("synthetic:promt=3", "promt: unknown key. Did you mean 'prompt'"),
        ("synthetic:prompt=gauss:2", "prompt: unknown distribution"),
        ("jsonl", "path: is missing"),
        ("jsonl:path=nowhere.jsonl", "nowhere.jsonl: cannot read"),
        ("prefix:groups=0", "groups"),
        ("multiturn:most=0", "most: must be 1 or more"),
    ],
)
def test_a_wrong_kind_or_setting_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load(text)
    assert message in str(refused.value)


def test_every_kind_says_what_its_settings_mean() -> None:
    assert sources.kinds() == ["jsonl", "multiturn", "prefix", "sharegpt", "synthetic"]


# --- prefixes --------------------------------------------------------------------------------------------------------


def test_shared_tokens_are_those_that_another_prompt_begins_with_too() -> None:
    assert prefixes.num_shared([(1, 2, 3), (1, 2, 9, 9), (5,), (6, 5)]) == 4
    assert prefixes.num_shared([(1, 2), (1, 2)]) == 4
    assert prefixes.num_shared([(1, 2)]) == prefixes.num_shared([]) == 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), max_size=12))
def test_neighbours_in_order_are_enough_to_find_the_longest_common_beginning(prompts: list[tuple[int, ...]]) -> None:
    def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        return next((n for n in range(min(len(a), len(b))) if a[n] != b[n]), min(len(a), len(b)))

    longest = [max((common(a, b) for j, b in enumerate(prompts) if i != j), default=0) for i, a in enumerate(prompts)]
    assert prefixes.num_shared(prompts) == sum(longest)
