"""Let modules ask about GPUs while they are imported, without CUDA being started for that.

A process in which CUDA was started cannot be forked. Modules that only want to know which kernels
they may use start it all the same: SGLang's sgl_kernel asks for the current device while it is
imported (sgl_kernel/load_utils.py). So a child process that is thrown away asks the driver, by
torch, and what it has found stands in for those functions of torch until the imports are over.

The answers are true for each rank later: all GPUs must be alike, and the number of the current
device is the only answer that a rank would give otherwise.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pytest_pprank.errors import PprankError
from pytest_pprank.frames import Owner, caller
from pytest_pprank.oplog.file import Site
from pytest_pprank.rank.patches import patch

if TYPE_CHECKING:
    import torch

_ASK = """
import json, torch
plain = (bool, int, float, str)
facts = []
for number in range(torch.cuda.device_count()):
    found = torch.cuda.get_device_properties(number)
    names = [name for name in dir(found) if not name.startswith("_")]
    values = {name: getattr(found, name) for name in names}
    facts.append({name: value for name, value in values.items() if isinstance(value, plain)})
print(json.dumps(facts))
"""
_ASK_S = 120.0
_OWN = frozenset({"pci_bus_id", "pci_device_id", "pci_domain_id", "uuid", "total_memory"})
"""Properties in which GPUs of one kind differ."""
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED of cuda.h


class NoAnswer(Exception):
    """Why questions about GPUs cannot be answered without starting CUDA here."""


class DeviceProperties(SimpleNamespace):
    """What torch.cuda.get_device_properties returns, as far as it is a number or a string."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"{name} of a GPU's properties: not known while modules are imported (pytest-pprank)"
        )


