"""Datasets: reading, names, the stand-ins and their lengths, the `data` command."""

import csv
import hashlib
import json
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from llmbench.cli import data
from llmbench.errors import CheckFailed, InputError
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import datasets
from llmbench.workload.corpus import held_out_questions, hendrycks
from llmbench.workload.datasets import alpaca, standins
from llmbench.workload.datasets.stats import Row, lengths

CHECKOUT = Path(__file__).parents[2]
OURS = CHECKOUT / "datasets"
REAL = CHECKOUT.parent / "shared" / "data"
runner = CliRunner()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty datasets folder, and a cache of its own."""
    monkeypatch.setenv("LLMBENCH_DATASETS", str(tmp_path / "sets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "sets").mkdir()
    return tmp_path / "sets"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(embedded_path())


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_input_goes_behind_a_colon(tmp_path: Path) -> None:
    record = {"instruction": "Sort", "input": "b, a", "output": "a, b"}
    path = write(tmp_path / "x.json", [record, {**record, "input": ""}])
    assert alpaca.read(path) == [
        alpaca.Sample(prompt="Sort:b, a", output="a, b", index=0),
        alpaca.Sample(prompt="Sort", output="a, b", index=1),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not a JSON file"),
        ({}, "must be a list of records"),
        ([], "there is no record"),
        ([3], "record 0 must be an object"),
        ([{"instruction": "a", "input": ""}], "record 0: output is missing"),
        ([{"instruction": "a", "input": None, "output": "b"}], "record 0: input must be a string"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_the_record_and_the_field(
    tmp_path: Path, content: object, message: str
) -> None:
    path = write(tmp_path / "wrong.json", content)
    with pytest.raises(InputError, match=f"wrong.json: .*{message}"):
        alpaca.read(path)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"no such dataset file"):
        datasets.load("nowhere/else.json")


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_means_the_stand_in_while_there_is_no_real_file(place: Path) -> None:
    standin = write(place / "alpaca_521.synthetic.json", [{"instruction": "a", "input": "", "output": "b"}])
    dataset = datasets.load("alpaca_521")
    assert (dataset.path, dataset.real, len(dataset.samples)) == (standin, False, 1)
    assert dataset.description == "the synthetic stand-in of alpaca_521"


def test_a_name_means_the_real_file_when_it_is_there_and_says_whether_it_is_the_known_one(place: Path) -> None:
    write(place / "alpaca_521.synthetic.json", [])
    real = write(place / "alpaca_521.json", [{"instruction": "a", "input": "", "output": "b"}])
    found = datasets.resolve("alpaca_521")
    assert (found.path, found.real) == (real, True)
    assert "sha256 differs" in found.description


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'alpaca_5010'"):
        datasets.resolve("alpaca_501")


def test_a_path_takes_any_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", [{"instruction": "a", "input": "", "output": "b"}])
    dataset = datasets.load(str(path))
    assert (dataset.name, dataset.real, dataset.description) == ("mine", True, f"the file {path}")


@pytest.mark.slow
def test_without_a_datasets_folder_the_stand_ins_are_made_in_the_cache_and_equal_the_tracked_ones(
    place: Path, tmp_path: Path
) -> None:
    found = datasets.resolve("alpaca_5010")
    assert "just made in" in found.description
    assert found.path.is_relative_to(tmp_path / "cache")
    for name in ("alpaca_5010.synthetic.json", "alpaca_521.synthetic.json", "manifest.json"):
        assert (found.path.parent / name).read_bytes() == (OURS / name).read_bytes(), name
    assert "in the cache" in datasets.resolve("alpaca_521").description


# --- stand-ins -------------------------------------------------------------------------------------------------------

# (file, first, prompt mean, median, p99, max, sum, output mean, median, p90, p99, max, sum, longest total)
PUBLISHED = [
    ("alpaca_5010", 1500, (19.95, 16, 78, 192, 29925), (65.39, 46, 144, 294, 504, 98086), 512),
    ("alpaca_5010", 5010, (19.68, 16, 77, 192, 98576), (64.89, 48, 139, 290, 822, 325074), 835),
    ("alpaca_521", 500, (21.88, 16, 112, 337, 10938), (67.84, 52, 148, 306, 464, 33922), 494),
    ("alpaca_521", 521, (21.69, 16, 110, 337, 11303), (67.33, 51, 147, 306, 464, 35078), 494),
]


def rows(name: str, first: int, tokenizer: Tokenizer) -> list[Row]:
    return lengths(alpaca.read(OURS / standins.file_name(name))[:first], tokenizer)


@pytest.mark.parametrize(("name", "first", "prompt", "output", "total"), PUBLISHED)
def test_a_stand_in_has_the_token_lengths_of_the_real_file(
    tokenizer: Tokenizer,
    name: str,
    first: int,
    prompt: tuple[float, ...],
    output: tuple[float, ...],
    total: int,
) -> None:
    asked, answered, whole = rows(name, first, tokenizer)
    assert (asked.mean, asked.sum) == pytest.approx((prompt[0], prompt[4]), rel=0.02)
    assert (asked.median, asked.p99) == pytest.approx((prompt[1], prompt[2]), rel=0.06)
    assert (answered.mean, answered.sum) == pytest.approx((output[0], output[5]), rel=0.02)
    assert (answered.median, answered.p90, answered.p99) == pytest.approx(output[1:4], rel=0.06)
    assert (asked.max, answered.max, whole.max) == (prompt[3], output[4], total)


@pytest.mark.parametrize(("name", "count", "inputs"), [("alpaca_5010", 5010, 1978), ("alpaca_521", 521, 210)])
def test_a_stand_in_has_the_real_file_s_counts_and_no_prompt_twice(name: str, count: int, inputs: int) -> None:
    records = json.loads((OURS / standins.file_name(name)).read_bytes())
    assert len(records) == count
    assert sum(bool(record["input"]) for record in records) == inputs
    assert len({(record["instruction"], record["input"]) for record in records}) == count


@pytest.mark.skipif(not REAL.is_dir(), reason="the contest's files are not here")
@pytest.mark.parametrize(("name", "first", "prompt", "output", "total"), PUBLISHED)
def test_the_llama_tokenizer_counts_nearly_the_same(
    name: str, first: int, prompt: tuple[float, ...], output: tuple[float, ...], total: int
) -> None:
    asked, answered, whole = rows(name, first, Tokenizer.from_file(REAL / "tokenizer.model"))
    assert (asked.sum, answered.sum) == pytest.approx((prompt[4], output[5]), rel=0.02)
    assert whole.max == pytest.approx(total, rel=0.01)


@pytest.mark.skipif(not REAL.is_dir(), reason="the contest's files are not here")
def test_the_real_files_are_recognised_by_their_hash(place: Path) -> None:
    target = datasets.add(REAL / "alpaca_521.json")
    assert target == place / "alpaca_521.json"
    dataset = datasets.load("alpaca_521")
    assert (dataset.real, len(dataset.samples)) == (True, 521)
    assert dataset.description == "the real alpaca_521 (sha256 ok)"


def test_the_tracked_files_are_those_of_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMBENCH_DATASETS", str(OURS))
    verdicts = [verdict for verdict in datasets.verify() if verdict.entry.synthetic]
    assert [verdict.ok for verdict in verdicts] == [True, True, True]
    for verdict in verdicts:
        files = [verdict.path] if verdict.path.is_file() else [p for p in verdict.path.rglob("*") if p.is_file()]
        assert sum(path.stat().st_size for path in files) == verdict.entry.bytes


def test_the_stand_in_of_mmlu_is_the_tracked_folder_and_shares_no_question_between_its_splits(tmp_path: Path) -> None:
    hendrycks.make(tmp_path / "made")
    assert datasets.sha256(tmp_path / "made") == datasets.sha256(OURS / "mmlu.synthetic")
    questions: list[str] = []
    for split in ("val", "test"):
        for path in (OURS / "mmlu.synthetic" / split).iterdir():
            with path.open(newline="") as file:
                questions += [row[0] for row in csv.reader(file)]
    assert len(questions) == len(set(questions)) == len(list(held_out_questions(Random(0))))


def test_mmlu_means_the_users_own_folder_when_it_is_there(place: Path) -> None:
    assert not datasets.mmlu().real
    (place / "mmlu").mkdir()
    assert datasets.mmlu().path == place / "mmlu"


def test_a_folders_hash_is_that_of_the_lines_that_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"1")
    (tmp_path / "a").write_bytes(b"2")
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("a", b"2"), ("b/x", b"1")))
    assert datasets.sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


# --- the command -----------------------------------------------------------------------------------------------------


def test_data_list_says_which_file_each_name_means(place: Path) -> None:
    for name in datasets.names():
        write(place / standins.file_name(name), [])
    result = runner.invoke(data.app, ["list"])
    assert result.exit_code == 0
    assert "the synthetic stand-in of alpaca_5010" in result.output


def test_data_stats_prints_lengths_as_json(place: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", [{"instruction": "dog", "input": "", "output": "cat and dog"}] * 3)
    result = runner.invoke(data.app, ["stats", str(path), "--first", "2", "--json"])
    prompt, output, total = json.loads(result.output)["lengths"]
    assert (prompt["count"], prompt["mean"], output["mean"], total["max"]) == (2, 1.0, 3.0, 5)


def test_data_stats_prints_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", [{"instruction": "dog", "input": "", "output": "cat"}])
    result = runner.invoke(data.app, ["stats", str(path)])
    assert result.exit_code == 0
    assert "median" in result.output


def test_data_add_refuses_a_file_that_is_not_known(place: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "alpaca_5010.json", [])
    result = runner.invoke(data.app, ["add", str(path)])
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert f"--dataset {path}" in str(result.exception)
    assert not list(place.iterdir())


def test_data_verify_fails_when_a_file_is_not_what_the_manifest_says(place: Path) -> None:
    write(place / "alpaca_5010.json", [])
    result = runner.invoke(data.app, ["verify"])
    assert isinstance(result.exception, CheckFailed)
    assert "alpaca_5010.json" in str(result.exception)
