"""What a sweep shows: the CSV byte for byte, tables, and the page with its heat maps."""

import csv
import io
import re
from html import unescape
from pathlib import Path

import pytest

from llmbench.metrics.sweep import Case, Largest, Measured, Outcome, Pass, Probe, Round
from llmbench.report import largest, sweep
from llmbench.report.terminal import Terminal
from tests.report.test_html import BROWSER, EVIL, browse

HEADER = (  # of the ATB speed test
    "Batch,Input_seq_len,Output_seq_len,TotalTime(s),first_token_time(ms),avg_token_time(ms),"
    "avg TPS(tokens/s),E2E TPS(tokens/s)\n"
)


def measured(batch: int, num_in: int, num_out: int, first_s: float = 0.188, step_s: float = 0.06532) -> Measured:
    whole = Pass(total_s=first_s + step_s * (num_out - 1), first_s=first_s, steps_s=[step_s] * (num_out - 1))
    one = Pass(total_s=first_s, first_s=first_s, steps_s=[])
    case = Case(batch=batch, input_len=num_in, output_len=num_out)
    return Measured(case=case, outcome="measured", rounds=[Round(first=one, whole=whole)])


def lost(batch: int, num_in: int, num_out: int, outcome: Outcome = "does not fit", reason: str = "full") -> Measured:
    return Measured(case=Case(batch=batch, input_len=num_in, output_len=num_out), outcome=outcome, reason=reason)


GRID = [
    measured(batch, num_in, num_out, 0.001 * batch * num_in / 32, 0.002 * (1 + batch / 16))
    for batch in (1, 4, 8, 16, 32)
    for num_in in (32, 64, 128, 256, 512, 1024)
    for num_out in (32, 1024)
]


def test_the_csv_is_that_of_the_atb_speed_test() -> None:
    # the guide's figures for LLaMA2-7B: 188 ms for the first token, 65.32 ms for each further one
    found = sweep.csv_text([measured(1, 256, 64), lost(2, 256, 64), measured(4, 256, 64)])
    assert found == HEADER + "1,256,64,4.30,188.00,65.32,15.31,14.87\n4,256,64,4.30,188.00,65.32,61.24,59.49\n"


@pytest.mark.parametrize(
    ("model", "device", "name"),
    [
        ("LLAMA2-7B", 0, "multibatch_performance_LLAMA2-7B_device0.csv"),
        ("random:tiny,layers=2", 3, "multibatch_performance_random_tiny_layers_2_device3.csv"),
        ("../up", 0, "multibatch_performance_.._up_device0.csv"),
    ],
)
def test_the_csv_is_named_for_model_and_device(model: str, device: int, name: str) -> None:
    assert sweep.csv_name(model, device) == name
    assert Path(name).name == name


def test_one_map_for_each_output_length() -> None:
    grids = sweep.grids_of(GRID)
    assert [grid.title.partition(" ")[0] for grid in grids] == ["32", "1024"]
    assert grids[0].columns == ("32", "64", "128", "256", "512", "1024")
    assert grids[0].batches == (1, 4, 8, 16, 32)
    assert all(found.case.output_len == 1024 for found in grids[1].cells.values())


def test_pairs_have_one_map_with_a_column_for_each() -> None:
    pairs = [(256, 64), (256, 256), (512, 512), (1024, 1024)]
    (grid,) = sweep.grids_of([measured(batch, *pair) for batch in (1, 4) for pair in pairs])
    assert grid.columns == ("256/64", "256/256", "512/512", "1024/1024")
    assert len(grid.cells) == 8


def test_the_largest_value_has_the_strongest_colour_over_all_maps_of_a_figure() -> None:
    page = sweep.page("x", "y", [], GRID)
    for view in page.split("<h2>")[1:4]:
        shares = [int(share) for share in re.findall(r"--heat:(\d+)%", view)]
        values = [float(value.replace(",", "")) for value in re.findall(r"--heat:\d+%\">([\d.,]+)<", view)]
        assert len(values) == len(GRID)
        assert (min(shares), max(shares)) == (8, 60)
        assert (shares[values.index(min(values))], shares[values.index(max(values))]) == (8, 60)


