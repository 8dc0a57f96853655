"""BoolQ: the prompt, and three ways to tell yes from no."""

from llmbench import evals
from llmbench.evals import Eval, Item, Options, Reply
from tests.contracts.test_evals import SAMPLES


def sample(mode: str | None = None) -> tuple[Eval, list[Item]]:
    evaluation = evals.get("boolq", Options(mode=mode, count_tokens=len))
    return evaluation, evaluation.items(SAMPLES / "boolq")


PROMPT = (
    "Lighthouse -- A lighthouse is a tower with a lamp. It stands on the coast and guides ships.\n"
    "Question: is a lighthouse built near the sea?\nAnswer:"
)


def test_the_prompt_is_the_references_with_each_answer_behind_it() -> None:
    _, items = sample()
    assert [ask.prompt for ask in items[0].asks] == [f"{PROMPT} yes", f"{PROMPT} no"]
    assert {ask.want for ask in items[0].asks} == {"prompt"}
    assert [item.truth for item in items] == ["yes", "no"]


def test_the_last_tokens_log_probability_decides() -> None:
    evaluation, items = sample()
    replies = [Reply(tokens=(("x", None), (" ye", -0.1), ("s", -2.0))), Reply(tokens=(("x", None), (" no", -1.5)))]
    mark = evaluation.mark(items[0], replies)
    assert (mark.predicted, mark.correct, mark.scores) == ("no", False, {"yes": -2.0, "no": -1.5})


def test_the_next_tokens_likeliest_do_with_one_request() -> None:
    evaluation, items = sample("next")
    assert [(ask.prompt, ask.want) for ask in items[0].asks] == [(PROMPT, "next")]
    assert evaluation.mark(items[0], [Reply(top={" yes": -1.0, "no": -1.5, "yes": -3.0})]).predicted == "yes"
    assert evaluation.mark(items[0], [Reply(top={"\n": -0.1})]).predicted == "-1"


def test_the_first_of_the_words_in_a_text_counts() -> None:
    evaluation, items = sample("first_word")
    for text, predicted in ((" Yes, of course. No doubt.", "yes"), ("Nobody knows", "-1"), ("\nNO", "no"), ("", "-1")):
        assert evaluation.mark(items[1], [Reply(text=text)]).predicted == predicted
