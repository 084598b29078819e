"""Facts about the installed SGLang for the controller, found without importing it.

Only reads the package's files (ast) and metadata. So a wrong server arg is reported within
hundredths of a second, instead of after an import of SGLang on every rank.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pytest_pprank.errors import SEE_DOCTOR, SeamMissing, UsageError, did_you_mean
from pytest_pprank.sglang.model.families import FAMILIES
from pytest_pprank.sglang.static.arg_values import misfit
from pytest_pprank.sglang.static.installed import installed

OLDEST_SGLANG = (0, 5, 13)
"""First release whose Scheduler imports on a CPU build of torch 2.13 (FACTS, version drift)."""

OLDEST_TORCH = (2, 11)

NO_NCCL = "/no-nccl-on-device-cpu"
"""Ranks on cpu and sim tell SGLang to load this path as NCCL, so that it finds none."""

TINY_LAYERS = 4
"""Least number of layers of a tiny model; with more stages it has one layer per stage."""

MOST_TINY_LAYERS = 128

TINY_DEFAULT = "llama"
"""The tiny model used when no model_path is given."""

_TINY = "tiny:"

_BACKEND = "disaggregation_transfer_backend"

_USE_INSTEAD = {
    "pp_size": "give --pp-size N or @pytest.mark.pprank(pp=N)",
    "pipeline_parallel_size": "give --pp-size N or @pytest.mark.pprank(pp=N)",
    "tp_size": "give --tp-size N or @pytest.mark.pprank(tp=N)",
    "tensor_parallel_size": "give --tp-size N or @pytest.mark.pprank(tp=N)",
    "device": "give --pprank-device or @pytest.mark.pprank(device=...)",
    "disaggregation_mode": "give @pytest.mark.pprank(prefill=N, decode=M)",
    "disaggregation_bootstrap_port": "the plugin takes a free loopback port",
    "dist_init_addr": "the plugin opens a store of its own on a free loopback port",
    "nccl_port": "the plugin opens a store of its own on a free loopback port",
    "host": "the plugin starts no HTTP server",
    "port": "the plugin starts no HTTP server",
    "nnodes": "several nodes are not supported yet",
    "node_rank": "several nodes are not supported yet",
    "base_gpu_id": "the plugin leases the devices; set CUDA_VISIBLE_DEVICES to choose among them",
    "gpu_id_step": "the plugin leases the devices; set CUDA_VISIBLE_DEVICES to choose among them",
    **dict.fromkeys(
        ("dp_size", "data_parallel_size", "attn_dp_size", "enable_dp_attention"),
        "give --dp-size N or @pytest.mark.pprank(dp=N): DP ranks share a stage's requests; several "
        "replicas are not supported",
    ),
    **dict.fromkeys(
        ("ep_size", "expert_parallel_size"), "give --ep-size N or @pytest.mark.pprank(ep=N)"
    ),
    "skip_tokenizer_init": "the plugin speaks token ids and loads no tokenizer",
}


def sglang_version() -> str | None:
    """Return the version of the SGLang that would be imported; None if there is none."""
    here = installed()
    return None if here is None else here.version


def is_older_than(version: str) -> bool:
    """Return whether the installed SGLang is older than `version`; False if there is none."""
    here = installed()
    return here is not None and here.is_older_than(version)


def is_in(specifier: str) -> bool:
    """Return whether the installed SGLang matches `specifier` (PEP 440); False if none is."""
    here = installed()
    return here is not None and here.is_in(specifier)


def package_root() -> Path | None:
    """Return the folder of the ``sglang`` package without importing it."""
    here = installed()
    return None if here is None else here.root


def check_installed() -> None:
    """Raise UsageError if SGLang or torch is missing or older than the oldest supported one."""
    check_sglang()
    check_torch()


def check_sglang() -> None:
    """Raise UsageError if SGLang is missing or older than the oldest supported release."""
    _check_version("sglang", sglang_version(), OLDEST_SGLANG)


def check_torch() -> None:
    """Raise UsageError if torch is missing or older than the oldest supported release."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        version = None
    _check_version("torch", version, OLDEST_TORCH)


def check_server_args(args: Mapping[str, object]) -> None:
    """Raise UsageError for server args that cannot be used.

    These are names that SGLang does not have, names that the plugin itself sets, and values of
    another type than SGLang declares.
    """
    for name, value in args.items():
        if name in _USE_INSTEAD:
            raise UsageError(
                f"@pytest.mark.sglang({name}=...): {name!r} is set by pytest-pprank: "
                f"{_USE_INSTEAD[name]}"
            )
        known = server_arg_names()
        if name not in known:
            raise UsageError(
                f"@pytest.mark.sglang({name}=...): SGLang {sglang_version()} has no server arg "
                f"{name!r}{did_you_mean(name, known)}"
            )
        if allowed := misfit(known[name], value):
            raise UsageError(
                f"@pytest.mark.sglang({name}={value!r}): SGLang {sglang_version()} takes {allowed}"
            )
    _check_transfer_backend(args.get(_BACKEND))


