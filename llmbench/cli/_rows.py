"""The rows that a run captured, beside its load: what its report shows of them, and what they must stand for."""

from pathlib import Path

import msgspec
import numpy as np

from llmbench import config
from llmbench.accuracy.compare import SERVER_FIELDS, Options
from llmbench.accuracy.join import Asked
from llmbench.cli import _plan
from llmbench.cli._evidence import SERVER
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen import journal
from llmbench.loadgen.journal import Trail
from llmbench.logits.policy import Policy
from llmbench.logits.store import ROWS, Store, is_store
from llmbench.metrics.captured import Captured, captured, mean_batch
from llmbench.workload import plan as plans
from llmbench.workload.plan import Plan


def is_run(path: Path) -> bool:
    """Whether this is the folder of a run."""
    return (path / _plan.FILE).is_file()


def rows_of(path: Path) -> Path:
    """Where the rows are: in the folder of a run, or just there. Raises InputError for a run without rows."""
    if not is_run(path):
        return path
    if not is_store(path / ROWS):
        raise InputError(f"{path}: the run captured no rows; repeat it with `llmbench perf --capture`")
    return path / ROWS


def of_run(folder: Path, plan: Plan, trail: Trail) -> Captured | None:
    """What the run in this folder captured of its own requests; None when it captured nothing."""
    if not is_store(folder / ROWS):
        return None
    store = Store(folder / ROWS)
    ours = _requests(plan)
    of_load = np.array([request.id in ours for request in store.requests], bool)[store.table["request"]]
    return captured(
        store.manifest.tier,
        store.manifest.decode,
        store.table["batch"][of_load],
        sum(record.num_tokens for record in trail.records),
        trail.scrapes,
    )


def standing_for(run: Path, options: Options) -> Options:
    """The options of a comparison whose new rows stand for the load of a run, where they do not say otherwise.

    Raises InputError when it is no run, InvalidMeasurement when its load is not known.
    """
    plan = plans.load(run / _plan.FILE)
    load_batch = options.load_batch or mean_batch(journal.read_run(run, plan).scrapes)
    if load_batch is None:
        raise InvalidMeasurement(f"{run}: the server's counters were not read, so the batch of its load is not known")
    if not (run / SERVER).is_file():
        raise InputError(f"{run}: it does not say what server took its load; repeat it with `llmbench perf --capture`")
    told = config.read(run / SERVER)
    server = {field: told[field] for field in SERVER_FIELDS if field in told}
    rows = Asked(only=_requests(plan), new_share=_share(run))
    return msgspec.structs.replace(options, load_batch=load_batch, server=server | dict(options.server), rows=rows)


def with_base(run: Path, options: Options) -> Options:
    """The options of a comparison whose base rows are of a run: of its requests, and the share that it captured."""
    only = options.rows.only or _requests(plans.load(run / _plan.FILE))
    return msgspec.structs.replace(
        options, rows=msgspec.structs.replace(options.rows, only=only, base_share=_share(run))
    )


def _share(run: Path) -> Policy:
    """The rows that a run was to capture, as it was asked for: its policy may have been changed on the way."""
    asked = config.read(run / "config.json")
    return Policy(rate=asked.get("capture_rate", 1.0), seed=asked.get("capture_seed", ""))


def _requests(plan: Plan) -> frozenset[str]:
    return frozenset(planned.request.request_id for planned in plan.requests)
