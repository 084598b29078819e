"""What a rank needs before it can connect to the controller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_pprank.protocol.messages import ItemKey
from pytest_pprank.topology import Sizes

if TYPE_CHECKING:
    from pytest_pprank.sglang.reverts.model import Revert


@dataclass(frozen=True)
class Debugging:
    """When a rank is to stop in a debugger.

    `post_mortem`: at failures (--pdb). `trace`: at the start of each test. `only`: on this rank
    alone (None: on all). `refusal`: why there is no terminal; empty if there is one. `attach`: in
    a debugger that attaches, and not at the terminal.
    """

    post_mortem: bool = False
    trace: bool = False
    only: int | None = None
    refusal: str = ""
    attach: bool = False


@dataclass(frozen=True)
class RankBootstrap:
    """Everything a fresh process needs to become a rank; pickled into torch elastic's arguments.

    `gpus`: how many GPUs the ranks have, in turns (0 on other devices than cuda). `sizes`: the
    stages by role. `options`: the controller's parsed pytest options, pickled (unpickling them may
    need `path`). `items`: the tests this group will be asked to run. `folder` and `path`: the
    controller's working directory and sys.path. `basetemp`: the parent of its tmp_path folders.
    `server_args`: SGLang's (None: the group never uses SGLang). `reverts`: edits that take SGLang
    fixes out. `environment`: variables to set (None: to remove). `workerinputs`: by rank, what
    plugins of the controller pass to those of the rank (protocol.worker_data).
    `trace`: whether the ranks record what they do, for the page of the run. `debugging`:
    when to stop in a debugger.
    """

    address: tuple[str, int]
    key: bytes
    group: str
    device: str
    gpus: int
    sizes: Sizes
    workdir: str
    folder: str
    path: tuple[str, ...]
    arguments: tuple[str, ...]
    options: bytes
    items: tuple[ItemKey, ...]
    basetemp: str
    server_args: dict[str, object] | None = None
    reverts: tuple[Revert, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)
    workerinputs: tuple[bytes, ...] = ()
    trace: bool = False
    debugging: Debugging = Debugging()
