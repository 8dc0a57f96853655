"""Trains the embedded model and its tokenizer from scratch on our own text, and measures it as rounded to float16.

    python tools/train_embedded.py --work DIR [--steps N] [--output DIR] [--quick]

An interrupted run goes on from its last checkpoint in `--work`. Needs torch (extra `oracle`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from llmbench.workload import corpus

LETTER_WEIGHT, HELP_WEIGHT, PROMPT_WEIGHT, END_WEIGHT = 8.0, 4.0, 0.1, 3.0
SCORE_LIMIT, SCORE_WEIGHT = 20.0, 0.004  # what attention scores may reach, and what each unit above costs
ANSWER_STAGE, CHOICE_STAGE = 1, 2  # the layers whose output the helping losses look at


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of the model; together under 3 million parameters."""

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How it is trained."""

    seed: int = 20240
    steps: int = 1800
    micro_tokens: int = 2048
    micro_batches: int = 2
    pool_documents: int = 1024
    muon_lr: float = 0.015
    adam_lr: float = 0.003
    warmup: int = 40
    decay_share: float = 0.4
    tokenizer_documents: int = 30000
    measured_documents: int = 600
    measured_questions: int = 1000  # at most
    measured_answers: int = 100
    answer_limit: int = 900


QUICK = Recipe(
    steps=8,
    micro_tokens=1024,
    pool_documents=200,
    tokenizer_documents=4000,
    measured_documents=40,
    measured_questions=24,
    measured_answers=2,
    answer_limit=50,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The mixture of a part of the training, up to a pool: shares of documents, and the weight of their text."""

    pools: int
    records: float
    asked: float
    binding: float
    text_weight: float


STAGES = (
    Stage(pools=14, records=0.05, asked=0.0, binding=0.3, text_weight=0.5),  # how a choice is bound to its letter
    Stage(pools=24, records=0.3, asked=0.0, binding=0.1, text_weight=0.5),  # the facts
    Stage(pools=46, records=0.65, asked=0.0, binding=0.03, text_weight=3.0),  # to answer instructions, when to end
    Stage(pools=10**6, records=0.35, asked=0.35, binding=0.03, text_weight=3.0),  # to tell the facts
)


