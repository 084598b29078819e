"""The checks of the doctor, in the order in which they are printed."""

from __future__ import annotations

from pytest_pprank.doctor import child, devices, machine, software, start
from pytest_pprank.doctor.result import EVERYTHING, WITH_SGLANG, Check, Use

_CHILD = child.SECONDS + 10.0

CHECKS = (
    Check("python", software.python, EVERYTHING),
    Check("pytest", software.pytest_itself, EVERYTHING),
    Check("torch", software.torch, EVERYTHING, _CHILD),
    Check("SGLang", software.sglang, WITH_SGLANG),
    Check("seams", software.seams, (), _CHILD),
    Check("cpu", devices.cpu),
    Check("sim", devices.sim, (Use.SIM,), _CHILD),
    Check("cuda", devices.cuda, (Use.CUDA,), _CHILD),
    Check("Mooncake", devices.mooncake, (Use.DISAGG,), _CHILD),
    Check("leases", machine.leases),
    Check("shm", machine.shared_memory, EVERYTHING),
    Check("files", machine.open_files, EVERYTHING),
    Check("processes", machine.processes, EVERYTHING),
    Check("loopback", machine.loopback, EVERYTHING),
    Check("interface", machine.interface, EVERYTHING),
    Check("clock", machine.clock, EVERYTHING),
    Check("tmp", machine.temporary_folder, EVERYTHING),
    Check("start", start.start, EVERYTHING, start.SECONDS),
)
