"""The error when SGLang does not start: SGLang's message and line, and the test's marker."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from types import TracebackType

from pytest_pprank.errors import StartFailed
from pytest_pprank.sglang.static.release import package_root
from pytest_pprank.topology import Role

_OF = {name: f": the sizes of {name}" for name in ("prefill", "decode")}


def start_failed(error: Exception, changes: Mapping[str, object], role: Role) -> StartFailed:
    """Return an error that describes `error`, which creating or starting a Scheduler raised.

    `changes`: the server args that the test's markers give to the stages of `role`. Sizes within a
    stage are named, too: SGLang may refuse them, or a server arg together with them.
    """
    lines = [f"SGLang does not start with these server args: {_sentence(error)}"]
    args = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    of_role = "" if role.name == "pp" else f" (on the stages of {role.name})"
    lines.append(f"  @pytest.mark.sglang({args}){of_role}" if args else f"  the defaults{of_role}")
    lines += _sizes(role)
    lines += _place(error)
    return StartFailed("\n".join(lines))


def _sizes(role: Role) -> list[str]:
    """Return the line about the sizes of a role whose stages have several ranks."""
    counts = {name: count for name, count in role.counts._asdict().items() if count > 1}
    if role.tp == 1:
        return []
    options = " ".join(f"--{name}-size {count}" for name, count in counts.items())
    marker = ", ".join(f"{name}={count}" for name, count in counts.items())
    return [f"  {options}, or @pytest.mark.pprank({marker}){_OF.get(role.name, '')}"]


def _sentence(error: Exception) -> str:
    return str(error).strip() or f"{type(error).__name__} without a message"


def _place(error: Exception) -> list[str]:
    """Return where in SGLang it was raised, or which line of SGLang called the code that raised."""
    root = str(package_root() or "")
    found: TracebackType | None = None
    step = error.__traceback__
    while step is not None:
        if root and step.tb_frame.f_code.co_filename.startswith(root):
            found = step
        step = step.tb_next
    name = type(error).__name__
    if found is None:
        return [f"  {name}, raised outside SGLang"]
    code = found.tb_frame.f_code
    source = linecache.getline(code.co_filename, found.tb_lineno).strip()
    raised = "raised" if found.tb_next is None else "raised in a call"
    return [
        f"  {name}, {raised} at {code.co_filename}:{found.tb_lineno} in {code.co_name}:",
        f"    {source}",
    ]
