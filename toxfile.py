"""Let the tox environments that need SGLang share one virtual environment.

SGLang without a GPU is 2.3 GB and takes two minutes to install. tox recreates an environment
whose folder was made under another name; the runner ``shared`` leaves the name out of that
comparison, and everything else (interpreter, packages, dependencies) in it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from tox.plugin import impl
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class _NamelessInfo(Info):
    """What tox remembers of an environment, less the name it was made under."""

    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> AbstractContextManager[tuple[bool, Any]]:
        if section == "ToxEnv":
            value = {**value, "name": "shared"}
        return super().compare(value, section, sub_section)


class SharedRunner(VirtualEnvRunner):
    """tox's own runner, for environments with one `env_dir` and the same `deps`."""

    @staticmethod
    def id() -> str:
        return "shared"

    @property
    def cache(self) -> Info:
        return _NamelessInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Make ``runner = shared`` known."""
    register.add_run_env(SharedRunner)
