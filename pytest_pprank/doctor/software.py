"""Checks of what is installed: Python, pytest, torch, SGLang and its seams."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec

from packaging.version import Version

from pytest_pprank.bench.seams import inspect_all
from pytest_pprank.doctor.child import ChildFailed, ask
from pytest_pprank.doctor.result import WITH_SGLANG, Result, broken, limited, ok
from pytest_pprank.errors import UsageError
from pytest_pprank.provision import facts, lock
from pytest_pprank.sglang.events.shapes import SourceInspector
from pytest_pprank.sglang.static.installed import Installed, installed
from pytest_pprank.sglang.static.release import check_sglang, check_torch

PYTHONS = ((3, 10), (3, 13))
"""The oldest and the newest Python that is tested."""
PYTESTS = (8, 9)
"""The same for pytest's major versions."""
SETUP = "python -m pytest_pprank setup"
FRESH = "  # in a fresh environment"
_TORCH = (
    "import torch, torch.distributed as dist; import torch.version as v; "
    "print(v.cuda or '', v.hip or '', dist.is_available() and dist.is_gloo_available(), sep='|')"
)
_SHOWN = 3


def python() -> Result:
    """Look at the interpreter and the operating system."""
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return broken(f"{text}: pytest-pprank needs Linux")
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return limited(f"{text}; tested are {oldest} to {newest}")
    return ok(f"{text} (supported: {oldest} to {newest})")


def pytest_itself() -> Result:
    """Look at pytest's version."""
    version = metadata.version("pytest")
    oldest, newest = PYTESTS
    if Version(version).major < oldest:
        cure = f"{sys.executable} -m pip install 'pytest>={oldest}'"
        return broken(f"{version} is too old: {oldest} or newer is needed", cure)
    if Version(version).major > newest:
        return limited(f"{version}; tested are {oldest} and {newest}")
    return ok(f"{version} (supported: {oldest} and {newest})")


def torch() -> Result:
    """Look at torch's version, and import it: its build, and whether it has gloo."""
    try:
        check_torch()
    except UsageError as error:
        return broken(_what(error), _setup("torch", " --torch-only"))
    version = metadata.version("torch")
    try:
        cuda, hip, gloo = ask(_TORCH).split("|")
    except ChildFailed as error:
        return broken(f"{version} does not import: {error}", f"{SETUP}{FRESH}")
    build = f"CUDA {cuda} build" if cuda else f"ROCm {hip} build" if hip else "CPU build"
    if gloo != "True":
        return broken(f"{version}, {build}: it has no torch.distributed with gloo")
    return ok(f"{version}, {build}")


def sglang() -> Result:
    """Look at SGLang's version, and at which lock has it."""
    try:
        check_sglang()
    except UsageError as error:
        return limited(_what(error), _setup("sglang"), stops=WITH_SGLANG)
    here = installed()
    assert here is not None
    known = lock.locked_versions()
    if here.version not in known:
        return limited(f"{here}; no lock has this version: they are {known[0]} to {known[-1]}")
    return ok(f"{here}; lock {here.version}, {_other_versions(lock.pins(release=here.version))}")


def _setup(package: str, options: str = "") -> str:
    """Return the command that installs a package; it never replaces one that is here."""
    return f"{SETUP}{options}{FRESH if find_spec(package) else ''}"


def _what(error: UsageError) -> str:
    """Return the message without its advice, which is the cure."""
    return str(error).partition(". ")[0]


def _other_versions(pins: Mapping[str, str]) -> str:
    found = facts.gather(pins).installed
    here = {name: Version(version).public for name, version in found.items()}  # without "+cpu"
    other = [
        f"{name} {here.get(name, 'missing')} (lock: {pin})"
        for name, pin in pins.items()
        if here.get(name) != pin
    ]
    if not other:
        return f"with its {len(pins)} pins"
    more = ", ..." if len(other) > _SHOWN else ""
    return f"{len(other)} of {len(pins)} pins differ: {', '.join(other[:_SHOWN])}{more}"


def seams() -> Result:
    """Look for the places of SGLang that the plugin uses, in its files."""
    here = installed()
    if here is None:
        return limited("not looked for: there is no SGLang")
    rows = list(inspect_all(SourceInspector(here.root)))
    missing = [row for row in rows if row.lacks]
    if not missing:
        return ok(f"all {len(rows)} places of SGLang that are hooked or needed")
    off = dict.fromkeys(each for row in missing for each in row.needed_by)
    names = ", ".join(row.name for row in missing)
    return limited(
        f"{len(missing)} of {len(rows)} missing: {names}; off: {', '.join(off) or 'nothing'}",
        _locked_release(here),
    )


def _locked_release(here: Installed) -> str:
    release = lock.default_version()
    return f"{SETUP} --sglang {release}{FRESH}" if here.version != release else f"{SETUP}{FRESH}"
