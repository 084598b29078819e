"""The lines of a ranked run in pytest's header, without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from pytest_pprank.devices import choose_device, visible_gpus
from pytest_pprank.options import Options
from pytest_pprank.report.off import expected_off, off_lines
from pytest_pprank.sglang.static.installed import installed


def header_lines(options: Options) -> list[str]:
    """Return the lines."""
    lines = []
    if options.sizes:
        sizes = ",".join(map(str, options.sizes))
        lines.append(
            f"pprank: pp={sizes}{_within(options)} device={_device(options)}, "
            f"torch {_version('torch')}, sglang {installed() or 'not installed'}"
        )
        lines += [f"pprank: {line}" for line in _off(options)]
    if options.perturb is not None:
        lines.append(f"pprank: perturbed, --pprank-perturb {options.perturb}")
    if options.reverts:
        from pytest_pprank.sglang import reverts

        lines += [f"pprank: REVERTED {reverts.resolve(r).describe()}" for r in options.reverts]
    return lines


def _within(options: Options) -> str:
    given = {name: sizes for name, sizes in options.within.items() if sizes != (1,)}
    return "".join(f" {name}={','.join(map(str, sizes))}" for name, sizes in given.items())


def _off(options: Options) -> Iterator[str]:
    here = installed()
    if here is not None:
        yield from off_lines(expected_off(here, options.sanitize))


def _device(options: Options) -> str:
    device, stages = options.device, max(options.sizes) * max(options.within["tp"])
    if device == "auto":
        device = choose_device("auto", stages, sglang=True)
        plain = choose_device("auto", stages)
        if plain != device:
            return f"{device} ({plain} without SGLang)"
    if device != "cuda":
        return device
    shared = ", shared by prefill and decode where too few" if options.oversubscribe else ""
    return f"cuda ({len(visible_gpus())} GPUs{shared})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