# --- model: the LLaMA-2 architecture, its tensors named as Hugging Face names them -----------------------------------


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden_size))
        self.eps = shape.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (half-split)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.num_key_value_heads * shape.head_dim
        self.q_proj = _linear(shape.hidden_size, shape.hidden_size)
        self.k_proj = _linear(shape.hidden_size, kv_width)
        self.v_proj = _linear(shape.hidden_size, kv_width)
        self.o_proj = _linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention over whole sequences."""
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.shape.head_dim)
        q = _rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        self.excess = _excess(q, k, groups)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = _attend(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def _excess(q: Tensor, k: Tensor, groups: int) -> Tensor:
    """How far the bound |q| |k| / sqrt(dim) of each head's scores is above SCORE_LIMIT, on average over the heads.

    Large scores make a model that no float32 engine computes alike: without this its logits were 3e-4 apart between
    float32 and float64, with it 4e-5.
    """
    longest = [x.float().norm(dim=-1).amax(dim=(0, 2)) for x in (q, k)]
    bound = longest[0] * longest[1].repeat_interleave(groups) * q.shape[-1] ** -0.5
    return functional.relu(bound - SCORE_LIMIT).mean()


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; for short sequences the plain products are two to three times as fast on a CPU."""
    length = q.shape[2]
    if length > 400:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = torch.full((length, length), -1e4, dtype=q.dtype).triu(1)
    shares: Tensor = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + hidden).softmax(-1)
    return shares.to(v.dtype) @ v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = _linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = _linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """down(silu(gate(x)) * up(x))."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention, then the feed-forward part, each added to the stream."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Everything below the head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape)


class Model(nn.Module):
    """The whole model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = _linear(shape.hidden_size, shape.vocab_size)
        half = shape.head_dim // 2
        frequencies = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(shape.max_position_embeddings, dtype=torch.float32)[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Random weights, but for attention that looks back a few places (layer 0) or at like content (the others)."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.25 if "embed" in name else 0.5 * weight.shape[1] ** -0.5)
        self.model.embed_tokens.weight[:, 0] = 1.0  # the constant that attention by place alone needs
        self.lm_head.weight.copy_(self.model.embed_tokens.weight * 0.2)
        self.lm_head.weight[:, 0] = 0.0
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        layers = [layer for layer in self.model.layers if isinstance(layer, Layer)]
        for layer in layers:
            _copying(layer.self_attn, self.shape, groups)
        for layer in layers[1:]:
            key = layer.self_attn.k_proj.weight
            nn.init.normal_(key, std=1.3 * key.shape[1] ** -0.5)
            heads = key.view(self.shape.num_key_value_heads, self.shape.head_dim, -1)
            layer.self_attn.q_proj.weight.copy_(heads.repeat_interleave(groups, 0).reshape(-1, key.shape[1]))
        _look_back(layers[0].self_attn, self.shape, groups)

    def hidden(self, ids: Tensor) -> Tensor:
        """The normalised last hidden states, (batch, length, hidden)."""
        return self.stages(ids)[-1]

    def stages(self, ids: Tensor) -> list[Tensor]:
        """The normalised hidden states after each layer."""
        cos, sin = self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]]
        x: Tensor = self.model.embed_tokens(ids)
        stages = []
        for layer in self.model.layers:
            x = layer(x, cos, sin)
            stages.append(self.model.norm(x))
        return stages

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every position."""
        logits: Tensor = self.lm_head(self.hidden(ids))
        return logits


def _copying(attention: Attention, shape: Shape, heads: int) -> None:
    """Values and output that copy what is looked at: W_o = W_v transposed."""
    nn.init.normal_(attention.v_proj.weight, std=shape.hidden_size**-0.5)
    values = attention.v_proj.weight.view(shape.num_key_value_heads, shape.head_dim, -1)
    attention.o_proj.weight.copy_(values.repeat_interleave(heads, 0).reshape(-1, shape.hidden_size).T * 0.5)


def _look_back(attention: Attention, shape: Shape, heads: int) -> None:
    """Heads 0, 1, ... of the first key head look 1, 2, ... places back: score = sum of cos(f * (distance - back))."""
    half, strength, used = shape.head_dim // 2, 1.7, 6
    frequencies = (shape.rope_theta ** (-torch.arange(half) / half))[:used]
    attention.k_proj.weight[: 2 * half].zero_()
    attention.k_proj.weight[:used, 0] = strength
    for head in range(heads):
        rows = attention.q_proj.weight[2 * half * head : 2 * half * (head + 1)]
        rows.zero_()
        rows[:used, 0] = strength * torch.cos(frequencies * (head + 1))
        rows[half : half + used, 0] = -strength * torch.sin(frequencies * (head + 1))


# --- tokenizer -------------------------------------------------------------------------------------------------------


def train_tokenizer(path: Path, recipe: Recipe, shape: Shape) -> None:
    """A sentencepiece model with the settings of LLaMA-2 and a smaller vocabulary."""
    rng = Random(f"{recipe.seed}/tokenizer")
    documents = (corpus.document(rng) for _ in range(recipe.tokenizer_documents))
    # a digit is always a piece of its own, so in place of a newline it leaves the next word without a space in front
    lines = (text.replace("\n", "1") for d in documents for text in (d.prompt, d.answer) if text)
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=file,
            model_type="bpe",
            vocab_size=shape.vocab_size,
            hard_vocab_limit=True,
            character_coverage=1.0,
            byte_fallback=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=20000,
            required_chars="".join(chr(code) for code in range(33, 127)),
            num_threads=1,
            minloglevel=2,
        )


def load_tokenizer(path: Path) -> Any:
    """The sentencepiece processor of a file."""
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Example:
    """A document's ids, the loss weight of predicting each, and what the helping losses say of some places."""

    ids: list[int]
    weights: list[float]
    answers: list[tuple[int, int]]  # (end of a question, id of the answer's last piece)
    rights: list[tuple[int, float]]  # (end of a choice, 1 when it is the right one)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded examples; the places of the helping losses count through the flattened batch."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    answers: Tensor
    rights: Tensor


