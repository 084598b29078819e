"""Facts about this machine that `plan` needs; nothing here changes anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pytest_pprank.provision import pip
from pytest_pprank.sglang.static.installed import installed

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_INDEX_SECONDS = 3.0


@dataclass(frozen=True)
class Facts:
    """The environment before the installation; versions are None for missing packages."""

    sglang: str | None
    torch: str | None
    gpu: bool
    installed: dict[str, str]
    """All installed distributions: canonical name -> version."""


def gather(names: Iterable[str]) -> Facts:
    """Inspect this interpreter's environment; `names`: the packages whose versions matter."""
    installed = {name: version for name in names if (version := _version(name)) is not None}
    return Facts(sglang=_sglang(), torch=_version("torch"), gpu=has_gpu(), installed=installed)


def has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    # WSL has no /dev/nvidia0; without a driver the tool exists and fails.
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU " in listed.stdout


def pip_offers(requirement: str) -> bool:
    """Return whether pip, as configured here, finds `requirement` (one try, no retries)."""
    asked = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--retries", "0"]
    return pip.run([*asked, requirement]).ok


def index_answers(url: str = TORCH_CPU_INDEX, seconds: float = _INDEX_SECONDS) -> bool:
    """Return whether the wheel index at `url` answers within `seconds`, including name look-up."""
    answers: list[bool] = []
    # In a thread, because a slow name server can block longer than any socket time-out.
    thread = threading.Thread(target=lambda: answers.append(_head(url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers == [True]


def _head(url: str, seconds: float) -> bool:
    request = urllib.request.Request(f"{url}/torch/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _sglang() -> str | None:
    """Return SGLang's version; a checkout that is only on the path counts as installed."""
    here = installed()
    return None if here is None else here.version
