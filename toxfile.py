"""Read by tox beside tox.ini: one environment for each lock of SGLang, `sglang0513` for 0.5.13.

So a new lock (`python -m pytest_pprank.provision.resolve 0.5.24`) needs no line in tox.ini. What
they do is in its section `sglang`, but for the release, which is set here.
"""

from __future__ import annotations

from pathlib import Path

from tox.config.loader.memory import MemoryLoader
from tox.config.sets import ConfigSet
from tox.plugin import impl
from tox.session.state import State

LOCKS = Path(__file__).parent / "pytest_pprank" / "provision" / "locks"
RELEASES = {
    f"sglang{file.stem.replace('.', '')}": file.stem for file in sorted(LOCKS.glob("[0-9]*.txt"))
}


@impl
def tox_extend_envs() -> tuple[str, ...]:
    """Name the environments."""
    return tuple(RELEASES)


@impl
def tox_add_core_config(core_conf: ConfigSet, state: State) -> None:  # noqa: ARG001
    """Give each its base and its release."""
    for name, release in RELEASES.items():
        loader = MemoryLoader(
            base=["sglang", "testenv"],
            description=f"the stock suite on SGLang {release}, two pipeline stages",
            set_env={"SGLANG_RELEASE": release},
        )
        state.conf.memory_seed_loaders[name].append(loader)
