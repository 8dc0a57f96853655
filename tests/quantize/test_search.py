"""Which form is tried next, which forms are on the front, and a whole search on the embedded model."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from msgspec import structs
from typer.testing import CliRunner

from llmbench.accuracy import heldout
from llmbench.cli import app
from llmbench.errors import InputError
from llmbench.metrics.front import Scored, beats, front
from llmbench.quantize import search
from llmbench.quantize.choose import Choice
from llmbench.quantize.samples import Samples
from llmbench.quantize.search import Outcome, Space, Trial
from llmbench.quantize.sparse import Knobs
from llmbench.weights.model import open_model

SPACE = Space(kinds=("W8A8", "W8A8S"), methods=("none", "m1"), num_layers=4)
SMALL = (
    *("--kinds", "w8a8,w8a8s", "--methods", "m1", "-n", "4", "--num-held-out", "3", "--max-tokens", "40"),
    *("--batch", "2", "--input", "8", "--output", "4", "--repeats", "1", "--quiet"),
    *("--engine", "numpy_llama"),
)


def quantize(*arguments: object, code: int = 0) -> str:
    """What `llmbench quantize …` prints; its exit code is looked at."""
    done = CliRunner().invoke(app(), ["quantize", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def outcome(trial: Trial, kld: float = 1.0, failed: str = "", worst: str | None = None) -> Outcome:
    return Outcome(trial=trial, scored=Scored(name=trial.name, kind=trial.kind, kld=kld, failed=failed), worst=worst)


def walk(num: int, klds: dict[tuple[str, str], float], worst: str | None = None) -> list[Trial]:
    """The first trials of a search in which each kind and method has this KLD."""
    found: dict[Trial, Outcome] = {}
    for _ in range(num):
        trial = search.upcoming(SPACE, found)
        assert trial is not None
        found[trial] = outcome(trial, klds.get((trial.kind, trial.method), 1.0), worst=worst)
    return list(found)


def test_kinds_and_methods_come_first_then_what_refines_the_best_of_each_kind() -> None:
    best = {("W8A8", "m1"): 0.1, ("W8A8S", "none"): 0.2}
    first = walk(14, best)
    assert [(trial.kind, trial.method) for trial in first[:4]] == [
        ("W8A8", "none"),
        ("W8A8S", "none"),
        ("W8A8", "m1"),
        ("W8A8S", "m1"),
    ]
    assert {(trial.kind, trial.method) for trial in first[4:]} == set(best)
    own = [trial for trial in first[4:] if trial.kind == "W8A8"]
    assert [trial.choice for trial in own] == [Choice(level=n) for n in (1, 2, 4)] + [Choice(down=True)]
    assert Knobs(fraction=0.1) in [trial.knobs for trial in walk(16, best)]


def test_then_the_input_with_the_largest_error_becomes_float_one_after_another() -> None:
    trials = walk(17, {}, worst="model.layers.1.mlp.down_proj")
    last = trials[-1]
    assert last.choice.linears[:1] == (r"model\.layers\.1\.mlp\.down_proj$",)
    assert re.search(last.choice.linears[0], "model.layers.1.mlp.down_proj")


def test_a_search_comes_to_its_end_and_never_tries_a_form_twice() -> None:
    found: dict[Trial, Outcome] = {}
    while (trial := search.upcoming(SPACE, found)) is not None:
        assert trial not in found
        found[trial] = outcome(trial, kld=len(found), worst="model.layers.0.mlp.up_proj" if len(found) % 3 else None)
    assert 15 < len(found) < 60
    assert len({trial.name + str(trial.choice) for trial in found}) == len(found)


def test_forms_that_cannot_be_made_are_left_alone() -> None:
    found: dict[Trial, Outcome] = {}
    while (trial := search.upcoming(SPACE, found)) is not None:
        found[trial] = outcome(trial, failed="no")
    assert len(found) == 4


def test_what_a_form_needs_are_flags_of_quantize() -> None:
    trial = Trial(
        kind="W8A8S",
        method="m4",
        choice=Choice(level=2, down=True, linears=("q_proj$",)),
        knobs=Knobs(sigma_factor=3.0, nonuniform=True),
    )
    assert " ".join(trial.flags()) == (
        "--sparse --anti m4 --disable-level L2 --rollback-down --float-linears q_proj$ --sigma-factor 3 --nonuniform"
    )
    assert Trial(kind="W8A16", method="none").flags() == ["--kind", "w8a16", "--anti", "none", "--no-rollback-down"]


def scored(name: str, size: int, speed: float, kld: float, failed: str = "") -> Scored:
    one = Scored(name=name, kind="W8A8", num_bytes=size, kld=kld, failed=failed)
    return structs.replace(one, speed=speed, speed_slowest=speed - 1, speed_fastest=speed + 1)


def test_the_front_has_what_nothing_beats_in_all_respects() -> None:
    found = [
        scored("float", 400, 100, 0.0),
        scored("small", 100, 100, 0.1),
        scored("near", 200, 102, 0.01),
        scored("beaten", 210, 101, 0.02),
        scored("fast", 300, 150, 0.02),
        scored("broken", 1, 1000, 0.0, failed="no"),
    ]
    assert [one.name for one in front(found)] == ["small", "near", "fast", "float"]
    assert not beats(found[1], found[1])
    assert beats(scored("a", 1, 110, 0.1), scored("b", 1, 100, 0.1))
    assert not beats(scored("a", 1, 106, 0.1), scored("b", 1, 100, 0.1)), "as fast, as far as can be told"


def samples(name: str, *texts: int) -> Samples:
    return Samples(name=name, description="", ids=tuple((1, text) for text in texts), sha256="")


def test_no_text_is_judged_by_that_the_model_was_calibrated_with() -> None:
    calibration = samples("a", 1, 2, 3)
    assert search.held_out(calibration, samples("a", 3, 4, 4, 1, 5, 6), 2) == [(1, 4), (1, 5)]
    with pytest.raises(InputError, match="no text is left to judge by"):
        search.held_out(calibration, samples("a", 1, 3), 2)


def test_a_search_makes_judges_and_shows_forms_and_goes_on_where_it_was(tmp_path: Path) -> None:
    said = quantize("search", "embedded", *SMALL, "--budget", "2", "--results", tmp_path)
    folder = Path(said.split("files: ")[1].strip())
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 4, "a header, the float model, two forms"
    head = json.loads(lines[0])
    assert len(head["held_out"]) == 3
    told = json.loads((folder / "search.json").read_text())["forms"]
    base, w8a8, w8a8s = told
    assert (base["kld"], base["top1"], base["num_rows"]) == (0.0, 1.0, sum(map(len, head["held_out"])))
    assert 0 < w8a8["kld"] < w8a8s["kld"]
    assert w8a8s["num_bytes"] < w8a8["num_bytes"] < 0.7 * base["num_bytes"]
    assert all(one["decode_tokens_per_s"] > 0 for one in told)
    assert w8a8["command"].startswith("llmbench quantize embedded -o OUT --kind w8a8 --anti m1 ")
    rows = list(csv.DictReader((folder / "search.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["float", "W8A8 m1", "W8A8S m1"]
    page = (folder / "search.html").read_text()
    assert page.count('class="dots') == 6
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert not (folder / "work").exists()
    assert distance_of_what_it_makes(w8a8["command"], head["held_out"], tmp_path) == pytest.approx(
        w8a8["kld"], rel=1e-3
    )
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"torn')
    quantize("search", "--resume", folder, "--budget", "3", "--quiet")
    again = (folder / "trials.jsonl").read_text().splitlines()
    assert again[:4] == lines
    assert len(again) == 5
    assert "W8A8 m1 L1" in again[4]


def distance_of_what_it_makes(command: str, texts: list[list[int]], tmp_path: Path) -> float:
    """The mean KLD of the form that a command makes."""
    out = str(tmp_path / "again")
    quantize(*(out if word == "OUT" else word for word in shlex.split(command)[2:]))
    heldout.keep(open_model("embedded"), "numpy_llama", texts, tmp_path / "base", None, lambda *_: None)
    return heldout.distance(open_model(out), "numpy_llama", texts, tmp_path / "base", None, lambda *_: None).kld


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("embedded", "--kinds", "w4"), "--kinds: unknown kind 'w4'"),
        (("embedded", "--methods", "m9"), "--methods: unknown method 'm9'"),
        (("embedded", "--methods", ""), "--methods: give at least one"),
        (("embedded", "--engine", "none"), "unknown engine 'none'"),
        (("embedded", "--eval", "mmul"), "unknown eval 'mmul'"),
        (("embedded", "--limit", "3"), "--limit and --data are of --eval"),
        (("embedded", "--input", "100000"), "--batch, --input, --output: 100004 tokens in a sequence"),
        (("embedded", "-n", "521"), "no text is left to judge by"),
        ((), "name a model"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, flags: tuple[str, ...], what: str) -> None:
    with pytest.raises(InputError, match=what):
        quantize("search", *SMALL, "--results", tmp_path, *flags)
    assert not any(tmp_path.iterdir())


def test_a_search_that_goes_on_takes_no_other_settings_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the search"):
        quantize("search", "--resume", tmp_path)
    with pytest.raises(InputError, match=r"--resume takes all settings from .*; leave --seed out"):
        quantize("search", "--resume", tmp_path, "--seed", "3")
