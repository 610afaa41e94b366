"""Snakemake's output as a trial's progress: one line a finished job, with what is left.

    [ 12/31] convex/sinkhorn-newton-sparse, unit sns: 34 s; 19 left, about 4 min

A failed job shows the end of its log. Used by ``logger: papertrial`` in the profiles.
"""

import sys
import time
from logging import WARNING, LogRecord
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

BOOKKEEPING = frozenset({"all", "default"})  # rules without a command


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
        _say(f"FAILED {_name(job)}")
        for log in map(Path, job.log or []):
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            _say("\n".join(f"    {line}" for line in lines[-15:]) or "    (it said nothing; was it killed?)")
            _say(f"    the whole log: {log}")

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


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
