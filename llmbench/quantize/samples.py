"""What flows through a model while it is observed: some samples of a dataset, as token ids."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from llmbench import evals, plugins
from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.weights.model import Model
from llmbench.workload import datasets, sources
from llmbench.workload.datasets import jsonl
from llmbench.workload.plan import Seeds

RANDOM = "random"
"""The name of samples of drawn token ids, for models without a vocabulary."""

_FLAG = "--calib"
_PRETOKENISED = "inputs_pretokenized"  # the field of MindIE's calibration files


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """`ids` has the tokens of each sample, the begin-of-sequence id in front; `sha256` is over all of them."""

    name: str
    description: str
    ids: tuple[tuple[int, ...], ...]
    sha256: str

    @property
    def num_tokens(self) -> int:
        """Of all samples."""
        return sum(map(len, self.ids))


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples: a dataset as `llmbench plan` takes it, a file with prompts as `inputs_pretokenized`, a set of
    `llmbench eval` (`ceval`, or `ceval:FOLDER`), or `random`. A sample is a prompt and its reference answer, if there
    is one, cut off behind `max_tokens`. `tokenizer` is the vocabulary where the model brings none.
    """

    dataset: str = "alpaca_521"
    num_samples: int = 32
    max_tokens: int = 512
    seed: int = 0
    tokenizer: Path | None = None


def load(wanted: Wanted, model: Model) -> Samples:
    """Draw the samples. Raises InputError for what is no dataset, or a vocabulary that is not the model's."""
    rng = np.random.default_rng(wanted.seed)
    longest = min(wanted.max_tokens, model.config.max_positions)
    if wanted.dataset == RANDOM:
        shape = (wanted.num_samples, longest)
        drawn: list[list[int]] = rng.integers(0, model.config.vocab_size, shape).tolist()
        return _samples(RANDOM, "drawn token ids", drawn)
    tokenizer = _tokenizer(wanted, model)
    description, texts = _texts(wanted, tokenizer)
    chosen = set(rng.permutation(len(texts))[: wanted.num_samples].tolist())
    ids = [_ids(text, tokenizer)[:longest] for i, text in enumerate(texts) if i in chosen]
    largest = max(map(max, ids))
    if largest >= model.config.vocab_size:
        raise InputError(
            f"{_FLAG} {wanted.dataset}: token id {largest} is outside the vocabulary of {model.config.vocab_size}; is"
            f" {tokenizer.source} the vocabulary of model {model.name}?"
        )
    return _samples(wanted.dataset, description, ids)


def _samples(name: str, description: str, ids: Sequence[Sequence[int]]) -> Samples:
    digest = hashlib.sha256(msgspec.json.encode(ids)).hexdigest()
    return Samples(name=name, description=description, ids=tuple(map(tuple, ids)), sha256=digest)


def _tokenizer(wanted: Wanted, model: Model) -> Tokenizer:
    path = wanted.tokenizer or model.tokenizer_path
    if path is None:
        raise InputError(
            f"model {model.name} brings no tokenizer.model: give one with --tokenizer, or take drawn token ids with"
            f" {_FLAG} {RANDOM}"
        )
    return Tokenizer.from_file(path)


def _ids(text: tuple[str, str], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text[0]) + tokenizer.encode(text[1], bos=False)


def _texts(wanted: Wanted, tokenizer: Tokenizer) -> tuple[str, list[tuple[str, str]]]:
    """What the dataset is, and its prompts with their answers."""
    need = sources.need(
        wanted.num_samples,
        tokenizer,
        Seeds(schedule=wanted.seed, prompts=wanted.seed, lengths=wanted.seed, sampling=wanted.seed),
    )
    name, _, folder = wanted.dataset.partition(":")
    if name in plugins.names("evals"):
        found = _questions(name, folder, tokenizer)
        return f"{len(found)} questions of {name}", [(prompt, "") for prompt in found]
    path = Path(wanted.dataset)
    if path.is_file() and path.suffix == ".jsonl" and _PRETOKENISED in sources.records(path)[0][1]:
        turns = jsonl.Source(path=path, prompt=_PRETOKENISED).samples(need)
        return f"{path}, {len(turns)} samples", [(turn.prompt, turn.output) for turn in turns]
    loaded = sources.load(wanted.dataset, need, _FLAG)
    return loaded.description, [(sample.prompt, sample.output) for sample in loaded.samples]


def _questions(name: str, folder: str, tokenizer: Tokenizer) -> list[str]:
    """The prompts of a set of questions. Raises InputError when its files are not there."""
    options = evals.Options(count_tokens=lambda text: len(tokenizer.encode(text)))
    standard = datasets.mmlu().path if name == datasets.MMLU else datasets.folder() / name
    return [item.asks[0].prompt for item in evals.get(name, options).items(Path(folder) if folder else standard)]