class Encoder:
    """Turns documents into ids and the weight of each next-token loss."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.letters = [tokenizer.encode(letter)[0] for letter in corpus.LETTERS]
        self.names = [tokenizer.piece_to_id(letter) for letter in corpus.LETTERS]
        self.newline = tokenizer.piece_to_id("<0x0A>")

    def prompt(self, text: str) -> list[int]:
        """The ids of a prompt as the server encodes it."""
        return [1, *self.tokenizer.encode(text)]

    def example(self, document: corpus.Document, text_weight: float) -> Example:
        """Ids of the whole document, and the loss weight of predicting each of them."""
        prompt = self.prompt(document.prompt)
        ids = [*prompt, *self.tokenizer.encode(document.answer), 2]
        if not document.is_choice:
            answer = [text_weight] * (len(ids) - len(prompt) - 1)
            weights = [PROMPT_WEIGHT] * len(prompt) + answer + [END_WEIGHT * text_weight]
            return Example(ids=ids, weights=weights, answers=[], rights=[])
        # a letter with a space in front is an answer, not the name of a choice
        weights = [LETTER_WEIGHT if token in self.letters else 0.0 for token in ids[:-1]] + [1.0]
        answers, rights = self._places(ids)
        return Example(ids=ids, weights=weights, answers=answers, rights=rights)

    def _places(self, ids: list[int]) -> tuple[list[tuple[int, int]], list[tuple[int, float]]]:
        """Where the questions and the choices of a document end."""
        answers: list[tuple[int, int]] = []
        rights: list[tuple[int, float]] = []
        lines = [place for place, token in enumerate(ids) if token == self.newline]
        for first in range(len(lines) - 4):
            starts = lines[first : first + 4]
            if [ids[place + 1] for place in starts] != self.names:
                continue
            ends = [place - 1 for place in lines[first + 1 : first + 5]]
            letter = next(token for token in ids[ends[-1] :] if token in self.letters)
            right = self.letters.index(letter)
            answers.append((starts[0], ids[ends[right]]))
            rights += [(end, float(choice == right)) for choice, end in enumerate(ends)]
        return answers, rights


def micro_batches(examples: Sequence[Example], tokens: int, rng: Random) -> list[Batch]:
    """Examples of like length together, at most `tokens` ids with padding, in random order."""
    groups: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda item: len(item.ids)):
        if (len(groups[-1]) + 1) * len(example.ids) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(example)
    rng.shuffle(groups)
    return [_padded(group) for group in groups]


def _padded(group: Sequence[Example]) -> Batch:
    length = max(len(example.ids) for example in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    answers: list[tuple[int, int]] = []
    rights: list[tuple[int, float]] = []
    for row, example in enumerate(group):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
        answers += [(row * (length - 1) + place, token) for place, token in example.answers]
        rights += [(row * (length - 1) + place, truth) for place, truth in example.rights]
    return Batch(
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        weights=weights[:, 1:],
        answers=torch.tensor(answers, dtype=torch.long).reshape(-1, 2),
        rights=torch.tensor(rights, dtype=torch.float32).reshape(-1, 2),
    )


def batches(encoder: Encoder, recipe: Recipe) -> Iterator[Batch]:
    """The endless training data; a function of the seed alone."""
    pool = 0
    while True:
        rng = Random(f"{recipe.seed}/pool/{pool}")
        stage = next(stage for stage in STAGES if pool < stage.pools)
        shares = (stage.records, stage.binding, stage.asked)
        documents = (corpus.document(rng, *shares) for _ in range(recipe.pool_documents))
        examples = [encoder.example(document, stage.text_weight) for document in documents]
        yield from micro_batches(examples, recipe.micro_tokens, rng)
        pool += 1


def weighted_loss(model: Model, batch: Batch, probe: nn.Linear | None = None) -> Tensor:
    """Sum of weight times cross entropy over the positions that count; with a probe, the helping losses too."""
    counted = (batch.weights > 0).flatten().nonzero()[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stages = model.stages(batch.inputs)
        logits = model.lm_head(stages[-1].flatten(0, 1).index_select(0, counted))
    losses = functional.cross_entropy(logits.float(), batch.targets.flatten()[counted], reduction="none")
    loss = (losses * batch.weights.flatten()[counted]).sum()
    if probe is not None:
        attentions = (layer.self_attn for layer in model.model.layers if isinstance(layer, Layer))
        loss = loss + SCORE_WEIGHT * batch.weights.sum() * torch.stack([each.excess for each in attentions]).sum()
    return loss if probe is None or not len(batch.answers) else loss + _helping_loss(model, batch, probe, stages)


def _helping_loss(model: Model, batch: Batch, probe: nn.Linear, stages: Sequence[Tensor]) -> Tensor:
    """Choosing in two easier steps, each in its layer: the question's end knows the answer, the right choice knows it.

    Without them a model as small as this takes far longer to see how the letters come about. The probe is not kept.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        words = model.lm_head(stages[ANSWER_STAGE].flatten(0, 1).index_select(0, batch.answers[:, 0])).float()
        truths = probe(stages[CHOICE_STAGE].flatten(0, 1).index_select(0, batch.rights[:, 0].long())).float()[:, 0]
    known = functional.cross_entropy(words, batch.answers[:, 1], reduction="sum")
    positive = torch.tensor(3.0)  # three of four choices are wrong
    right = functional.binary_cross_entropy_with_logits(
        truths, batch.rights[:, 1], reduction="sum", pos_weight=positive
    )
    return HELP_WEIGHT * (known + right)


