"""What `llmbench quantize search` does: make one form after another, hold it against the float model, show them."""

import io
import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import closing, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import msgspec

from llmbench import config, engines, plugins
from llmbench.accuracy import heldout
from llmbench.cli import _eval, _perf
from llmbench.cli._progress import Line
from llmbench.engines import EngineSettings
from llmbench.errors import ConfigError, InputError, InvalidMeasurement, LlmbenchError, ServingError
from llmbench.metrics.front import Scored
from llmbench.metrics.sweep import Case, Figures, Measured, figures
from llmbench.quantize import calibrate, make, samples, search, smooth, trials
from llmbench.quantize.calibrate import Calibration
from llmbench.quantize.search import KINDS, Outcome, Space, Trial
from llmbench.report import files, words
from llmbench.report import front as front_report
from llmbench.report.terminal import Terminal
from llmbench.sweep.engine import EngineBench
from llmbench.sweep.measure import measure
from llmbench.weights import compress, sizes
from llmbench.weights.model import Model, of_weights, open_model
from llmbench.weights.sources import How, open_weights

_WORK = "work"
_WITH_RESUME = {"resume", "budget", "minutes", "json", "quiet"}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asked for; kept in the journal. The names are those of the flags."""

    model: str
    calib: str
    num_samples: int
    max_tokens: int
    held_out: str | None
    num_held_out: int
    tokenizer: Path | None
    kinds: str
    methods: str
    engine: str
    threads: int | None
    batch: int
    input: int
    output: int
    repeats: int
    eval: str | None
    data: Path | None
    limit: int | None
    seed: int


def command(values: dict[str, Any], given: set[str]) -> int:
    """From all flags, and which of them were given, to the exit status."""
    folder, results = values.pop("resume"), values.pop("results")
    budget, minutes = values.pop("budget"), values.pop("minutes")
    as_json, quiet = values.pop("json"), values.pop("quiet")
    settings = _asked(values) if folder is None else _begun(folder, given)
    say = _perf.sayer(quiet)
    searching = _Search(settings, say, None if quiet else Line())
    folder = folder or files.new_folder(results, "search")
    say(f"{settings.model}: {folder}")
    searching.run(folder, budget, None if minutes is None else time.monotonic() + 60 * minutes)
    return report(folder, json=as_json)


def report(folder: Path, *, json: bool) -> int:
    """Write all files of a search from its journal, and print it; 3 when no form could be made."""
    head, outcomes = trials.read(folder)
    found = [outcome.scored for outcome in outcomes]
    title = folder.resolve().name
    what = _what(config.build(head.settings, Settings, str(folder / trials.FILE)), head, found)
    facts = [(name, str(value)) for name, value in head.settings.items() if value is not None]
    files.write(folder / "search.csv", front_report.csv_text(found).encode())
    files.write_json(folder / "search.json", {"what": what, "settings": head.settings, "forms": found})
    files.write(folder / "search.html", front_report.page(title, what, facts, found).encode())
    if json:
        print((folder / "search.json").read_text(encoding="utf-8"), end="")
    else:
        front_report.show(Terminal(), title, what, found)
        print(f"files: {folder}")
    return 0 if any(not one.failed for one in found[1:]) else 3


def _what(settings: Settings, head: trials.Header, found: list[Scored]) -> str:
    rows = sum(map(len, head.held_out))
    return (
        f"{max(0, len(found) - 1)} forms of {settings.model}, calibrated on {settings.num_samples} texts, judged by"
        f" {rows} rows of {len(head.held_out)} others; timed on {settings.engine}, batch {settings.batch},"
        f" {settings.input} tokens in, {settings.output} out"
    )


def _asked(values: dict[str, Any]) -> Settings:
    """What was typed. Raises InputError without a model."""
    if values["model"] is None:
        raise InputError("quantize search: name a model, as embedded, or a folder; or --resume a search")
    if values["eval"] is None and (values["limit"] is not None or values["data"] is not None):
        raise InputError("--limit and --data are of --eval: name its set, as --eval mmlu")
    return Settings(**values | {"engine": values["engine"] or engines.choose()})


def _begun(folder: Path, given: set[str]) -> Settings:
    """The settings that a search was begun with. Raises InputError."""
    if wrong := sorted(given - _WITH_RESUME):
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise InputError(f"--resume takes all settings from {folder}; leave {flags} out")
    head, _ = trials.read(folder)
    return config.build(head.settings, Settings, str(folder / trials.FILE))


def _listed(flag: str, text: str, known: list[str]) -> list[str]:
    """The words between commas. Raises ConfigError for one that is none of those known."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    for word in found:
        if word not in known:
            raise ConfigError(f"{flag}: {plugins.unknown(flag.strip('-s'), word, known)}")
    if not found:
        raise ConfigError(f"{flag}: give at least one of {', '.join(known)}")
    return list(dict.fromkeys(found))


