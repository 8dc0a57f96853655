"""Hugging Face's client of text-generation-inference (checked with huggingface_hub 2.4.0)."""

from typing import Any

import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

pytestmark = pytest.mark.clients

Client = Any  # huggingface_hub.InferenceClient, which mypy need not have
PROMPT = "The quick brown fox"


@pytest.fixture
def client(url: str) -> Client:
    return huggingface_hub.InferenceClient(base_url=url)


def test_a_text_is_generated_whole_and_streamed(client: Client) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=8, do_sample=False)
    assert whole
    assert "".join(client.text_generation(PROMPT, max_new_tokens=8, do_sample=False, stream=True)) == whole


def test_the_details_say_why_and_how_much(client: Client) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=8, do_sample=False, details=True)
    assert (whole.details.finish_reason, whole.details.generated_tokens) == ("length", 8)
    assert "".join(token.text for token in whole.details.tokens) == whole.generated_text
    *pieces, last = client.text_generation(PROMPT, max_new_tokens=8, do_sample=False, details=True, stream=True)
    assert last.generated_text == whole.generated_text
    assert last.details.generated_tokens == len(pieces) + 1