class Answers:
    """What the driver says of the visible GPUs, asked by a child process.

    `started`: where CUDA was started all the same, "" if nowhere. `why_not`: why the child could
    not say anything.
    """

    def __init__(self) -> None:
        self.started = self.why_not = ""
        self.closed = False
        self._child = subprocess.Popen(
            [sys.executable, "-c", _ASK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._found: tuple[DeviceProperties, ...] | None = None

    @property
    def devices(self) -> tuple[DeviceProperties, ...]:
        """All visible GPUs, in CUDA's order; NoAnswer where they differ or cannot be asked."""
        if self.why_not:
            raise NoAnswer(self.why_not)
        if self._found is None:
            try:
                self._found = tuple(DeviceProperties(**facts) for facts in self._facts())
            except NoAnswer as error:
                self.why_not = str(error)
                raise
        return self._found

    @property
    def answered(self) -> bool:
        """Whether any question was answered."""
        return self._found is not None

    def properties(self, device: int | str | torch.device | None = None) -> DeviceProperties:
        """Answer torch.cuda.get_device_properties."""
        import torch

        index = device if isinstance(device, int) or device is None else torch.device(device).index
        if not 0 <= (index or 0) < len(self.devices):
            raise AssertionError("Invalid device id")  # as torch does
        return self.devices[index or 0]

    def _facts(self) -> list[dict[str, object]]:
        try:
            out, errors = self._child.communicate(timeout=_ASK_S)
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"the driver has not answered in {_ASK_S:.0f} s") from None
        if self._child.returncode:
            last = (errors.strip().splitlines() or [f"exit code {self._child.returncode}"])[-1]
            raise NoAnswer(f"torch cannot ask the driver: {last}")
        try:
            # the last line: what is imported with Python (sitecustomize) may print, too
            facts: list[dict[str, object]] = json.loads(out.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise NoAnswer(f"the process that asks the driver has said {out[-200:]!r}") from None
        if not facts:
            raise NoAnswer("torch sees no GPU")
        kinds = {json.dumps(_of_its_kind(each), sort_keys=True) for each in facts}
        if len(kinds) > 1:
            names = ", ".join(dict.fromkeys(str(each["name"]) for each in facts))
            raise NoAnswer(f"the GPUs are of several kinds ({names})")
        return facts

    def close(self) -> None:
        """End the child, also where nobody has asked for what it says."""
        self.closed = True
        self._child.kill()
        self._child.communicate()


def _of_its_kind(facts: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if name not in _OWN}


_given: Answers | None = None
"""What this process, or the one that it was forked from, was told while it imported."""


@contextmanager
def unstarted() -> Iterator[Answers]:
    """Answer questions about GPUs in the block, in which modules are imported, without CUDA.

    Where that is impossible torch's own functions answer, and start CUDA (`Answers.started`).
    Functions that a module has taken from torch in the block work as torch's own after it.
    """
    import torch

    global _given
    answers = _given = Answers()
    cuda = torch.cuda
    with ExitStack() as stack:
        stack.callback(answers.close)
        for owner, name, answer in (
            (cuda, "is_available", lambda: bool(answers.devices)),
            (cuda, "device_count", lambda: len(answers.devices)),
            (cuda, "current_device", lambda: answers.devices and 0),
            (cuda, "get_device_properties", answers.properties),
            # torch.get_device_module asks it
            (torch._C, "_get_accelerator", lambda *_: answers.devices and torch.device("cuda")),
        ):
            stack.callback(patch(owner, name, _asked(answers, answer, getattr(owner, name))))
        stack.callback(patch(cuda, "_lazy_init", _noted(answers, cuda._lazy_init)))
        yield answers


@contextmanager
def hidden() -> Iterator[None]:
    """Answer in the block, in which modules are imported, that there is no GPU.

    For processes from which the machine's GPUs are hidden: torch would ask CUDA's driver, which
    finds none and leaves a thread behind.
    """
    import torch

    real = torch._C._get_accelerator

    def accelerator(*args: bool) -> torch.device:
        # torch looks for CUDA only where no other kind of device is registered, as sim is
        registered = torch._C._get_privateuse1_backend_name() != "privateuseone"
        return real(*args) if registered else torch.device("cpu")

    with ExitStack() as stack:
        for owner, name, answer in (
            (torch.cuda, "is_available", lambda: False),
            (torch.cuda, "device_count", lambda: 0),
            (torch._C, "_get_accelerator", accelerator),
        ):
            stack.callback(patch(owner, name, answer))
        yield


def _asked(
    answers: Answers, answer: Callable[..., object], real: Callable[..., object]
) -> Callable[..., object]:
    @wraps(real)
    def ask(*args: object, **kwargs: object) -> object:
        if answers.closed:
            return real(*args, **kwargs)
        try:
            return answer(*args, **kwargs)
        except NoAnswer:
            return real(*args, **kwargs)

    return ask


def _noted(answers: Answers, start: Callable[[], None]) -> Callable[[], None]:
    @wraps(start)
    def start_and_note() -> None:
        if not (answers.closed or answers.started or sys.modules["torch"].cuda.is_initialized()):
            why = f", as {answers.why_not}" if answers.why_not else ""
            answers.started = f"{_place()}{why}"
        start()

    return start_and_note


def _place() -> str:
    frame = caller(sys._getframe(2), Owner.PLUGIN, Owner.TORCH)
    return f"at {Site(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)}"


def check_answers(number: int) -> None:
    """Hold that this rank's GPU, of this number, is of the kind that modules were told of while
    they were imported; raises PprankError else.
    """
    if _given is None or not _given.answered:
        return
    import torch

    told, real = _given.devices[0], torch.cuda.get_device_properties(number)
    wrong = [
        f"{name} is {getattr(real, name, None)!r}, not {value!r}"
        for name, value in _of_its_kind(vars(told)).items()
        if getattr(real, name, None) != value
    ]
    if wrong:
        raise PprankError(
            f"cuda:{number} is not what SGLang was told while it was imported: {'; '.join(wrong)}"
        )


def driver_started() -> bool:
    """Say whether CUDA's driver was started in this process, by whomever: cuInit of libcuda."""
    if "libcuda.so" not in Path("/proc/self/maps").read_text():
        return False
    context = ctypes.c_void_p()
    code: int = ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context))
    return code != _NOT_INITIALIZED
