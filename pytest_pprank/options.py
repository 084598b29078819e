"""Command line and ini options, read once and validated into `Options`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import pytest

from pytest_pprank.checks import parse_names
from pytest_pprank.errors import UsageError
from pytest_pprank.faults import parse_option
from pytest_pprank.names import asked_by_name
from pytest_pprank.protocol.schedule import Schedule

DEVICES = ("auto", "cpu", "sim", "cuda")
FRESH = ("auto", "test", "never")
REPORT_TESTS = ("failed", "all")
LEASES = ("auto", "cuda", "off")
WITHIN_STAGE = ("tp", "dp", "ep")
"""Sizes of a stage: its ranks, and the groups of them that share requests or experts."""
MAX_STAGES = 128
"""More than any model is split into; each stage is a process that imports SGLang."""
_STASH: pytest.StashKey[Options] = pytest.StashKey()
_WHERE = "--pp-size N on the command line, pp_size = N in the ini file"


@dataclass(frozen=True)
class Options:
    """The plugin's validated options. `sizes` is empty if no size was given.

    `within`: the sizes within a stage, by name: ``tp``, ``dp`` and ``ep``.
    """

    sizes: tuple[int, ...]
    decodes: tuple[int, ...]
    within: Mapping[str, tuple[int, ...]]
    device: str
    timeout: float
    grace: float
    fresh: str
    reverts: tuple[str, ...]
    lease: str
    lease_timeout: float
    live: bool
    log_dir: str
    oversubscribe: bool
    summary: str
    report: str
    report_tests: str
    keep: bool
    keep_minutes: float
    sanitize: tuple[str, ...]
    sanitize_asked: frozenset[str]
    sanitize_allow: str
    perturb: Schedule | None
    pdb: int | None
    attach: bool


class Option(NamedTuple):
    """An option of the command line, and of the ini file; without a `metavar` it is a flag."""

    flag: str
    metavar: str
    text: str
    default: str = ""


_OPTIONS = (
    Option(
        "--pp-size",
        "N[,M]",
        "run ranked tests on N pipeline stages, one worker process each; several sizes run "
        "each test at each size, with ids [ppN]",
    ),
    Option(
        "--tp-size",
        "N[,M]",
        "ranks of each pipeline stage, which share its layers (tensor parallelism); several "
        "sizes run each test at each size, with ids [ppN-tpM]",
        "1",
    ),
    Option(
        "--dp-size",
        "N[,M]",
        "DP ranks of each pipeline stage (DP attention): groups of its ranks, each with requests "
        "of its own; --tp-size must be a multiple",
        "1",
    ),
    Option(
        "--ep-size",
        "N[,M]",
        "EP ranks of each pipeline stage (expert parallelism): groups of its ranks, each with some "
        "of the experts; --tp-size must be a multiple",
        "1",
    ),
    Option(
        "--pprank-decode",
        "M[,K]",
        "decode stages of a prefill/decode test that does not say how many; its prefill "
        "stages are those of --pp-size",
        "1",
    ),
    Option(
        "--pprank-device",
        "NAME",
        "device of the ranks: auto (cuda where there is a GPU for every stage, else sim for "
        "tests of SGLang and cpu for others), cpu, sim (a simulated accelerator) or cuda",
        "auto",
    ),
    Option(
        "--pprank-timeout",
        "S",
        "seconds a ranked test may take before its worker group is killed and replaced",
        "300",
    ),
    Option(
        "--pprank-grace",
        "S",
        "seconds the other ranks get after the first one has failed, died or finished; six "
        "times that in setup and for the report of a failure",
        "5",
    ),
    Option(
        "--pprank-fresh",
        "WHEN",
        "auto (new worker group when the topology changes or a test asks for one), test (for "
        "every test) or never (ignore fresh=True)",
        "auto",
    ),
    Option(
        "--pprank-lease",
        "WHAT",
        "what runs on the same machine do not share: auto (GPUs and, on cpu, cores: 2 ranks a"
        " core), cuda (GPUs only) or off",
        "auto",
    ),
    Option(
        "--pprank-lease-timeout",
        "S",
        "seconds to wait for GPUs or cores that other runs on this machine use; who uses them"
        " is shown",
        "600",
    ),
    Option(
        "--pprank-oversubscribe",
        "",
        "on device cuda, let a stage of prefill and one of decode share a GPU where there are"
        " too few for all; NCCL refuses that to stages of one role",
    ),
    Option(
        "--pprank-live",
        "",
        "show what the ranks print as it comes, whole lines with the rank's prefix; also under -s",
    ),
    Option(
        "--pprank-log-dir",
        "DIR",
        "keep everything the ranks print in files of DIR (pp0.stdout.log ...), rotated at 64 "
        "MiB, five of each",
    ),
    Option(
        "--pprank-summary",
        "FILE",
        "append a summary of the run in Markdown to FILE, such as the job summary of GitHub "
        "Actions",
    ),
    Option(
        "--pprank-report",
        "DIR",
        "write a page about the run to DIR/index.html, with what each rank did over time, and"
        " DIR/trace.json for Perfetto",
    ),
    Option(
        "--pprank-report-tests",
        "WHICH",
        "tests that the page shows over time: failed or all",
        "failed",
    ),
    Option(
        "--pprank-sanitize",
        "LIST",
        "sanitizers that watch every ranked test: names separated by commas, -NAME for all "
        "but that one, all or none",
        "all",
    ),
    Option(
        "--pprank-sanitize-allow",
        "FILE",
        "YAML file of findings that are allowed, each with a reason",
    ),
    Option(
        "--pprank-perturb",
        "SEED[:NAMES]",
        "run ranked tests under seeded disturbances: late ranks, messages and KV transfers, "
        "KV that runs out; the same seed gives the same disturbances",
    ),
    Option(
        "--pprank-pdb",
        "RANK",
        "the only rank on which --pdb, --trace and breakpoint() stop",
    ),
    Option(
        "--pprank-attach",
        "",
        "let each rank wait for a debugger to attach, such as that of VS Code, and print "
        "where; needs debugpy",
    ),
    Option(
        "--pprank-keep",
        "",
        "keep the launcher, with torch and SGLang imported, for the next runs of this user in"
        " this environment; python -m pytest_pprank stop ends it",
    ),
    Option(
        "--pprank-keep-minutes",
        "M",
        "minutes after which a kept launcher ends if no run has used it",
        "10",
    ),
)
"""All options but --pprank-revert, which may be repeated."""
_REVERT = (
    "run with a historical SGLang fix taken out, to prove that a test goes red: a number such "
    "as 26883, or a YAML file; may be repeated"
)


def add_options(parser: pytest.Parser) -> None:
    """Declare every option, each also as an ini option of the same name."""
    group = parser.getgroup("pprank", "ranked tests (pytest-pprank)")
    for option in _OPTIONS:
        _add(group, parser, option)
    group.addoption(
        "--pprank-revert", action="append", metavar="NAME|FILE", default=None, help=_REVERT
    )
    parser.addini("pprank_revert", _REVERT, type="args", default=[])


def _add(group: pytest.OptionGroup, parser: pytest.Parser, option: Option) -> None:
    flag, metavar, text, default = option
    if not metavar:
        group.addoption(flag, action="store_true", default=None, help=text)
        parser.addini(_ini_name(flag), text, type="bool", default=False)
        return
    shown = f"{text} (default: {default})" if default else text
    group.addoption(flag, action="store", metavar=metavar, default=None, help=shown)
    parser.addini(_ini_name(flag), shown, default=default)


def _ini_name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def options_of(config: pytest.Config) -> Options:
    """Return the validated options; raises UsageError that names option, value and choices."""
    if _STASH not in config.stash:
        config.stash[_STASH] = _read(config)
    return config.stash[_STASH]


def _read(config: pytest.Config) -> Options:
    size = _text(config, "--pp-size")
    return Options(
        sizes=parse_sizes(size, "--pp-size") if size else (),
        decodes=parse_sizes(_text(config, "--pprank-decode"), "--pprank-decode"),
        within={
            name: parse_sizes(_text(config, f"--{name}-size"), f"--{name}-size")
            for name in WITHIN_STAGE
        },
        device=_choice("--pprank-device", _text(config, "--pprank-device"), DEVICES),
        timeout=_seconds("--pprank-timeout", _text(config, "--pprank-timeout")),
        grace=_seconds("--pprank-grace", _text(config, "--pprank-grace")),
        fresh=_choice("--pprank-fresh", _text(config, "--pprank-fresh"), FRESH),
        # once each: a command that is repeated as printed adds to addopts, which gives them again
        reverts=tuple(
            dict.fromkeys(config.getoption("--pprank-revert") or config.getini("pprank_revert"))
        ),
        lease=_choice("--pprank-lease", _text(config, "--pprank-lease"), LEASES),
        lease_timeout=_seconds("--pprank-lease-timeout", _text(config, "--pprank-lease-timeout")),
        live=_flag(config, "--pprank-live"),
        log_dir=_text(config, "--pprank-log-dir"),
        oversubscribe=_flag(config, "--pprank-oversubscribe"),
        summary=_text(config, "--pprank-summary"),
        report=_text(config, "--pprank-report"),
        report_tests=_choice(
            "--pprank-report-tests", _text(config, "--pprank-report-tests"), REPORT_TESTS
        ),
        keep=_flag(config, "--pprank-keep"),
        keep_minutes=_above_zero(
            "--pprank-keep-minutes", _text(config, "--pprank-keep-minutes"), "minutes"
        ),
        sanitize=parse_names(_text(config, "--pprank-sanitize"), "--pprank-sanitize"),
        sanitize_asked=asked_by_name(_text(config, "--pprank-sanitize")),
        sanitize_allow=_text(config, "--pprank-sanitize-allow"),
        perturb=parse_option(_text(config, "--pprank-perturb"), "--pprank-perturb"),
        pdb=_rank("--pprank-pdb", _text(config, "--pprank-pdb")),
        attach=_flag(config, "--pprank-attach"),
    )


def _flag(config: pytest.Config, flag: str) -> bool:
    return bool(config.getoption(flag) or config.getini(_ini_name(flag)))


def _text(config: pytest.Config, flag: str) -> str:
    given = config.getoption(flag)
    return str(config.getini(_ini_name(flag)) if given is None else given).strip()


def parse_sizes(text: str, name: str) -> tuple[int, ...]:
    """Read ``2`` or ``2,4``; raises UsageError for anything but positive whole numbers."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*", word) for word in words):
        raise UsageError(
            f"{name}: {text!r} is not a size; allowed: a whole number from 1 up, or several with "
            "commas, such as 2 or 2,4"
        )
    sizes = tuple(dict.fromkeys(int(word) for word in words))
    if max(sizes) > MAX_STAGES:
        raise UsageError(
            f"{name}: {text!r}: all ranks run on this machine, which is too little for "
            f"{max(sizes)}; allowed: 1 to {MAX_STAGES}"
        )
    return sizes


