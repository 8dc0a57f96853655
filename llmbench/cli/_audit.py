"""One audit from flags to exit status: the evidence, what needs a trusted model, what needs a server."""

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from llmbench import config
from llmbench.accuracy import audit
from llmbench.accuracy.audit import (
    Finding,
    Verdict,
    again,
    canaries,
    evidence,
    live,
    not_applicable,
    repeats,
    rescore,
    rows,
    secret,
    session,
    stream,
)
from llmbench.accuracy.audit.run import Answer, Spoken, answers, spoken, tolerance
from llmbench.cli import _audit_screen as screen
from llmbench.cli import _perf, _plan
from llmbench.cli._trusted import Trusted, TrustedServer
from llmbench.errors import InputError, ServingError
from llmbench.loadgen import fleet, journal
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.record import Record
from llmbench.loadgen.target import Target
from llmbench.logits import policy, store
from llmbench.types import Request
from llmbench.workload import plan as plans

_NEEDS_MODEL = {"A1", "A2", "A5", "A9"}
_NEEDS_SERVER = {"A3", "A9"}
_DTYPES = ("float32", "float16", "bfloat16")
_SHOWN_EVERY = 10


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; the names are those of the flags."""

    folder: Path
    url: str | None
    trusted_model: str | None
    trusted_engine: str
    trusted_url: str | None
    tokenizer: Path | None
    dtype: str | None
    requests: int
    bad_requests: float
    replays: int
    rounds: int
    base: Path | None
    rows: Path | None
    head: str | None
    only: str | None
    headers: tuple[tuple[str, str], ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an audit; written with `--json`."""

    verdict: Verdict
    why: str
    run: str
    trusted: str
    findings: list[Finding]
    notes: list[str]


def main(options: Options, json: Path | None, junit: Path | None) -> int:
    """Audit, print, write what was asked for; the exit status. Raises LlmbenchError for wrong use."""
    asked = audit.wanted(options.only)
    _refuse_wrong(options)
    found = [evidence.finding(options.folder, options.head)] if "A10" in asked else []
    try:
        with _Audit.opened(options, asked) as run:
            found += run.findings()
            notes, trusted = run.notes, run.trusted_name
    except InputError as error:
        if not any(finding.verdict == "broken" for finding in found):
            raise
        found.append(not_applicable("A10", f"nothing else can be told of this run: {error}"))
        notes, trusted = [], ""
    verdict, why = audit.overall(found, asked)
    report = Report(
        verdict=verdict,
        why=why,
        run=str(options.folder),
        trusted=trusted,
        findings=sorted(found, key=lambda finding: list(audit.TESTS).index(finding.test)),
        notes=notes,
    )
    screen.show(report.verdict, report.why, report.run, report.trusted, report.findings, report.notes)
    screen.write(report, report.findings, json, junit)
    return audit.EXIT[verdict]


def verify(folder: Path, head: str | None) -> int:
    """The evidence alone, offline; the exit status."""
    _folder(folder)
    found = [evidence.finding(folder, head)]
    if found[0].verdict == "passed":
        try:
            plan = plans.load(folder / _plan.FILE)
            journal.read_run(folder, plan)
            found += [evidence.commitments(folder, plan.sha256), screen.remade(folder)]
        except InputError as error:
            found.append(msgspec.structs.replace(found[0], what="plan and journals", verdict="broken", why=str(error)))
    verdict, why = audit.overall(found, ["A10"])
    screen.show(verdict, why, str(folder), "", found, [])
    return audit.EXIT[verdict]


def _refuse_wrong(options: Options) -> None:
    _folder(options.folder)
    if options.dtype is not None and options.dtype not in _DTYPES:
        raise InputError(f"--dtype {options.dtype}: must be one of {', '.join(_DTYPES)}")
    if options.trusted_model is not None and options.trusted_url is not None:
        raise InputError("--trusted-model and --trusted-url are two trusted models; leave one out")