# --- training --------------------------------------------------------------------------------------------------------


class Optimisers:
    """Muon for the matrices of the layers, AdamW for embedding, head and norms."""

    def __init__(self, model: Model, probe: nn.Linear, recipe: Recipe) -> None:
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in chosen] + list(probe.parameters())
        self.recipe = recipe
        self.muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01, momentum=0.95)
        self.adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, step: int) -> None:
        """One update at the rate of this step: warm-up, plateau, linear decay."""
        done = step / self.recipe.steps
        factor = min(1.0, (step + 1) / self.recipe.warmup, (1 - done) / self.recipe.decay_share)
        for optimiser, rate in ((self.muon, self.recipe.muon_lr), (self.adam, self.recipe.adam_lr)):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def save_checkpoint(path: Path, model: Model, probe: nn.Linear, optimisers: Optimisers, step: int) -> None:
    """Write the state whole or not at all."""
    temporary = path.with_suffix(".part")
    state = {"model": model.state_dict(), "probe": probe.state_dict(), "optimisers": optimisers.state(), "step": step}
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(model: Model, encoder: Encoder, recipe: Recipe, checkpoint: Path) -> float:
    """Train to the last step; returns tokens per second of this session."""
    probe = nn.Linear(model.shape.hidden_size, 1)
    optimisers, first = Optimisers(model, probe, recipe), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        probe.load_state_dict(state["probe"])
        optimisers.restore(state["optimisers"])
        first = state["step"]
        print(f"resumed at step {first}", flush=True)
    data = batches(encoder, recipe)
    for _ in range(first * recipe.micro_batches):
        next(data)
    started, seen, sums = time.monotonic(), 0, [0.0, 0.0]
    for step in range(first, recipe.steps):
        group = [next(data) for _ in range(recipe.micro_batches)]
        total_weight = float(sum(batch.weights.sum() for batch in group))
        for batch in group:
            loss = weighted_loss(model, batch, probe)
            (loss / total_weight).backward()
            sums[0] += loss.item()
            seen += int(batch.inputs.numel())
        sums[1] += total_weight
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimisers.step(step)
        if (step + 1) % 25 == 0:
            rate = seen / (time.monotonic() - started)
            left = (time.monotonic() - started) / (step + 1 - first) * (recipe.steps - step - 1)
            print(f"step {step + 1} loss {sums[0] / sums[1]:.4f} {rate:.0f} tokens/s ETA {left:.0f} s", flush=True)
            sums = [0.0, 0.0]
        if (step + 1) % 50 == 0:
            save_checkpoint(checkpoint, model, probe, optimisers, step + 1)
        if (step + 1) % 250 == 0:
            print(f"  held-out multiple choice, 0-shot {choice_accuracy(model, encoder, 0, Random(1)):.3f}", flush=True)
    return seen / max(time.monotonic() - started, 1e-9)


# --- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def choice_accuracy(model: Model, encoder: Encoder, shots: int, rng: Random, most: int = 1000) -> float:
    """Share of held-out questions whose most probable next token is the right letter."""
    prompts, truths = held_out_prompts(shots, rng)
    rows = [encoder.prompt(prompt) for prompt in prompts[:most]]
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    right = 0
    for start in range(0, len(order), 32):
        group = order[start : start + 32]
        length = max(len(rows[n]) for n in group)
        ids = torch.tensor([rows[n] + [0] * (length - len(rows[n])) for n in group])
        last = torch.tensor([len(rows[n]) - 1 for n in group])
        best = model.lm_head(model.hidden(ids)[torch.arange(len(group)), last]).argmax(-1).tolist()
        right += sum(int(best[i] == encoder.letters[truths[n]]) for i, n in enumerate(group))
    return right / len(rows)


