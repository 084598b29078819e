"""SGLang's swallowed failures: what it logs, and goes on as if nothing had happened.

The founding bug (PR 26883) was such a warning: "Failed to profile prefill latency", and dynamic
chunking was off for everybody.
"""

from __future__ import annotations

from typing import ClassVar

from pytest_pprank.checks.base import Sanitizer
from pytest_pprank.sglang.events.logs import listen_to_logs
from pytest_pprank.sglang.events.types import LogRecord
from pytest_pprank.sglang.static import NO_NCCL

SWALLOWED = (
    "failed to",
    "will be disabled",
    "treating as undone",
    "traceback (most recent call last)",
    "memory leak",
    "metadata corruption",
    "unexpected poll state",
)
"""Words (in lower case) of warnings that say: something went wrong, and nobody will be told."""

HARMLESS = (
    # SGLang's CPU path without its compiled kernels, on every start
    "failed to import",
    # what an abort of a request in transfer leads to, on purpose
    "aborted by abortreq",
    # asked for once per start on a machine without a GPU
    "failed to get device",
    # 0.5.13 to 0.5.16 warn of a model without generation_config.json; later ones call it normal
    "failed to load generation config",
    # our own doing, where torch is a build for CUDA and the device is none
    NO_NCCL,
)
_CURE = (
    "SGLang has caught this and goes on; a user sees it only as lost speed, memory or requests. If "
    "it is meant to happen here, allow it with a reason (--pprank-sanitize-allow), or mark the "
    'test with @pytest.mark.pprank(sanitize="-logs")'
)


class Logs(Sanitizer):
    """Listens to SGLang's loggers."""

    name: ClassVar[str] = "logs"

    def begin(self) -> None:
        self.watch.at_end(listen_to_logs(self._logged, self.watch.guard))

    def _logged(self, record: LogRecord) -> None:
        words = record.text.lower()
        if any(known in words for known in HARMLESS):
            return
        swallowed = any(mark in words for mark in SWALLOWED)
        if not (swallowed or record.is_error or record.has_traceback):
            return
        self.watch.report(
            f"SGLang logged at level {record.level}: {record.text.rstrip()}"
            + (f"\nwhile handling {record.error}" if record.error else ""),
            (record.site, *record.raised_at),
            _CURE,
        )
