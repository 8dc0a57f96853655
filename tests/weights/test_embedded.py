"""The embedded model: its files, and the tool that makes it."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file

from llmbench import LLM
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import corpus

FOLDER = embedded_path().parent
CHECKOUT = Path(__file__).parents[2]
LLAMA_2 = CHECKOUT.parent / "shared" / "data" / "tokenizer.model"
CONFIG = json.loads((FOLDER / "config.json").read_bytes())


def test_all_files_together_have_6_mb_at_most() -> None:
    files = ("model.safetensors", "config.json", "tokenizer.model", "training.json")
    assert sum((FOLDER / name).stat().st_size for name in files) <= 6_000_000


def test_the_tensors_have_the_names_and_shapes_of_the_config() -> None:
    hidden, inner, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    keys = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    wanted = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
        **{
            f"model.layers.{n}.{name}.weight": shape
            for n in range(CONFIG["num_hidden_layers"])
            for name, shape in layer.items()
        },
    }
    tensors = load_file(FOLDER / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
    assert all(tensor.dtype == np.float16 and np.isfinite(tensor).all() for tensor in tensors.values())


def test_the_config_is_a_llama_with_fewer_key_heads_than_heads() -> None:
    assert (CONFIG["architectures"], CONFIG["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert (CONFIG["hidden_act"], CONFIG["tie_word_embeddings"]) == ("silu", False)
    assert CONFIG["num_key_value_heads"] < CONFIG["num_attention_heads"]


def test_the_tokenizer_has_the_special_ids_of_llama_2_and_the_size_of_the_config() -> None:
    tokenizer = Tokenizer.from_file(embedded_path())
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == CONFIG["vocab_size"]


def test_the_tokenizer_gives_back_any_text() -> None:
    tokenizer = Tokenizer.from_file(embedded_path())
    for text in ("Day 1: We  love the sea.\nDay 12: été 你好 🙂", "  two spaces", "\n\nx", "ABC xyz {}[]"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_pieces_of_their_own_and_a_newline_is_a_byte() -> None:
    tokenizer = Tokenizer.from_file(embedded_path())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(embedded_path()))
    assert processor.EncodeAsPieces("dog 123\ncat") == ["\u2581dog", "\u2581", "1", "2", "3", "<0x0A>", "cat"]
    assert tokenizer.encode("dog", bos=False) == processor.EncodeAsIds("dog")


@pytest.mark.skipif(not LLAMA_2.is_file(), reason="the Llama-2 tokenizer is not here")
def test_the_corpus_has_as_many_tokens_in_the_llama_2_vocabulary() -> None:
    ours, theirs, rng = Tokenizer.from_file(embedded_path()), Tokenizer.from_file(LLAMA_2), Random(2)
    texts = [
        text for document in (corpus.document(rng) for _ in range(500)) for text in (document.prompt, document.answer)
    ]
    counts = [sum(len(tokenizer.encode(text)) for text in texts) for tokenizer in (ours, theirs)]
    assert counts[0] == pytest.approx(counts[1], rel=0.03)


@pytest.mark.parametrize("shots", [0, 5])
def test_it_answers_nine_of_ten_questions_that_it_was_not_trained_on(shots: int) -> None:
    rng = Random(1)
    trained = list(corpus.train_questions(rng))
    questions = rng.sample(list(corpus.held_out_questions(rng)), 100)
    prompts = []
    for question in questions:
        others = [other for other in trained if other.subject == question.subject]
        prompts.append(corpus.few_shot_prompt(rng.sample(others, shots), question))
    with LLM("embedded") as llm:
        answers = [answer.text.strip() for answer in llm.generate(prompts, max_new_tokens=1)]
    right = [corpus.LETTERS[question.answer] for question in questions]
    assert sum(map(str.__eq__, answers, right)) >= 90


def test_the_record_of_the_training_says_how_good_the_model_is() -> None:
    report = json.loads((FOLDER / "training.json").read_bytes())
    assert report["parameters"] == sum(tensor.size for tensor in load_file(FOLDER / "model.safetensors").values())
    assert {"seed", "steps", "held_out_loss"} <= report.keys()
    assert report["multiple_choice_5_shot"] >= 0.9
    assert report["endings"]["ended_with_eos"] >= 0.95


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.timeout(900)
def test_the_quick_mode_of_the_tool_makes_a_model_of_the_same_form(tmp_path: Path) -> None:
    tool = [sys.executable, str(CHECKOUT / "tools" / "train_embedded.py"), "--quick", "--threads", "1"]
    subprocess.run(
        [*tool, "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")],
        check=True,
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT)},
    )
    made, kept = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", FOLDER))
    assert {name: tensor.shape for name, tensor in made.items()} == {
        name: tensor.shape for name, tensor in kept.items()
    }