def _folder(folder: Path) -> None:
    if not (folder / _plan.FILE).is_file():
        raise InputError(f"{folder}: there is no {_plan.FILE} in it; name the folder of a run of llmbench perf")


class _Audit:
    """A run that is being audited, with what the tests share."""

    def __init__(self, options: Options, asked: Sequence[str], stack: contextlib.ExitStack) -> None:
        self._options, self._asked, self._stack = options, asked, stack
        self._folder = options.folder
        self._plan = plans.load(self._folder / _plan.FILE)
        self._trail = journal.read_run(self._folder, self._plan)
        self._settings = config.build(
            config.read(self._folder / "config.json"), _perf.Settings, str(self._folder / "config.json")
        )
        self._answers = answers(self._plan, self._trail.records)
        self._lines = secret.read(self._folder)
        self._secret = secret.revealed(self._lines)
        self._seed = self._secret.seed if self._secret else secret.new_seed()
        self._looked = [line for line in self._lines if isinstance(line, session.Looked)]
        self._rows = options.rows or (self._folder / store.ROWS)
        # of what is sent again: no server that keeps rows may have them under one name with those of another audit
        self._next_id = len(self._plan.requests) + secrets.randbelow(900_000)
        self.notes: list[str] = []
        self.trusted_name = ""
        self._why_no_model = ""
        self._model = self._open_model() if _NEEDS_MODEL & set(asked) else None
        own = (self._model.computed,) if isinstance(self._model, Trusted) else ()
        self._margin = tolerance(self._computed(), *own)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, options: Options, asked: Sequence[str]) -> "Iterator[_Audit]":
        """The run; what was opened for it is closed on leaving. Raises InputError when it is none."""
        with contextlib.ExitStack() as stack:
            yield cls(options, asked, stack)

    def findings(self) -> list[Finding]:
        """All tests that were asked for, those without a server first."""
        found = []
        if "A10" in self._asked:
            found = [evidence.commitments(self._folder, self._plan.sha256), screen.remade(self._folder)]
        for name, test in (
            ("A4", self._streams),
            ("A1", self._rescored),
            ("A2", self._captured),
            ("A5", self._questions),
        ):
            if name in self._asked:
                found += test()
        now = None
        if _NEEDS_SERVER & set(self._asked):
            more, now = self._with_server()
            found += more
        if "A6" in self._asked:
            found.append(session.one_session(self._looked, now))
        return found

    # -- the trusted model ---------------------------------------------------------------------------------------------

    def _open_model(self) -> Trusted | TrustedServer | None:
        options = self._options
        if options.trusted_url is not None:
            server = TrustedServer(options.trusted_url, options.tokenizer)
            self.trusted_name = server.name
            if options.trusted_url.rstrip("/") == self._trail.header.url.rstrip("/"):
                self.notes.append(
                    "the trusted server is the audited one: a wrong model used all the time does not show"
                )
            return server
        told = self._told("model") or self._settings.model or (None if self._settings.url else "embedded")
        name = options.trusted_model or told
        if name is None:
            self._why_no_model = "no trusted model: name one with --trusted-model or --trusted-url"
            return None
        try:
            model = Trusted(name, options.trusted_engine, options.tokenizer)
        except InputError as error:
            if options.trusted_model is not None:
                raise
            self._why_no_model = f"no trusted model: name one with --trusted-model ({error})"
            return None
        self._stack.callback(model.close)
        self.trusted_name = model.name
        told_print = self._told("fingerprint")
        if told_print is not None and told_print != model.fingerprint:
            self.notes.append(
                f"the server said that its weights are {told_print[:12]}, those of {name} are {model.fingerprint[:12]}"
            )
        if options.trusted_model is None:
            self.notes.append(
                f"the trusted model is the one that the run or its server named, {name}: a wrong one used all the time "
                "does not show; name yours with --trusted-model"
            )
        return model

    def _told(self, name: str) -> str | None:
        """What the server said of itself before the run."""
        found = next((line.session for line in self._looked if line.session is not None), None)
        value = None if found is None else found.says.get(name)
        return value if isinstance(value, str) else None

    def _computed(self) -> tuple[str, str]:
        """Dtype and quantisation of the server's model."""
        manifest = store.read_manifest(self._rows) if store.is_store(self._rows) else None
        told = self._options.dtype or self._told("dtype") or (manifest and manifest.dtype)
        quantisation = self._told("quantisation") or (manifest.quantisation if manifest else "")
        return told if told in _DTYPES else "float32", quantisation

    def _ordered(self, what: str) -> list[Answer]:
        """The answers in the order that the secret seed gives them for this purpose."""
        by_id = {answer.id: answer for answer in self._answers}
        return [by_id[name] for name in secret.chosen(self._seed, what, by_id, len(by_id))]

    def _unscorable(self) -> str:
        """Why no answer can be scored at all; "" when they can."""
        if self._settings.force is not None:
            return "the run was fed its tokens (perf --force): they are not the server's own"
        if self._trail.header.dialect == "openai_chat":
            return "the server puts messages into a template of its own: the model's prompt is not known"
        return rescore.not_greedy(self._answers)

    # -- the tests without a server ------------------------------------------------------------------------------------

    def _streams(self) -> list[Finding]:
        base = None if self._options.base is None else _mean_length(self._options.base)
        return stream.findings(self._answers, () if self._model is None else self._model.eos_ids, base)

    def _rescored(self) -> list[Finding]:
        if self._model is None:
            return [not_applicable("A1", self._why_no_model)]
        if why := self._unscorable():
            return [not_applicable("A1", why)]
        picked = self._ordered("score")[: self._options.requests]
        with screen.counting("scored", len(picked)) as done:
            scored = rescore.score(picked, self._model, self._model, done)
        found = rescore.finding(scored, self._margin, self._options.bad_requests, self._model.name)
        tier = found.tier.replace("T0", self._model.tier)
        return [msgspec.structs.replace(found, tier=tier)]

    def _captured(self) -> list[Finding]:
        if not store.is_store(self._rows):
            return [not_applicable("A2", f"no rows of logits at {self._rows}: see `llmbench perf --capture`")]
        if not isinstance(self._model, Trusted):
            return [not_applicable("A2", self._why_no_model or "needs --trusted-model: a server gives no whole rows")]
        if why := self._unscorable():
            return [not_applicable("A2", why)]
        kept = store.Store(self._rows)
        self._stack.callback(kept.close)
        wanted_by = policy.read(self._rows) or policy.Policy()
        said: dict[str, Spoken] = {}
        for answer in self._answers:
            ids = spoken(answer, self._model)
            if isinstance(ids, Spoken):
                said[answer.id] = ids
        expected = rows.expected(said, wanted_by)
        wrong = rows.wrong_rows(kept, said, expected)
        picked = rows.chosen(expected, secret.chosen(self._seed, "rows", expected, len(expected)))
        found = None
        if picked and not wrong:
            with tempfile.TemporaryDirectory() as scratch:
                base = Path(scratch) / "base"
                rows.write_base(base, kept, said, picked, self._model.logits, self._model.name)
                found = rows.compared(base, kept, picked)
        foreseen = wanted_by.rate < 1 and wanted_by.seed != secret.of_rows(self._seed)
        return [rows.finding(found, wrong, len(kept), self._model.name, foreseen)]

    def _questions(self) -> list[Finding]:
        asked = self._secret.canaries if self._secret else ()
        if not asked and secret.lost(self._lines):
            why = "the secret that names the questions was lost when the run was killed"
            return [not_applicable("A5", why)]
        indices = {canary.index for canary in asked}
        picked = [answer for answer in self._answers if answer.planned.index in indices]
        texts = {answer.planned.index: self._text(answer) for answer in picked}
        base = None
        if isinstance(self._model, Trusted) and not rescore.not_greedy(picked):
            with screen.counting("asked", len(picked)) as done:
                base = {}
                for number, answer in enumerate(picked, 1):
                    base[answer.planned.index] = self._model.text(answer)
                    done(number)
        return [canaries.finding(asked, self._answers, texts, base)]

    def _text(self, answer: Answer) -> str:
        """An answer's text; of its ids where they are known, since the contest's stack drops the text of the last."""
        ids = answer.record.token_ids
        return self._model.tokenizer.decode(ids) if ids and self._model is not None else answer.record.text

    # -- the tests against a live server -------------------------------------------------------------------------------

    def _with_server(self) -> tuple[list[Finding], session.Session | None]:
        wanted = [name for name in ("A3", "A9") if name in self._asked]
        url = self._options.url or self._settings.url
        settings, how = msgspec.structs.replace(self._settings, url=url), _perf.How(headers=self._options.headers)
        say = _perf.sayer(quiet=False)
        try:
            target = self._stack.enter_context(
                _perf.same_target(settings, self._options.url or self._trail.header.url, how, say)
            )
            speech = _perf.ready(settings, target, _perf.speech_of(settings, self._plan), say)
        except (ServingError, InputError) as error:
            if self._options.url is not None:
                raise
            return [not_applicable(name, f"needs a live server: {error}") for name in wanted], None
        now = session.read(target)
        found = []
        if "A9" in wanted:
            found.append(self._again(target, speech))
        if "A3" in wanted:
            found += self._repeats(target, speech)
        return found, now

    def _again(self, target: Target, speech: fleet.Speech) -> Finding:
        if self._settings.force is not None:
            return not_applicable("A9", self._unscorable())
        if any(not answer.request.sampling.greedy for answer in self._answers):
            return not_applicable("A9", "the run is sampled (temperature above 0): an answer need not come again")
        picked = self._ordered("again")[: self._options.replays]
        with screen.counting("sent again", len(picked)) as done:
            records = self._ask(target, speech, [answer.request for answer in picked], done)
        sent = [again.Repeat(answer, record) for answer, record in zip(picked, records, strict=True)]
        apart = self._model.apart if isinstance(self._model, Trusted) and not self._unscorable() else None
        found = again.finding(sent, self._model, apart, self._margin)
        if found.figures.get("others"):
            self.notes.append("near ties may fall either way in another batch: texts need not be equal (A9)")
        return found

    def _repeats(self, target: Target, speech: fleet.Speech) -> list[Finding]:
        """Twice, the second time three times as long, where the first cannot tell."""
        found: list[Finding] = []
        for number, rounds in enumerate((self._options.rounds, 3 * self._options.rounds)):
            probes = repeats.probes(self._answers, secret.number(self._seed, f"repeats {number}"), rounds)
            with screen.counting("probes sent", len(probes)) as done:
                records = self._ask(target, speech, [probe.request for probe in probes], done)
            found = repeats.findings(list(zip(probes, records, strict=True)), self._plan.settings.cache)
            if all(finding.verdict != "inconclusive" for finding in found):
                break
        return found

    def _ask(
        self, target: Target, speech: fleet.Speech, requests: Sequence[Request], done: Callable[[int], None]
    ) -> list[Record]:
        """Send requests one by one, under ids that were not used before."""
        first, self._next_id = self._next_id, self._next_id + len(requests)
        return live.ask(target, speech.dialect(), requests, first, Timeouts(), done)


def _mean_length(folder: Path) -> float:
    """The mean number of tokens of a reference run's answers. Raises InputError when there is none."""
    _folder(folder)
    plan = plans.load(folder / _plan.FILE)
    found = answers(plan, journal.read_run(folder, plan).records)
    if not found:
        raise InputError(f"--base {folder}: no request was answered there")
    return fmean(answer.record.num_tokens for answer in found)