def _choice(flag: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UsageError(f"{flag}: {value!r} is not one of {', '.join(allowed)}")
    return value


def _seconds(flag: str, value: str) -> float:
    return _above_zero(flag, value, "seconds")


def _above_zero(flag: str, value: str, unit: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UsageError(f"{flag}: {value!r} is not a number of {unit} above 0")
    return number


def _rank(flag: str, value: str) -> int | None:
    if value and not re.fullmatch(r"\d+", value):
        raise UsageError(f"{flag}: {value!r} is not the number of a rank: 0 or above")
    return int(value) if value else None


def check_debuggers(config: pytest.Config) -> None:
    """Raise UsageError for debuggers that do not go together, or not with pytest-xdist."""
    given = options_of(config)
    pdb, trace = (bool(config.getoption(name, False)) for name in ("usepdb", "trace"))
    asked = {"--trace": trace, "--pprank-pdb": given.pdb is not None}
    asked["--pprank-attach"] = given.attach
    if config.getoption("dist", "no") != "no":
        for flag in (flag for flag, wanted in asked.items() if wanted):
            # pytest-xdist's words about --pdb
            raise UsageError(
                f"{flag} is incompatible with distributing tests; try using -n0 or -nauto."
            )
    if given.attach and (pdb or trace):
        flag = "--pdb" if pdb else "--trace"
        raise UsageError(f"--pprank-attach: not with {flag}, which stops at the terminal")
    if given.attach and find_spec("debugpy") is None:
        raise UsageError("--pprank-attach needs debugpy: pip install debugpy")


def missing_size(names: list[str]) -> str:
    """Return the error message for ranked tests that no size was given for."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{len(names)} ranked test(s) without a number of pipeline stages ({shown}): give "
        f"{_WHERE}, or @pytest.mark.pprank(pp=N) on the test"
        " (with the fixture 'disagg': prefill=N, decode=M)"
    )
