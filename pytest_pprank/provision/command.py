"""The ``setup`` command: sequence of steps, messages, exit codes.

Exit code 0: SGLang is installed and imports. 1: it could not be installed or does not import.
2: the command line is wrong, or setup must not change this environment.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pytest_pprank.errors import PprankError, UsageError
from pytest_pprank.provision import facts, pip, plan, torchvision
from pytest_pprank.provision.checkout import Checkout, add_to_environment, find_checkout
from pytest_pprank.provision.facts import Facts
from pytest_pprank.provision.lock import (
    check_lock,
    check_version,
    default_version,
    locked_versions,
    pins,
    requirement_lines,
    version_of,
)
from pytest_pprank.provision.plan import Install, TorchFrom, Wanted
from pytest_pprank.provision.system import complete_mooncake
from pytest_pprank.sglang.static.installed import installed


class SetupFailed(PprankError):
    """Installing failed, or what was installed does not import; the message says what to do."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``setup`` to the commands of ``python -m pytest_pprank``."""
    parser = commands.add_parser(
        "setup",
        help="give this environment a real SGLang (one that is there is left alone)",
        description="Give this Python environment a real SGLang. One that is installed is left "
        "alone, and so is an installed torch. With an NVIDIA GPU: SGLang and all that it asks "
        "for. Without one: SGLang without its CUDA packages (about 2 GB, 2 minutes).",
        allow_abbrev=False,
    )
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--cpu", action="store_true", help="without CUDA packages, GPU or not")
    device.add_argument("--cuda", action="store_true", help="with CUDA packages, GPU or not")
    parser.add_argument(
        "--torch-only", action="store_true", help="torch and what it needs, no SGLang"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sglang",
        metavar="PATH|VERSION",
        default="",
        help="the SGLang of a checkout, with what it needs without a GPU; or a release from "
        f"{locked_versions()[0]} to {locked_versions()[-1]} (default: the newest for this Python)",
    )
    which.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="the SGLang of a lock that `python -m pytest_pprank.provision.resolve --output` wrote",
    )
    parser.add_argument(
        "--yes",
        "-y",
        action="store_true",
        help="call apt-get, as root, for what Mooncake lacks, without asking; where there is no "
        "terminal to ask on, setup does so only with this option",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="do not check that an SGLang that was here before imports (10 s)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run ``setup``; return the exit code."""
    try:
        return _setup(args)
    except UsageError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 2
    except SetupFailed as error:
        print(f"setup: failed: {error}", file=sys.stderr)
        return 1


def _setup(args: argparse.Namespace) -> int:
    checkout = find_checkout(args.sglang)
    release, asked = (checkout.release, "") if checkout else _release(args)
    here = facts.gather(pins(release=release))
    want = plan.wanted(here, cpu=args.cpu, cuda=args.cuda, torch_only=args.torch_only)
    name, version = ("torch", here.torch) if want is Wanted.TORCH else ("SGLang", here.sglang)
    if version is None or want is Wanted.TORCH:
        plan.check_torch(here)
    if version is not None:
        _leave_alone(name, version, asked, checkout)
    else:
        full = args.cuda or (here.gpu and not args.cpu)
        _install_set(want, here, release, checkout, full=full, dry=args.dry_run)
    # after a dry run nothing is installed whose missing libraries could be determined
    if want is not Wanted.TORCH and not (args.dry_run and version is None):
        _complete_mooncake(args)
    if not args.dry_run and not (args.no_verify and version is not None):
        _say(f"ready: {_verify(_device(want, here))}")
    return 0


def _complete_mooncake(args: argparse.Namespace) -> None:
    agreed = (lambda _: True) if args.yes else _agreed
    if wrong := complete_mooncake(_say, agreed, dry=args.dry_run):
        # everything except the prefill/decode tests works; these fail with the same message
        print(f"setup: warning: {wrong}", file=sys.stderr, flush=True)


def _agreed(command: str) -> bool:
    """Ask the user whether to run a command; without a terminal the answer is no."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    try:
        return input(f"setup: run {command}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _release(args: argparse.Namespace) -> tuple[str, str]:
    """Return the release (or the path of its lock), and the requested version, if any."""
    if args.lock is not None:
        release = check_lock(args.lock)
        return release, version_of(release)
    return (check_version(args.sglang) if args.sglang else default_version()), args.sglang


def _leave_alone(name: str, version: str, asked: str, checkout: Checkout | None) -> None:
    """Report that the installation stays; raises UsageError if another SGLang was requested."""
    here = installed() if name == "SGLang" else None
    if checkout is not None and here is not None and not checkout.is_at(here.root):
        raise UsageError(
            f"the SGLang of {checkout.folder} was asked for, SGLang {here} is installed here and "
            "set-up never replaces one: use a fresh environment"
        )
    if name == "SGLang" and asked not in ("", version):
        raise UsageError(
            f"SGLang {asked} was asked for, SGLang {version} is installed here and set-up never "
            "replaces one: use a fresh environment"
        )
    _say(f"{name} {version} is installed; it is left alone")


def _install_set(
    want: Wanted,
    here: Facts,
    release: str,
    checkout: Checkout | None,
    *,
    full: bool,
    dry: bool,
) -> None:
    if find_spec("pip") is None:
        raise UsageError(
            "this environment has no pip; add it (uv pip install pip, or python -m ensurepip) "
            "and run setup again"
        )
    if want is Wanted.CUDA or (want is Wanted.TORCH and full):
        _say(f"installing {want.value}, for a GPU")
        folder = checkout.folder if checkout else None
        _pip_or_fail(plan.full_install(want, here, release, folder), dry)
        return
    source = _install_without_cuda(want, here, release, checkout, dry)
    if source is TorchFrom.REGISTRY and not dry:
        _complete_torch(release)
    if want is Wanted.CPU and not dry:
        _cure_torchvision()


def _cure_torchvision() -> None:
    if torchvision.fails_to_import():
        _say(f"torchvision here is for CUDA; {torchvision.cure()} lets it import without")


def _add_checkout(checkout: Checkout, dry: bool) -> None:
    if dry:
        _say(f"and the SGLang of {checkout.folder}, by a .pth file")
    else:
        _say(f"added the SGLang of {checkout.folder}, by {add_to_environment(checkout)}")


def _install_without_cuda(
    want: Wanted, here: Facts, release: str, checkout: Checkout | None, dry: bool
) -> TorchFrom:
    """Install with torch from the best source that works; return that source."""
    failure = ""
    for source in plan.torch_sources(here, facts.pip_offers, facts.index_answers, release):
        install = plan.cpu_install(want, here, source, release)
        what = want.value.replace("SGLang", f"SGLang {version_of(release)}")
        if checkout is not None and want is Wanted.CPU:
            install = plan.without_sglang(install)
            what = f"what {what} needs"
        _say(f"installing {what}; torch: {source.value}")
        if changes := plan.replaced(install, here):
            _say(f"other versions here give way: {', '.join(changes)}")
        failure = _pip(install, dry)
        if not failure:
            if checkout is not None and want is Wanted.CPU:
                _add_checkout(checkout, dry)
            return source
        if source is TorchFrom.CPU_INDEX:
            _say("that failed with PyTorch's index; once more without it")
    raise SetupFailed(_advice(failure))


def _complete_torch(release: str) -> None:
    """Add the packages that a CUDA build of torch needs, without which it does not import."""
    if _verified("torch").ok:
        return
    _say("this index has only a CUDA build of torch: adding the CUDA packages it needs (4 GB)")
    _pip_or_fail(Install((f"torch=={pins(release=release)['torch']}",)), dry=False)


def _pip_or_fail(install: Install, dry: bool) -> None:
    if failure := _pip(install, dry):
        raise SetupFailed(_advice(failure))


def _pip(install: Install, dry: bool) -> str:
    """Install; return pip's error output if it failed, else ""."""
    if dry:
        print(install, flush=True)
        return ""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "requirements.txt"
        lines = requirement_lines(install.leave_out, install.lock)
        lock.write_text("\n".join(lines), encoding="utf-8")
        result = pip.run(install.arguments(str(lock)), beat=_beat("pip"))
    if not result.ok:
        return result.tail() or f"pip ended with exit code {result.code}"
    compiled = pip.compile_all(beat=_beat("bytecode"))
    _say(f"installed in {result.seconds + compiled.seconds:.0f} s")
    return ""


def _advice(failure: str) -> str:
    return (
        f"pip could not install it and said:\n{failure}\n"
        "Run it with --dry-run to see the command; a fresh virtual environment with a newer pip "
        "(python -m pip install -U pip) and 4 GB of free disk helps most often."
    )


def _verify(device: str) -> str:
    result = _verified(device)
    if not result.ok:
        raise SetupFailed(
            f"it is installed but does not import:\n{result.tail()}\n"
            "A fresh virtual environment with nothing else in it is the surest way."
        )
    return f"{result.output.strip().splitlines()[-1]} (imported in {result.seconds:.0f} s)"


def _verified(what: str) -> pip.Result:
    return pip.run_python(["-m", "pytest_pprank.provision.verify", what])


def _device(want: Wanted, here: Facts) -> str:
    if want is Wanted.TORCH:
        return "torch"
    return "cuda" if want is Wanted.CUDA and here.gpu else "cpu"


def _beat(step: str) -> Callable[[float], None]:
    return lambda seconds: _say(f"still installing ({step}, {seconds:.0f} s)")


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)
