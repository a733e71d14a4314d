"""Metrics, the log, and spans of traces. Other packages use this face: `telemetry.log`, `telemetry.span`.

metrics.py        every metric, in one list, and its values over all workers
logs.py           the format of the log; secrets are removed here
notices.py        what happens to content and upstreams, for whoever reports it
spans.py          spans of traces, which cost nothing while tracing is off
tracing.py        sends spans to an OpenTelemetry collector
worker_files.py   the counters of workers that have ended
"""

# ruff: noqa: F403  # each name without `_` in these modules is part of the face
from mirror.telemetry.logs import *
from mirror.telemetry.metrics import *
from mirror.telemetry.notices import *
from mirror.telemetry.spans import *
