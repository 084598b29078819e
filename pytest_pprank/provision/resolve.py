"""Writes the lock of one SGLang release: ``python -m pytest_pprank.provision.resolve 0.5.24``.

For maintainers: the only command needed to support another release, or to renew the pins of a
supported one (``--upgrade``). It needs uv (``pip install uv``) and package registries. It writes
``locks/VERSION.txt``, which `setup` installs, or the file of ``--output``, for `setup --lock`. A
new lock starts from the pins of the newest existing one, so that two locks differ only in what
SGLang requires. The version ``latest`` is the newest release for this Python.
"""

from __future__ import annotations

import argparse
import email
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pytest_pprank.errors import PprankError
from pytest_pprank.provision.lock import FOLDER, lock_file, locked_versions

_EXCLUDES = FOLDER / "cuda-excludes.txt"
_LATEST = "latest"
_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
_HEADER = """\
# SGLang {version} without a GPU: every package that its Scheduler needs, for Linux and Python
# {python} and newer, at the versions that SGLang pins. Install with --no-deps only: SGLang's own
# requirements bring CUDA packages, beside which the Scheduler does not import without a GPU;
# `python -m pytest_pprank setup --sglang {version}` does so.
# Made, and renewed, by: python -m pytest_pprank.provision.resolve [--upgrade] {version}
# requires-python: {requires}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Resolve the releases on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pytest_pprank.provision.resolve")
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="0.5.23, or latest")
    parser.add_argument("--upgrade", action="store_true", help="take the newest of what is free")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it there instead")
    args = parser.parse_args(arguments)
    if args.output and len(args.versions) > 1:
        parser.error("--output takes one version")
    try:
        for version in args.versions:
            lock = resolve(version, upgrade=args.upgrade, output=args.output)
            print(f"resolve: {lock}", flush=True)
    except PprankError as error:
        print(f"resolve: error: {error}", file=sys.stderr)
        return 1
    return 0


def resolve(version: str, *, upgrade: bool = False, output: Path | None = None) -> Path:
    """Write the lock of SGLang `version` and return its path; raises PprankError.

    For ``latest``, an existing lock of that release is copied instead of resolved again.
    """
    with tempfile.TemporaryDirectory() as scratch:
        metadata = _metadata(version, Path(scratch))
        asked_for, version = version, metadata["Version"]
        target = output or lock_file(version)
        if asked_for == _LATEST and version in locked_versions() and not upgrade:
            target.write_bytes(lock_file(version).read_bytes())
            return target
        requires = metadata["Requires-Python"] or ">=3.10"
        python = next(it for it in _PYTHONS if it in SpecifierSet(requires))
        asked = Path(scratch) / "asked.in"
        asked.write_text("\n".join(roots(metadata.get_all("Requires-Dist") or ())))
        pins = _compile(asked, python, _first_guess(version, Path(scratch)), upgrade)
    header = _HEADER.format(version=version, python=python, requires=requires)
    target.write_text(f"{header}{pins.rstrip()}\nsglang=={version}\n", encoding="utf-8")
    return target


def roots(asked_by_sglang: Iterable[str]) -> list[str]:
    """Return the root requirements, with the version that SGLang's metadata requires, if any."""
    asked: dict[str, Requirement] = {}
    for line in asked_by_sglang:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            asked[canonicalize_name(requirement.name)] = requirement
    lines = []
    for line in (FOLDER / "roots.in").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name = canonicalize_name(Requirement(line).name)
            lines.append(f"{name}{asked[name].specifier}" if name in asked else line)
    return lines


def _first_guess(version: str, scratch: Path) -> Path:
    """Return a copy of the lock to start from: that of `version`, else the newest."""
    known = locked_versions()
    guess = scratch / "lock.txt"
    nearest = version if version in known else known[-1]
    shutil.copy(lock_file(nearest), guess)
    return guess


def _metadata(version: str, scratch: Path) -> email.message.Message:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch)]
    _run([*pip, "sglang" if version == _LATEST else f"sglang=={version}"])
    wheel = next(scratch.glob("sglang-*.whl"), None)
    if wheel is None:
        raise PprankError(f"sglang {version} has no wheel")
    with zipfile.ZipFile(wheel) as archive:
        name = next(it for it in archive.namelist() if it.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def _compile(asked: Path, python: str, lock: Path, upgrade: bool) -> str:
    here = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=os.pathsep.join([here, os.environ.get("PATH", os.defpath)]))
    if uv is None:
        raise PprankError("uv is not on the path: pip install uv")
    options = ["--universal", "--python-version", python, "--no-annotate", "--no-header", "-q"]
    _run(
        [uv, "pip", "compile", *options, "--excludes", str(_EXCLUDES), str(asked), "-o", str(lock)]
        + (["--upgrade"] if upgrade else [])
    )
    return "\n".join(it for it in lock.read_text(encoding="utf-8").splitlines() if _is_for_us(it))


def _is_for_us(line: str) -> bool:
    """Return whether a pin applies to a Python that this project supports: CPython on Linux."""
    marker = Requirement(line).marker
    linux = {"sys_platform": "linux", "implementation_name": "cpython"}
    return marker is None or any(
        marker.evaluate(
            {**linux, "python_full_version": f"{python}.0", "platform_machine": machine}
        )
        for python in _PYTHONS
        for machine in ("x86_64", "aarch64")
    )


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PprankError(f"{' '.join(command[:4])} ... said:\n{done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