def held_out_prompts(shots: int, rng: Random) -> tuple[list[str], list[int]]:
    """Prompts of the held-out questions, with trained questions of the subject as shots, and the right answers."""
    trained = list(corpus.train_questions(rng))
    prompts: list[str] = []
    truths: list[int] = []
    for question in corpus.held_out_questions(rng):
        pool = [other for other in trained if other.subject == question.subject]
        prompts.append(corpus.few_shot_prompt(rng.sample(pool, shots), question))
        truths.append(question.answer)
    return prompts, truths


@torch.no_grad()
def held_out_loss(model: Model, encoder: Encoder, recipe: Recipe) -> float:
    """Mean weighted loss on documents of another seed."""
    rng = Random(f"{recipe.seed}/held out")
    examples = [encoder.example(corpus.document(rng), 1.0) for _ in range(recipe.measured_documents)]
    groups = micro_batches(examples, recipe.micro_tokens, rng)
    return float(sum(weighted_loss(model, b) for b in groups)) / float(sum(b.weights.sum() for b in groups))


@torch.no_grad()
def greedy(model: Model, ids: list[int], limit: int) -> list[int]:
    """Greedy continuation up to and with eos, or `limit` tokens."""
    answer: list[int] = []
    while len(answer) < limit and (not answer or answer[-1] != 2):
        hidden = model.hidden(torch.tensor([ids + answer]))
        answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
    return answer


def ending(model: Model, encoder: Encoder, recipe: Recipe) -> dict[str, float]:
    """How greedy answers to new instructions end: share with eos, and their length against the data's."""
    rng = Random(f"{recipe.seed}/ending")
    number = recipe.measured_answers
    records = [corpus.random_record(rng) for _ in range(number)]
    answers = [greedy(model, encoder.prompt(record.prompt), recipe.answer_limit) for record in records]
    ended = sum(answer[-1] == 2 for answer in answers)
    given = sum(len(answer) for answer in answers)
    wanted = sum(len(encoder.tokenizer.encode(record.output)) + 1 for record in records)
    return {"prompts": number, "ended_with_eos": ended / number, "length_ratio": round(given / wanted, 4)}


# --- files -----------------------------------------------------------------------------------------------------------


def write_model(folder: Path, model: Model, shape: Shape) -> None:
    """model.safetensors in float16 and config.json."""
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def measure(model: Model, encoder: Encoder, recipe: Recipe) -> dict[str, Any]:
    """What training.json says of the quality, measured on the rounded weights."""
    questions = min(recipe.measured_questions, len(list(corpus.held_out_questions(Random(0)))))
    return {
        "held_out_loss": round(held_out_loss(model, encoder, recipe), 4),
        "multiple_choice_0_shot": round(choice_accuracy(model, encoder, 0, Random(recipe.seed), questions), 4),
        "multiple_choice_5_shot": round(choice_accuracy(model, encoder, 5, Random(recipe.seed), questions), 4),
        "multiple_choice_questions": questions,
        "endings": ending(model, encoder, recipe),
    }


def main() -> None:
    """Parse, train, round, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    default = Path(__file__).parents[1] / "llmbench" / "weights" / "embedded"
    parser.add_argument("--output", type=Path, default=default, help="folder of the finished model")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="seconds to a minute: a poor model, to try the tool")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = Shape()
    recipe = QUICK if arguments.quick else Recipe(steps=arguments.steps)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    vocabulary = arguments.output / "tokenizer.model"
    if not vocabulary.exists():  # kept otherwise: a new model keeps its ids
        train_tokenizer(vocabulary, recipe, shape)
    encoder = Encoder(load_tokenizer(vocabulary))
    torch.manual_seed(recipe.seed)
    model = Model(shape)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {math.ceil(parameters * 2 / 1e3)} kB in float16", flush=True)
    rate = train(model, encoder, recipe, arguments.work / "checkpoint.pt")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float16).to(torch.float32)
    write_model(arguments.output, model, shape)
    report = {
        **asdict(recipe),
        "parameters": parameters,
        "tokens_per_second": round(rate),
        **measure(model, encoder, recipe),
    }
    (arguments.output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2), flush=True)


if __name__ == "__main__":
    main()