@lru_cache(maxsize=1)
def server_arg_names() -> Mapping[str, ast.expr]:
    """Return the names of all server args of the installed SGLang, with their annotations.

    From 0.5.20 on the fields are spread over the classes of ``srt/arg_groups/fields/*.py``;
    before, they are the annotated names of the dataclass in ``srt/server_args.py``.
    Raises SeamMissing if neither declares any.
    """
    root = package_root()
    if root is None:
        raise UsageError("SGLang is not installed; run: python -m pytest_pprank setup")
    names = dict(_annotated(root / "srt" / "server_args.py", only="ServerArgs"))
    for file in sorted((root / "srt" / "arg_groups" / "fields").glob("*.py")):
        names.update(_annotated(file))
    if not names:
        raise SeamMissing(
            f"SGLang {sglang_version()}: no server arg found in srt/server_args.py or "
            "srt/arg_groups/fields"
        )
    return {name: it for name, it in names.items() if not name.startswith("_")}


def _check_transfer_backend(value: object) -> None:
    known = transfer_backends()
    if value is not None and known and value not in known:
        raise UsageError(
            f"@pytest.mark.sglang({_BACKEND}={value!r}): SGLang {sglang_version()} knows "
            f"{', '.join(sorted(known))}"
        )


@lru_cache(maxsize=1)
def transfer_backends() -> frozenset[str]:
    """Return the names of SGLang's KV transfer backends; empty if they cannot be found.

    Source: ``DISAGG_TRANSFER_BACKEND_CHOICES`` in ``srt/server_args.py``, or from 0.5.20 on in
    ``srt/arg_groups/choices.py``.
    """
    root = package_root()
    files = ("arg_groups/choices.py", "server_args.py") if root is not None else ()
    for file in (root / "srt" / name for name in files if root is not None):
        for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
            names = [ast.unparse(target) for target in getattr(node, "targets", ())]
            if isinstance(node, ast.Assign) and names == ["DISAGG_TRANSFER_BACKEND_CHOICES"]:
                return frozenset(ast.literal_eval(node.value))
    return frozenset()


class Tiny(NamedTuple):
    """Which tiny model a test asks for; `layers` 0: as many as the ranks need."""

    family: str
    layers: int = 0


def tiny_asked(model_path: object) -> Tiny | None:
    """Parse a ``model_path`` of the form ``tiny:NAME`` or ``tiny:NAME:LAYERS``.

    Returns None for another path, and for None. Raises UsageError for a NAME or LAYERS that is not
    allowed.
    """
    text = str(model_path or "")
    if not text.startswith(_TINY):
        return None
    name, colon, layers = text.removeprefix(_TINY).partition(":")
    given = f"@pytest.mark.sglang(model_path={text!r}): "
    if name not in FAMILIES:
        raise UsageError(
            f"{given}there is no such tiny model{did_you_mean(name, FAMILIES)}; allowed: "
            + ", ".join(f"{_TINY}{known}" for known in FAMILIES)
        )
    if colon and not (layers.isdecimal() and 0 < int(layers) <= MOST_TINY_LAYERS):
        raise UsageError(f"{given}the number of layers must be 1 to {MOST_TINY_LAYERS}")
    return Tiny(name, int(layers or 0))


def num_layers(args: Mapping[str, object], stages: int) -> int:
    """Return the model's number of layers; raises UsageError if it is less than `stages`.

    `args`: the user's server args. Without a ``model_path`` in them it is the tiny model, which has
    enough layers unless their number is given, too. A model_path that is not a local folder cannot
    be read here and counts as large enough.
    """
    given = args.get("model_path")
    tiny = Tiny(TINY_DEFAULT) if given is None else tiny_asked(given)
    if tiny is not None:
        layers = tiny.layers or max(TINY_LAYERS, stages)
    else:
        layers = _layers_of(Path(str(given)), default=stages)
    if stages > layers:
        raise UsageError(
            f"--pp-size {stages} or @pytest.mark.pprank(pp={stages}): model_path {str(given)!r} "
            f"has {layers} layers, so at most {layers} stages; give a smaller size, or "
            "@pytest.mark.sglang(model_path=...) with more layers"
        )
    return layers


def _layers_of(folder: Path, default: int) -> int:
    found = model_config(folder).get("num_hidden_layers")
    return found if isinstance(found, int) else default


def model_config(folder: Path) -> Mapping[str, object]:
    """Return the config of a model in a local folder, of its text part; empty for any other."""
    config = folder / "config.json"
    if not config.is_file():
        return {}
    values = json.loads(config.read_text(encoding="utf-8"))
    return {**values, **values.get("text_config", {})}


def _annotated(file: Path, only: str | None = None) -> Iterator[tuple[str, ast.expr]]:
    if not file.is_file():
        return
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and only in (None, node.name):
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield statement.target.id, statement.annotation


def _check_version(name: str, version: str | None, oldest: tuple[int, ...]) -> None:
    wanted = ".".join(map(str, oldest))
    if version is None:
        raise UsageError(
            f"{name} is not installed; pytest-pprank needs {name} {wanted} or newer. "
            f"Set it up with: python -m pytest_pprank setup {SEE_DOCTOR}"
        )
    found = tuple(int(part) for part in re.findall(r"\d+", version)[: len(oldest)])
    if found and found < oldest:  # a checkout may have no version
        raise UsageError(
            f"{name} {version} is too old: pytest-pprank needs {name} {wanted} or newer. "
            f"A fitting set-up comes with: python -m pytest_pprank setup {SEE_DOCTOR}"
        )
