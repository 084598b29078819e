"""``python -m pytest_pprank COMMAND``: everything that is not a test run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_pprank._version import __version__
from pytest_pprank.bench import command as regressions
from pytest_pprank.bench import new_test, scaffold, seams
from pytest_pprank.controller import stacks_command as stacks
from pytest_pprank.doctor import command as doctor
from pytest_pprank.errors import did_you_mean
from pytest_pprank.known import command as known_bugs
from pytest_pprank.launch import stop
from pytest_pprank.mutants import command as mutate
from pytest_pprank.provision import command as setup

_REGISTER = (
    setup.register,
    doctor.register,
    regressions.register,
    mutate.register,
    scaffold.register,
    new_test.register,
    seams.register,
    known_bugs.register,
    stacks.register,
    stop.register,
)
"""One function per command, which adds the parser of that command.

The defaults of that parser are `run` and `parser`, and `takes_more` if the command passes the
arguments after ``--`` on to another program (they are then in `args.more`).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of `argv` (default: the process's own) and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pytest_pprank", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pytest-pprank {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for register in _REGISTER:
        register(commands)
    words = list(sys.argv[1:] if argv is None else argv)
    own, more = words, []
    if "--" in words:
        own, more = words[: words.index("--")], words[words.index("--") + 1 :]
    args, unknown = parser.parse_known_args(own)
    if getattr(args, "takes_more", False):
        args.more = more
    else:
        unknown += more
    if unknown:
        # argparse would show the usage of the whole program, without the options of the command.
        known = args.parser._option_string_actions
        allowed = ", ".join(sorted(name for name in known if name.startswith("--")))
        near = did_you_mean(unknown[0], known)
        args.parser.error(f"unknown argument {unknown[0]!r}{near}; allowed: {allowed}")
    return int(args.run(args))


def _main() -> int:
    """Run the command; return 1 if the reader of its output has closed the pipe (``head``)."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(_main())
