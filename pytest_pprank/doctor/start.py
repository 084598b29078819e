"""Checks whether worker groups would be forked or spawned: by the imports of a real launcher."""

from __future__ import annotations

from pytest_pprank.devices import choose_device, device_environment
from pytest_pprank.doctor.examine import first_line
from pytest_pprank.doctor.result import WITH_SGLANG, Result, broken, limited, ok
from pytest_pprank.doctor.software import FRESH, SETUP
from pytest_pprank.errors import SEE_DOCTOR, GroupError, UsageError
from pytest_pprank.launch.client import LauncherClient
from pytest_pprank.protocol.launcher import preload_entries
from pytest_pprank.protocol.messages import Preloaded
from pytest_pprank.sglang.static.release import check_sglang, check_torch

SECONDS = 240.0
"""A start takes up to 40 s on an idle machine."""
_MARGIN = 20.0
_RANKS = 2


def start() -> Result:
    """Start a launcher, wait for its imports, and say how it would start ranks."""
    try:
        check_torch()
    except UsageError:
        return broken("not tried: there is no torch")
    sglang = _has_sglang()
    device = choose_device("auto", _RANKS, sglang=sglang)
    try:
        preloaded = _preload(device, sglang=sglang)
    except GroupError as error:
        return broken(f"{first_line(error)} {_last_line(str(error).removesuffix(SEE_DOCTOR))}")
    return _judged(preloaded, device, sglang=sglang)


def _has_sglang() -> bool:
    try:
        check_sglang()
    except UsageError:
        return False
    return True


def _preload(device: str, *, sglang: bool) -> Preloaded:
    launcher = LauncherClient(
        preload_entries(device, sglang=sglang), environment=device_environment(device)
    )
    try:
        return launcher.wait_preloaded(SECONDS - _MARGIN)
    finally:
        launcher.close()


def _judged(preloaded: Preloaded, device: str, *, sglang: bool) -> Result:
    for entry in preload_entries(device, sglang=False):
        if why := preloaded.failures.get(entry, ""):
            return broken(f"ranks cannot import {entry}: {_last_line(why)}")
    for why in preloaded.failures.values():
        text = f"ranks cannot import SGLang for device {device}: {_last_line(why)}"
        return limited(text, f"{SETUP}{FRESH}", stops=WITH_SGLANG)
    words = f"torch{' and SGLang' * sglang} for device {device}"
    if preloaded.start_method == "spawn":
        return limited(f"groups are spawned, each imports {words} anew: {preloaded.reason}")
    return ok(f"groups are forked, with {words} imported once, in {preloaded.seconds:.1f} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
