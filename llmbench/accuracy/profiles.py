"""How much a row may differ: named sets of limits, each with where it comes from; or such a set in a file.

The sources are read in accuracy-methods, section 5.4: MAX is Modular's verify_pipelines, Neuron is AWS Neuron's
logit_validation, MindIE its modeltest, llama.cpp its `--kl-divergence` scoreboard. A limit is on a figure of
`judge.FIGURES`. One that no single value of a row decides can be kept by rows of which only the largest values are
known; one that does is not decided by them.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from llmbench import config, plugins
from llmbench.errors import ConfigError, InputError

Figure = Literal[
    "not_equal",
    "not_close",
    "kld_mean",
    "kld_max",
    "kld_p999",
    "kld_share",
    "one_minus_cos",
    "max_abs_free",
    "flips_unexplained",
    "top1",
    "delta_p_rms",
    "delta_p_p01",
    "flips_batched",
    "at_load",
]
_SUFFIXES = (".yaml", ".yml")


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure and its limit, which it must not pass on the wrong side. `source` says who set it.

    `whole` ones need every value of every row; where they have to be decided for a verdict, `required` says so.
    """

    figure: Figure
    limit: float
    source: str
    bound: Literal["at most", "at least"] = "at most"
    required: bool = True


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A set of gates. A changed top token is explained when the base's two largest logits were no further apart than
    `margin`: then rounding in that precision could have changed it. At least `comparable` of the rows must have seen
    the same tokens on both sides; otherwise nothing is known of most of the answers.
    """

    gates: tuple[Gate, ...]
    margin: Annotated[float, msgspec.Meta(ge=0)]
    for_what: str
    comparable: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


_NEURON = "Neuron's divergence tolerance"

_FP16 = (
    Gate("kld_mean", 1e-4, "MindIE, a tenth of its limit for the largest"),
    Gate("kld_max", 1e-3, "MindIE: greatest KL 1e-3"),
    Gate("kld_share", 0.005, "MindIE: 0.5 % of steps above 1e-4"),
    Gate("flips_unexplained", 0, f"{_NEURON} for float16, 0.02"),
    Gate("top1", 0.995, "Neuron", "at least"),
)

_AT_LOAD = Gate("at_load", 0.9, "accuracy-methods, weakness 1: 90 % of the rows at half the load's batch", "at least")

PROFILES: dict[str, Profile] = {
    "bitwise": Profile(
        for_what="the same bits in every value, as vLLM's batch-invariance tests ask",
        gates=(Gate("not_equal", 0, "vLLM's batch-invariance tests"),),
        margin=0.0,
    ),
    "contest": Profile(
        for_what="the rule of the contest: |new - base| <= 0.005 + 1e-5 |base| for every value",
        gates=(Gate("not_close", 0, "the contest's acc_allclose.py"),),
        margin=0.02,
        comparable=0.0,
    ),
    "fp32": Profile(
        for_what="float32 engines",
        gates=(
            Gate("kld_mean", 1e-5, "MAX, Llama 3 in float32: 7e-6 to 1.5e-5"),
            Gate("kld_max", 1e-4, "ten times the mean"),
            Gate("one_minus_cos", 1e-5, "MAX, Llama 3 in float32: 2.6e-6 to 3.3e-6", required=False),
            Gate("max_abs_free", 3e-2, "MAX, Llama 3 in float32: 2.4e-2 to 2.9e-2", required=False),
            Gate("flips_unexplained", 0, f"{_NEURON} for float32, 1e-3"),
        ),
        margin=1e-3,
    ),
    "fp16": Profile(for_what="float16 engines", gates=_FP16, margin=0.02),
    "bf16": Profile(
        for_what="bfloat16 engines",
        gates=(
            Gate("kld_mean", 1e-3, "five times what rounding the logits alone costs; MAX allows 5e-3 to 1.3e-1"),
            Gate("kld_p999", 3e-2, "thirty times what rounding the logits alone costs at most"),
            Gate("flips_unexplained", 0, f"{_NEURON} for bfloat16, 0.13"),
            Gate("top1", 0.99, "Neuron", "at least"),
        ),
        margin=0.13,
    ),
    "w8": Profile(
        for_what="weights of 8 bits",
        gates=(
            Gate("kld_mean", 2e-3, "llama.cpp q8_0: 3.7e-4 (Llama 2 7B) to 1.36e-3 (Llama 3 8B)"),
            Gate("top1", 0.975, "llama.cpp q8_0 on Llama 3 8B: 97.7 %", "at least"),
            Gate("delta_p_rms", 0.013, "llama.cpp q8_0: 0.62 % to 1.20 %"),
        ),
        margin=0.13,
    ),
    "w4": Profile(
        for_what="weights of 4 bits",
        gates=(
            Gate("kld_mean", 3.5e-2, "llama.cpp q4_K_M: 1.27e-2 (Llama 2 7B) to 3.13e-2 (Llama 3 8B)"),
            Gate("top1", 0.91, "llama.cpp q4_K_M: 91.9 %", "at least"),
            Gate("delta_p_rms", 0.06, "llama.cpp q4_K_M: 3.25 % to 5.52 %"),
            Gate("delta_p_p01", -0.20, "llama.cpp q4_K_M: -19.6 %", "at least"),
        ),
        margin=0.13,
    ),
    "serving": Profile(
        for_what="rows captured under load: float16's limits, and what only larger batches do",
        gates=(
            *_FP16,
            Gate("flips_batched", 0.005, "as many as the top-1 agreement allows"),
            _AT_LOAD,
        ),
        margin=0.02,
    ),
}

_BY_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_INT8_ACTIVATIONS = ("w8a8", "kv8")


def get(name: str) -> Profile:
    """A profile by name, or that in a YAML file. Raises InputError for an unknown one, ConfigError for a wrong file."""
    if name.endswith(_SUFFIXES):
        return load(Path(name))
    if name not in PROFILES:
        raise InputError(f"--profile: {plugins.unknown('profile', name, list(PROFILES))}; or give a .yaml file")
    return PROFILES[name]


def load(path: Path) -> Profile:
    """The profile in a file, such as `acc calibrate` writes. Raises ConfigError `file: key: what is wrong`."""
    profile = config.build(config.read(path), Profile, str(path))
    if not profile.gates:
        raise ConfigError(f"{path}: gates: there is none, so that everything would pass")
    return profile


def under_load(profile: Profile) -> Profile:
    """The same, and that the rows were computed in the batches of the load that they stand for."""
    if _AT_LOAD in profile.gates:
        return profile
    return msgspec.structs.replace(profile, gates=(*profile.gates, _AT_LOAD))


def for_dtype(dtype: str, quantisation: str = "") -> str:
    """The name of the profile of engines that compute logits in `dtype`; the strictest of them for another one.

    Two that compute the same model with activations of 8 bits round a few of them to other numbers, whatever the dtype
    of the rest: as much as bfloat16 does, which has as many bits.
    """
    if any(kind in quantisation for kind in _INT8_ACTIVATIONS):
        return "bf16"
    return _BY_DTYPE.get(dtype, "fp32")


def for_sides(dtype: str, base: str, new: str) -> str:
    """The same for a base that computes in `dtype` and another side, by what of their models is of 8 bits.

    Sparse weights of W8A8S lie on a grid of 4 bits.
    """
    if base == new:
        return for_dtype(dtype, base)
    return "w4" if any("w8a8s" in side for side in (base, new)) else "w8"
