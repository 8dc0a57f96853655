"""The corpus: questions and their split, instruction records, lengths that can be asked for."""

import re
from collections import Counter
from random import Random

import pytest

from llmbench.workload import corpus
from llmbench.workload.corpus.facts import RELATIONS

HELD_OUT = {question.text for question in corpus.held_out_questions(Random(0))}


def pieces(text: str) -> int:
    """About what a tokenizer counts: words and marks."""
    return len(re.findall(r"\w+|[^\w ]", text))


def test_every_relation_has_statements_and_enough_phrasings_to_hold_one_out() -> None:
    for relation in RELATIONS:
        assert len(relation.questions) >= 3
        assert len(relation.statements) >= 3
        assert len({answer for _, answer in relation.pairs}) >= 4, relation.name
        assert len({key for key, _ in relation.pairs}) == len(relation.pairs), relation.name


def test_there_are_hundreds_of_facts_in_several_subjects() -> None:
    assert len(list(corpus.facts())) >= 250
    assert len(corpus.subjects()) >= 5


def test_no_held_out_question_is_among_the_trained_ones() -> None:
    trained = {question.text for question in corpus.train_questions(Random(0))}
    assert not trained & HELD_OUT
    assert len(HELD_OUT) == len(list(corpus.facts()))


def test_no_held_out_question_is_in_the_training_text() -> None:
    rng = Random(3)
    text = "\n".join(
        f"{document.prompt}\n{document.answer}" for document in (corpus.document(rng) for _ in range(3000))
    )
    lines = set(text.replace("Answer in one word. ", "").split("\n"))
    assert not lines & HELD_OUT


def test_each_held_out_fact_is_asked_in_other_phrasings() -> None:
    trained = Counter(
        (question.subject, question.choices[question.answer]) for question in corpus.train_questions(Random(0))
    )
    for question in corpus.held_out_questions(Random(0)):
        assert trained[question.subject, question.choices[question.answer]] >= 2


def test_the_four_choices_differ_and_the_letter_names_the_right_one() -> None:
    answers = {(fact.question(n), fact.answer) for fact in corpus.facts() for n in range(len(fact.relation.questions))}
    for question in corpus.held_out_questions(Random(5)):
        assert len(set(question.choices)) == 4
        assert (question.text, question.choices["ABCD".index(question.letter)]) in answers


def test_letters_are_about_evenly_distributed() -> None:
    letters = Counter(question.letter for question in corpus.train_questions(Random(0)))
    assert min(letters.values()) > 0.2 * sum(letters.values())


def test_rows_are_in_hendrycks_order() -> None:
    questions = list(corpus.held_out_questions(Random(0)))
    row = corpus.rows(questions, questions[0].subject)[0]
    assert row == (questions[0].text, *questions[0].choices, questions[0].letter)


def test_the_prompt_is_the_one_of_the_reference() -> None:
    shot, question = list(corpus.held_out_questions(Random(0)))[:2]
    prompt = corpus.few_shot_prompt([shot], question)
    a, b, c, d = shot.choices
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about  plain geography.\n\n"
        f"{shot.text}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer: {shot.letter}\n\n{question.text}\nA. "
    )
    assert prompt.endswith("\nAnswer:")


def test_the_same_seed_gives_the_same_text() -> None:
    one, two = Random("seed"), Random("seed")
    assert [corpus.document(one) for _ in range(200)] == [corpus.document(two) for _ in range(200)]


@pytest.mark.parametrize("with_input", [False, True])
@pytest.mark.parametrize(("prompt", "output"), [(20, 1), (20, 12), (35, 60), (60, 200), (25, 500)])
def test_a_record_of_asked_lengths_comes_close(prompt: int, output: int, with_input: bool) -> None:
    rng = Random(prompt + output)
    records = [corpus.compose(rng, prompt, output, with_input, pieces) for _ in range(20)]
    assert all(bool(record.input) == with_input for record in records)
    assert sum(pieces(record.output) for record in records) == pytest.approx(20 * output, rel=0.05)
    assert sum(pieces(record.prompt) for record in records) == pytest.approx(20 * prompt, rel=0.1)


def test_a_record_s_prompt_has_its_input_behind_a_colon() -> None:
    assert corpus.Record(instruction="Sort", input="b a", output="a b").prompt == "Sort:b a"
    assert corpus.Record(instruction="Sort", input="", output="").prompt == "Sort"
