"""Snakemake's output as a trial's progress: one line a finished job, with what is left.

    [ 12/31] convex/sinkhorn-newton-sparse, unit sns: 34 s; 19 left, about 4 min

A failed job shows the end of its logs, on a cluster also of the cluster's; one that is tried again says with what.
Used by ``logger: papertrial`` in the profiles.
"""

import re
import sys
import time
from logging import WARNING, LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

BOOKKEEPING = frozenset({"all", "default"})  # rules without a command
REFUSED = "not tried again, since"  # what the DAG says of a retry in vain


class LogHandler(LogHandlerBase):
    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self._jobs: dict[int, LogRecord] = {}
        self._began: dict[int, float] = {}
        self._start = time.monotonic()
        self._done = self._total = 0

    def emit(self, record: LogRecord) -> None:
        handle = {
            LogEvent.RUN_INFO: self._run_info,
            LogEvent.JOB_INFO: self._job_info,
            LogEvent.JOB_FINISHED: self._job_finished,
            LogEvent.JOB_ERROR: self._job_error,
            LogEvent.ERROR: self._message,
        }.get(getattr(record, "event", None))
        if handle is not None:
            handle(record)
        elif getattr(record, "event", None) is None and (
            record.levelno >= WARNING or record.getMessage().startswith("Nothing to be done")
        ):
            self._message(record)

    def _run_info(self, record: LogRecord) -> None:
        counts = {rule: n for rule, n in record.stats.items() if rule not in BOOKKEEPING | {"total"}}
        self._total = sum(counts.values())
        self._start = time.monotonic()
        _say(f"{self._total} jobs to run: " + ", ".join(f"{n} {rule}" for rule, n in sorted(counts.items())))

    def _job_info(self, record: LogRecord) -> None:
        if record.jobid in self._jobs:
            given = dict(record.resources)
            _say(f"again: {_name(record)}, with {given.get('mem_mb')} MB and {given.get('runtime')} min")
        self._jobs[record.jobid] = record
        self._began[record.jobid] = time.monotonic()
        if self.common_settings.dryrun and record.rule_name not in BOOKKEEPING:
            _say(f"would run {_name(record)}")

    def _job_finished(self, record: LogRecord) -> None:
        job = self._jobs[record.job_id]
        if job.rule_name in BOOKKEEPING:
            return
        self._done += 1
        now = time.monotonic()
        left = self._total - self._done
        rest = f"; {left} left, about {_span((now - self._start) / self._done * left)}" if left > 0 else ""
        place = f"[{self._done:>{len(str(self._total))}}/{self._total}]"
        _say(f"{place} {_name(job)}: {_span(now - self._began[record.job_id])}{rest}")

    def _job_error(self, record: LogRecord) -> None:
        job = self._jobs.get(record.jobid)
        if job is None:
            return
        _say(f"FAILED {_name(job)}{_cluster_says(record.rule_msg)}")
        own = [Path(log) for log in job.log or []]
        cluster = [Path(log) for log in (record.log or [])[len(own) :] if log]
        told = {log: _telling(_lines(log)) for log in cluster}
        for log in own:
            if not any(REFUSED in line for lines in told.values() for line in lines):  # then it's an earlier try's
                _say("\n".join(f"    {line}" for line in _lines(log)[-15:]) or "    (it said nothing; was it killed?)")
                _say(f"    the whole log: {log}")
        for log, lines in told.items():
            _say("\n".join(f"    {line.strip()}" for line in [*lines, f"the cluster's log: {log}"]))

    def _message(self, record: LogRecord) -> None:
        text = record.getMessage()
        if text and text != "None" and not text.startswith("RuleException"):  # the job's own log says more
            _say(text)


def _name(job: LogRecord) -> str:
    w = {key: str(value) for key, value in dict(job.wildcards or {}).items()}
    return {
        "dataset": "data set {name}",
        "base_model": "base model {name} {part} at {scale} scale",
        "unit": "{chapter}/{slug}, unit {part} at {scale} scale",
        "page": "page of {chapter}/{slug} at {scale} scale",
        "atlas": "the atlas at {scale} scale",
    }.get(job.rule_name, job.rule_name).format(**w)


def _cluster_says(message: str | None) -> str:
    """Of an executor's long message what the cluster called the failure: ': SLURM-job 12, TIMEOUT'."""
    found = re.search(r"(\S+) '(\S+)' failed.*status is:? '(\w+)'", message or "", re.DOTALL)
    return f": {found[1]} {found[2]}, {found[3]}" if found else ""


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _telling(lines: list[str]) -> list[str]:
    """Of a cluster's log what isn't Snakemake's own talk; its end where there is nothing else."""
    found = [line for line in lines if line.startswith(("slurmstepd", "srun: error")) or REFUSED in line]
    return list(dict.fromkeys(found))[-5:] or lines[-5:]


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