class _Search:
    """What a search needs to make and to judge a form. Raises InputError for settings that cannot be, at once."""

    def __init__(self, settings: Settings, say: Callable[[str], None], line: Line | None) -> None:
        self._settings, self._say, self._line = settings, say, line
        self._opened = open_weights(settings.model, How(strict=False))
        make.check(make.Settings(), self._opened)
        kinds = [KINDS[kind] for kind in _listed("--kinds", settings.kinds, list(KINDS))]
        methods = _listed("--methods", settings.methods, list(map(str, smooth.METHODS)))
        self._space = msgspec.convert(
            {"kinds": kinds, "methods": methods, "num_layers": self._opened.config.num_layers}, Space
        )
        model = of_weights(self._opened)
        self._calibration = samples.load(self._wanted(settings.calib, settings.num_samples), model)
        drawn = samples.load(
            self._wanted(settings.held_out or settings.calib, settings.num_samples + settings.num_held_out), model
        )
        self._held_out = search.held_out(self._calibration, drawn, settings.num_held_out)
        self._case = Case(batch=settings.batch, input_len=settings.input, output_len=settings.output)
        self._bench(model).close()  # what cannot be timed is wrong now
        self._header = trials.Header(
            settings=msgspec.to_builtins(settings, enc_hook=str),
            model_sha256=model.identity(),
            calibration_sha256=self._calibration.sha256,
            held_out=self._held_out,
        )
        if settings.eval is not None:
            plugins.load("evals", settings.eval)  # a wrong name is wrong now
        self._found: dict[Trial, Outcome] = {}
        self._folder = Path()

    def run(self, folder: Path, budget: int, deadline_s: float | None) -> None:
        """Try forms until there are `budget` of them, or time is up; what the folder has is not tried again."""
        self._folder = folder
        with trials.Journal(folder, self._header) as journal:
            self._found = {outcome.trial: outcome for outcome in journal.outcomes if outcome.trial is not None}
            if len(self._found) >= budget:
                return
            heldout.keep(
                of_weights(self._opened), self._settings.engine, self._held_out, self._work("base"),
                self._settings.threads, self._told("the float model's logits"),
            )  # fmt: skip
            if not journal.outcomes:
                if not (folder / "environment.json").exists():
                    files.write_json(folder / "environment.json", files.environment())
                scored = self._scored(of_weights(self._opened), Scored(name="float", kind="float"))
                journal.append(Outcome(trial=None, scored=scored))
            try:
                self._try(journal, budget, deadline_s)
            except KeyboardInterrupt:
                self._say(f"interrupted; go on with: llmbench quantize search --resume {folder}")
                raise
        shutil.rmtree(folder / _WORK, ignore_errors=True)

    def _try(self, journal: trials.Journal, budget: int, deadline_s: float | None) -> None:
        while len(self._found) < budget and (deadline_s is None or time.monotonic() < deadline_s):
            trial = search.upcoming(self._space, self._found)
            if trial is None:
                self._say("every form that the search knows of was tried")
                return
            with self._line or nullcontext():
                outcome = self._tried(trial)
            journal.append(outcome)
            self._found[trial] = outcome
            one = outcome.scored
            told = (
                one.failed or f"KLD {one.kld:.2e}, {words.size(one.num_bytes)}, {one.decode_tokens_per_s:.4g} tokens/s"
            )
            self._say(f"{len(self._found)}/{budget} {one.name}: {told}; {words.time(one.seconds)}")

    def _tried(self, trial: Trial) -> Outcome:
        """Make a form and judge it."""
        start_s = time.monotonic()
        out = self._work("model")
        shutil.rmtree(out, ignore_errors=True)
        scored, worst = Scored(name=trial.name, kind=trial.kind, command=self._command(trial)), None
        try:
            made = make.quantise(self._calibrated(trial), _making(trial), out, self._progress)
            errors = {row.name: row.relative_error for row in made.linears if row.relative_error is not None}
            worst = max(errors, key=lambda name: errors[name], default=None)
            scored = self._scored(open_model(str(out)), scored)
        except InvalidMeasurement:
            raise
        except LlmbenchError as error:
            scored = msgspec.structs.replace(scored, failed=str(error))
        scored = msgspec.structs.replace(scored, seconds=time.monotonic() - start_s)
        return Outcome(trial=trial, scored=scored, worst=worst)

    def _scored(self, model: Model, scored: Scored) -> Scored:
        """The same with all figures."""
        settings = self._settings
        told = self._told(f"{scored.name}: logits")
        found = heldout.distance(model, settings.engine, self._held_out, self._work("base"), settings.threads, told)
        timed, ratios = self._timed(model, scored.kind)
        return msgspec.structs.replace(
            scored,
            num_bytes=self._num_bytes(model, scored.kind),
            num_rows=found.num_rows,
            kld=found.kld,
            top1=found.top1,
            delta_p_rms=found.delta_p_rms,
            profile=found.profile,
            decode_tokens_per_s=timed.decode_tokens_per_s or 0.0,
            ttft_s=timed.ttft_s,
            speed=sorted(ratios)[len(ratios) // 2],
            speed_slowest=min(ratios),
            speed_fastest=max(ratios),
            score=None if settings.eval is None else self._examined(model),
        )

    def _timed(self, model: Model, kind: str) -> tuple[Figures, list[float]]:
        """The figures of a form, and how fast it decodes beside the float model, both timed in turn.

        A machine is not equally fast all the time; what is timed in one turn has the same of it.
        """
        turns: list[tuple[Measured, Measured]] = []
        with closing(self._bench(of_weights(self._opened))) as base, closing(self._bench(model)) as own:
            for _ in range(self._settings.repeats):
                first = measure(self._case, base, 1)
                turns.append((first, first if kind == "float" else measure(self._case, own, 1)))
        wrong = next((one for turn in turns for one in turn if not one.rounds), None)
        if wrong is not None:
            raise ServingError(f"{self._case}: {wrong.outcome}: {wrong.reason}")
        found = figures(msgspec.structs.replace(turns[0][1], rounds=[turn[1].rounds[0] for turn in turns]))
        assert found is not None, "there are rounds"
        return found, [_step_s(theirs) / _step_s(ours) for theirs, ours in turns]

    def _bench(self, model: Model) -> EngineBench:
        """The engine to be timed. Raises InputError when its cache does not hold what it is to be timed with."""
        settings = self._settings
        wanted = EngineSettings(max_batch=settings.batch, threads=settings.threads)
        bench = EngineBench(model, settings.engine, wanted, seed=settings.seed)
        if unfit := bench.unfit(self._case):
            bench.close()
            raise InputError(f"--batch, --input, --output: {unfit}")
        return bench

    def _num_bytes(self, model: Model, kind: str) -> int:
        """Of the weights; of W8A8S compressed, which is what it is for."""
        if kind != "W8A8S":
            return sizes.of(model.name).total
        small = self._work("small")
        shutil.rmtree(small, ignore_errors=True)
        compress.compress(Path(model.name), small, compress.Wanted(), self._progress)
        return sizes.of(str(small)).total

    def _examined(self, model: Model) -> float:
        """The share of right answers in the eval that was asked for."""
        settings = self._settings
        assert settings.eval is not None
        wanted = _eval.Settings(
            name=settings.eval,
            data=settings.data,
            mode=None,
            split=None,
            shots=None,
            subjects=[],
            limit=settings.limit,
            max_new_tokens=None,
            url=None,
            dialect="",
            served_model="",
            concurrency=1,
            timeout_s=0.0,
            offline=True,
            model=model.name,
            engine=settings.engine,
            config=None,
            tokenizer=settings.tokenizer,
            min_accuracy=None,
            allow_exec=False,
            resume=None,
            results=self._work("evals"),
        )
        with redirect_stderr(io.StringIO()):  # one line for a form is enough
            return _eval.share_right(wanted)

    def _calibrated(self, trial: Trial) -> Calibration:
        """The calibration of a method, made once."""
        folder = self._work(f"calibration-{trial.method}")
        return calibrate.calibrate(
            self._opened,
            self._calibration,
            calibrate.Settings(method=trial.method, seed=self._settings.seed),
            folder,
            self._progress,
        )

    def _wanted(self, dataset: str, num: int) -> samples.Wanted:
        settings = self._settings
        return samples.Wanted(
            dataset=dataset,
            num_samples=num,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            tokenizer=settings.tokenizer,
        )

    def _command(self, trial: Trial) -> str:
        """What makes the form again: the same calibration, and so the same bytes."""
        settings = self._settings
        flags = ["--calib", settings.calib, "-n", str(settings.num_samples), "--max-tokens", str(settings.max_tokens)]
        if settings.tokenizer is not None:
            flags += ["--tokenizer", str(settings.tokenizer)]
        return shlex.join(
            ["llmbench", "quantize", settings.model, "-o", "OUT", *trial.flags(), *flags, "--seed", str(settings.seed)]
        )

    def _work(self, name: str) -> Path:
        return self._folder / _WORK / name

    def _told(self, what: str) -> Callable[[int, int], None]:
        return lambda done, num: self._progress(done, num, what)

    def _progress(self, done: int, num: int, what: str) -> None:
        if self._line is not None:
            self._line(done, num, what)


def _step_s(measured: Measured) -> float:
    """The mean decode step."""
    steps = measured.rounds[0].whole.steps_s
    return sum(steps) / len(steps)


def _making(trial: Trial) -> make.Settings:
    return make.Settings(kind=trial.kind, choice=trial.choice, sparse=trial.knobs)