def test_a_case_without_a_value_says_why() -> None:
    page = unescape(
        sweep.page("x", "y", [], [measured(1, 32, 8), lost(2, 32, 8, reason="72 blocks, the cache has 64")])
    )
    assert '<td class="none" title="72 blocks, the cache has 64">-</td>' in page
    assert "batch 2, 32 in, 8 out: does not fit: 72 blocks, the cache has 64" in page
    assert "nan" not in page.lower()


def test_nothing_in_a_sweep_is_taken_for_markup_and_nothing_is_asked_of_the_network() -> None:
    page = sweep.page(EVIL, EVIL, [(EVIL, EVIL)], [lost(1, 2, 3, "failed", EVIL), measured(1, 4, 3)])
    assert "<img" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_a_sweep_of_which_nothing_was_measured_has_all_its_tables() -> None:
    found = [lost(1, 2, 3)]
    assert sweep.csv_text(found) == HEADER
    assert "does not fit" in sweep.page("x", "y", [], found)
    assert "does not fit" in sweep.markdown_text("x", "y", found)
    assert sweep.grids_of([]) == []
    assert "<main>" in sweep.page("x", "y", [], [])


def test_the_screen_and_markdown_have_both_ways_of_timing(capsys: pytest.CaptureFixture[str]) -> None:
    found = [measured(4, 256, 64), lost(8, 256, 64, "failed", "it broke")]
    sweep.show(Terminal(width=160), "20260131-sweep", "random:tiny, numpy_llama", found)
    out = capsys.readouterr().out
    assert re.search(r"4 +256 +64 +4\.30 +188 +65\.3 +61\.2 +59\.5 +188 +65\.3 +65\.3 +65\.3 +61\.2", out)
    assert "batch 8, 256 in, 64 out: failed: it broke" in out
    text = sweep.markdown_text("20260131-sweep", "random:tiny", found)
    assert "| 4 | 256 | 64 | 4.30 | 188 | 65.3 | 61.2 | 59.5 | 188 | 65.3 | 65.3 | 65.3 | 61.2 |" in text


def test_a_search_has_its_rounds_and_its_result_as_csv(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = [measured(1, 8, 4, step_s=0.01), measured(2, 8, 4, step_s=0.03), lost(4, 8, 4)]
    lines = list(csv.DictReader(io.StringIO(largest.rounds_csv(rounds, limit_s=0.02))))
    assert [(line["Batch"], line["Decode step(ms)"], line["Within"], line["Reason"]) for line in lines] == [
        ("1", "10.00", "yes", ""),
        ("2", "30.00", "no", ""),
        ("4", "", "no", "full"),
    ]
    probes = [Probe(batch=1, step_s=0.01, within=True), Probe(batch=2, step_s=0.005, within=False)]
    found = Largest(input_len=8, output_len=4, limit_s=0.02, batch=1, next=2, monotone=False, probes=probes)
    none = Largest(input_len=9, output_len=4, limit_s=0.02, batch=None, next=None, monotone=True, probes=[])
    assert largest.final_csv([found, none]).splitlines()[1:] == ["8,4,20,1,10.00,2,5.00", "9,4,20,,,,"]
    largest.show(Terminal(width=120), [found, none])
    out = capsys.readouterr().out
    assert "8 in, 4 out, ms by batch: 1: 10.00, 2: 5.00" in out
    assert "a larger batch had shorter steps" in out


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [1300, 500])
@pytest.mark.parametrize("kind", ["grid", "pairs", "lost"])
def test_a_browser_shows_every_map_without_overlaps(tmp_path: Path, kind: str, width: int) -> None:
    found = GRID
    if kind == "pairs":
        found = [measured(b, *pair) for b in (1, 4) for pair in [(256, 64), (256, 256), (512, 512), (1024, 1024)]]
    elif kind == "lost":
        found = [*GRID[:30], *(lost(each.case.batch, each.case.input_len, 32, reason="x" * 300) for each in GRID[30:])]
    page = sweep.page("20260131-154500-sweep", "embedded, numpy_llama float32", [("batch", "1,4,8,16,32")], found)
    looked = browse(page.replace("default-src 'none'; ", "default-src 'none'; script-src ; ", 1), tmp_path, width)
    assert looked["problems"] == []
    assert looked["resources"] == []
    assert looked["whole"]["overlaps"] == []
    assert looked["whole"]["wide"] <= 0
