"""What can run on this machine, from the results of all checks."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_pprank.doctor.result import Result, Use
from pytest_pprank.sglang.static.release import sglang_version

_DEVICES = (Use.CPU, Use.SIM, Use.CUDA)


def usable(results: Iterable[Result]) -> dict[Use, bool]:
    """Return what can run."""
    stopped = {use for result in results for use in result.stops}
    return {use: use not in stopped for use in Use}


def anything(runs: dict[Use, bool]) -> bool:
    """Return whether ranked tests can run on any device."""
    return any(runs[device] for device in _DEVICES)


def in_words(runs: dict[Use, bool]) -> str:
    """Return what can run as one line."""
    devices = [device.value for device in _DEVICES if runs[device]]
    if not devices:
        return "can run: nothing"
    *most, last = devices
    parts = [f"ranked torch tests on {', '.join(most)}{' and ' * bool(most)}{last}"]
    if runs[Use.SGLANG]:
        parts.append(f"SGLang {sglang_version()} pipeline parallel")
    if runs[Use.DISAGG]:
        parts.append("prefill/decode")
    return f"can run: {'; '.join(parts)}"
