"""A comparison in words: what the screen and the Markdown summary say, verdict first."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from llmbench.accuracy import profiles
from llmbench.accuracy.compare import ATOL, RTOL, Comparison, Group, SideInfo, WorstRow, explain
from llmbench.accuracy.judge import GateResult

EXIT = {"passed": 0, "failed": 1, "not comparable": 3, "inconclusive": 4}
SHOWN = 6

Tone = Literal["plain", "good", "bad", "doubt"]
TONES: dict[str, Tone] = {
    "passed": "good",
    "failed": "bad",
    "not comparable": "bad",
    "invalid": "bad",
    "inconclusive": "doubt",
}


class Line(NamedTuple):
    """A line, and how it is meant."""

    text: str
    tone: Tone = "plain"


def headline(what: str, verdict: str, reasons: Sequence[str]) -> Iterator[Line]:
    """The verdict, and the first of what it rests on."""
    yield Line(f"{what} {verdict.upper()}", TONES[verdict])
    for reason in reasons[:SHOWN]:
        yield Line(f"  {reason}", TONES[verdict])


def lines(found: Comparison) -> list[Line]:
    """The screen: some 20 lines, and the first findings."""
    said = [
        *headline("accuracy", found.verdict, found.reasons),
        *map(Line, _sides(found)),
        *map(Line, _coverage(found)),
        Line(f"profile {found.profile}: {profiles.get(found.profile).for_what}"),
        *map(gate_line, found.gates),
        *map(Line, _figures(found)),
    ]
    if found.worst is not None and found.num_equal < found.num_compared:
        said.append(Line(f"worst: {explain(found.worst)}{_units(found.worst)}"))
    said += [Line(f"note: {note}", "doubt") for note in found.notes]
    for finding in found.findings[:SHOWN]:
        said.append(Line(f"  {finding.kind}: {finding.file}: {finding.message}", "bad"))
    if len(found.findings) > SHOWN:
        said.append(Line(f"  and {len(found.findings) - SHOWN} more; all of them with --json FILE"))
    return said


def _sides(found: Comparison) -> Iterator[str]:
    for name, side in (("base", found.base), ("new", found.new)):
        yield f"{name:<4} {side.path}: {side.num_rows} rows{_about(side)}"


def _about(side: SideInfo) -> str:
    about = side.about
    if not about:
        return ", contest files without a manifest"
    tier = about.get("tier", f"contest, every {about.get('every')}")
    decode = ", tokens forced" if about.get("decode") == "forced" else ""
    computed = f"{about['engine']} {about['dtype']}{decode}"
    if about.get("quantisation"):
        computed = f"{about['quantisation']} on {computed}"
    return f" ({tier}), {about['model']} {about['fingerprint'][:8]}, {computed}"


def _coverage(found: Comparison) -> Iterator[str]:
    yield (
        f"rows: {found.num_compared} compared, {found.num_failed} outside the contest's tolerance "
        f"(|new - base| <= {ATOL:g} + {RTOL:g} |base|), joined by {found.joined_by}; "
        f"{found.num_after_divergence} after a split of {found.num_diverged_requests} requests are not scored"
    )
    if found.num_compared:
        whole = f"; {found.num_not_whole} known in part, their KLD is a bound" if found.num_not_whole else ""
        seen = f"a fault in {found.would_be_seen:.2%} of the requests would have shown with 95 %"
        yield (
            f"{found.num_equal / found.num_compared:.1%} equal bit by bit; {found.num_requests} requests, {seen}{whole}"
        )
    if found.batch_sizes is not None:
        smallest, median, largest = found.batch_sizes
        yield f"new rows were computed in batches of {smallest} to {largest}, median {median}"


def gate_line(gate: GateResult) -> Line:
    """A gate, what came out, and who set its limit."""
    tones: dict[str, Tone] = {"passed": "good", "failed": "bad", "not decided": "doubt", "not asked": "plain"}
    sign = "<=" if gate.bound == "at most" else ">="
    text = f"  {gate.verdict:<11}  {gate.what}: {interval(gate)} {sign} {gate.limit:g}  ({gate.source})"
    return Line(text, tones[gate.verdict])


def interval(gate: GateResult) -> str:
    """A figure, or from where to where it may lie."""
    if gate.low is None or gate.high is None:
        return "-"
    if gate.low == gate.high:
        return f"{gate.low:.3g}"
    return f"{gate.low:.3g} to {'?' if math.isinf(gate.high) else f'{gate.high:.3g}'}"


def _figures(found: Comparison) -> Iterator[str]:
    """Distributions in a line each, then where the differences lie."""
    spreads = found.distributions
    if (kld := spreads.get("kld")) is not None:
        yield (
            f"KLD    mean {kld.mean:.2g} ±{kld.standard_error:.1g}  median {kld.median:.2g}  p99 {kld.p99:.2g}  "
            f"p99.9 {kld.p999:.2g}  max {kld.max:.2g} nats"
        )
        share, low, high = found.top1
        yield (
            f"top-1  {share:.2%} the same [{low:.2%}, {high:.2%}]; {found.num_flips} flips, "
            f"{found.num_flips_explained} explained by a margin up to {found.margin:g}; {found.num_ties} ties"
        )
    if (change := spreads.get("delta_p")) is not None:
        ratio = f"  perplexity x{found.perplexity_ratio:.6f}" if found.perplexity_ratio is not None else ""
        spread = f"1 % {change.p01:+.2%}  99 % {change.p99:+.2%}"
        yield f"dp     mean {change.mean:+.2%} ±{change.standard_error:.1%}  {spread}{ratio}"
    if (largest := spreads.get("max_abs")) is not None:
        free = f"  shift-free {spreads['max_abs_free'].max:.3g}"
        cos = f"  1-cos {spreads['one_minus_cos'].max:.2g}" if "one_minus_cos" in spreads else ""
        rms = f"  relative RMS {spreads['rel_rms'].max:.2g}" if "rel_rms" in spreads else ""
        ulp = f"  {spreads['ulp'].max:.0f} ulp" if "ulp" in spreads else ""
        passing = f"  an atol of {found.tolerance:.3g} would pass" if found.num_failed else ""
        yield f"max|d| {largest.max:.3g}{free}{cos}{rms}{ulp}{passing}"
    if found.num_equal < found.num_compared:
        yield f"by batch     {_groups(found.by_batch)}"
        yield f"by position  {_groups(found.by_position)}"
        requests = "  ".join(f"{group.name} (KLD {group.kld_max:.2g})" for group in found.worst_requests[:3])
        ids = "  ".join(f"{token} ({count} rows)" for token, count in found.worst_ids[:3])
        yield f"worst requests  {requests or 'unknown'};  ids  {ids}"


def _groups(groups: Sequence[Group]) -> str:
    return " · ".join(
        f"{group.name}: {group.num_flips} flips/{group.num_rows}, KLD {group.kld_mean:.1g}" for group in groups
    )


def _units(worst: WorstRow) -> str:
    return "" if worst.ulp is None else f", {worst.ulp} ulp"
