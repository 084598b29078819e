"""Describes an operation of torch.distributed, from the call that issues it."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from pytest_pprank.frames import Owner, folders, only_calls, owner_of
from pytest_pprank.oplog.file import (
    COLLECTIVE,
    CREATE,
    NOWHERE,
    RECV,
    SEND,
    STORE,
    Call,
    Site,
)
from pytest_pprank.oplog.record.writer import NAME_LENGTH, EncodedCall

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

_SHOWN_SHAPES = 4
_FORMS = 4096
_TEXT = 60
_FILE = 160
_UNNAMED = ("", "undefined")
_DEFAULT = "default group"


class Kind(NamedTuple):
    """A method of ProcessGroup: its name for users, and which argument has this rank's tensors.

    If ranks send and receive different amounts, `tensors` is the argument whose size all agree on.
    """

    name: str
    way: str
    tensors: int | None = 0


KINDS = {
    "send": Kind("send", SEND),
    "recv": Kind("recv", RECV),
    "recv_anysource": Kind("recv", RECV),
    "allreduce": Kind("all_reduce", COLLECTIVE),
    "allreduce_coalesced": Kind("all_reduce_coalesced", COLLECTIVE),
    "broadcast": Kind("broadcast", COLLECTIVE),
    "reduce": Kind("reduce", COLLECTIVE),
    "allgather": Kind("all_gather", COLLECTIVE, 1),
    "allgather_coalesced": Kind("all_gather_coalesced", COLLECTIVE, 1),
    "_allgather_base": Kind("all_gather_into_tensor", COLLECTIVE, 1),
    "all_gather_single": Kind("all_gather_into_tensor", COLLECTIVE, 1),
    "allgather_into_tensor_coalesced": Kind("all_gather_into_tensor_coalesced", COLLECTIVE, 1),
    "all_gather_single_coalesced": Kind("all_gather_into_tensor_coalesced", COLLECTIVE, 1),
    "reduce_scatter": Kind("reduce_scatter", COLLECTIVE),
    "_reduce_scatter_base": Kind("reduce_scatter_tensor", COLLECTIVE),
    "reduce_scatter_single": Kind("reduce_scatter_tensor", COLLECTIVE),
    "reduce_scatter_tensor_coalesced": Kind("reduce_scatter_tensor_coalesced", COLLECTIVE),
    "reduce_scatter_single_coalesced": Kind("reduce_scatter_tensor_coalesced", COLLECTIVE),
    "alltoall": Kind("all_to_all", COLLECTIVE, 1),
    "alltoall_base": Kind("all_to_all_single", COLLECTIVE, 1),
    "all_to_all_single": Kind("all_to_all_single", COLLECTIVE, 1),
    "gather": Kind("gather", COLLECTIVE, 1),
    "scatter": Kind("scatter", COLLECTIVE),
    "barrier": Kind("barrier", COLLECTIVE, None),
    "monitored_barrier": Kind("monitored_barrier", COLLECTIVE, None),
}
"""The methods that begin an operation, in all torch releases that this plugin supports."""


class _Group(NamedTuple):
    reference: weakref.ref[ProcessGroup]
    identity: str
    label: str
    ranks: tuple[int, ...]
    backends: dict[str, str]


class CallDescriber:
    """Describes calls. `plumbing`: parts of file names of wrappers between the caller and torch.

    `role`: first rank, and number of ranks, of this rank's role. If torch's world is one role of
    several (SGLang's, with prefill and decode in one worker group), its ranks begin at 0 again. In
    descriptions a rank is always that of the worker group.
    """

    def __init__(self, plumbing: Sequence[str] = (), role: tuple[int, int] = (0, 0)) -> None:
        self._plumbing = tuple(plumbing)
        self._role = role
        self._first = 0
        self.world: tuple[int, ...] = ()
        """The ranks of torch's default group, as ranks of the worker group."""
        self._origins: dict[str, int] = {}
        self._groups: dict[int, _Group] = {}
        self._created: dict[str, int] = {}
        self._dtypes: dict[torch.dtype, str] = {}
        self._reductions: dict[int | None, str] = {}
        self._option_fields: dict[type, tuple[bool, bool]] = {}
        self._forms: dict[tuple[object, ...], EncodedCall] = {}
        self._codes: dict[int, CodeType] = {}

    def operation(self, kind: Kind, group: ProcessGroup, arguments: Sequence[Any]) -> EncodedCall:
        """Describe the call of a ProcessGroup's method; `arguments` has keyword arguments last."""
        known = self._known(group)
        tensors = () if kind.tensors is None else _tensors(arguments[kind.tensors])
        device = "" if not tensors else "cpu" if tensors[0].is_cpu else tensors[0].device.type
        backend = known.backends.get(device) or _look_up_backend(known, group, device)
        peer = root = None
        tag, detail = 0, ""
        if kind.way == COLLECTIVE:
            root, detail = self._options(arguments, known.ranks)
        else:
            tag = int(arguments[-1])
            peer = _global(int(arguments[1]), known.ranks) if len(arguments) > 2 else None
        caller, via = self._frames()
        thread = threading.current_thread()
        # Everything that distinguishes calls, in the form that is cheapest to get. Programs repeat
        # their calls, and the description itself (line number, names) is expensive.
        key = (
            kind.name, known.identity, known.label, backend, peer, root, tag, detail, thread,
            *((None, None) if caller is None else (id(caller.f_code), caller.f_lasti)),
            *((None, None) if via is None else (id(via.f_code), via.f_lasti)),
            *[(tensor.shape, tensor.dtype) for tensor in tensors],
        )  # fmt: skip
        form = self._forms.get(key)
        if form is None:
            call = Call(
                kind=kind.name,
                way=kind.way,
                group=known.identity,
                label=known.label,
                ranks=known.ranks,
                backend=backend,
                peer=peer,
                root=root,
                tag=tag,
                shapes=tuple([tuple(tensor.shape) for tensor in tensors[:_SHOWN_SHAPES]]),
                tensors=len(tensors),
                dtype=self._dtype(tensors[0].dtype) if tensors else "",
                nbytes=sum([tensor.nbytes for tensor in tensors]),
                detail=detail,
                site=_site(caller),
                via=None if via is None else _site(via),
                thread=thread_name(),
            )
            form = self._remember(key, EncodedCall(call), caller, via)
        return form

    def _remember(
        self, key: tuple[object, ...], form: EncodedCall, *frames: FrameType | None
    ) -> EncodedCall:
        if len(self._forms) >= _FORMS:
            self._forms.clear()
            self._codes.clear()
        self._forms[key] = form
        # keep the code objects alive, so that no other gets the same id
        self._codes.update((id(f.f_code), f.f_code) for f in frames if f is not None)
        return form

    def begin_world(self, size: int) -> None:
        """Note the number of ranks that torch's default group is about to have."""
        first, stages = self._role
        self._first = first if size == stages else 0
        self.world = tuple(range(self._first, self._first + size))

    def creation(self, group: str, label: str, ranks: tuple[int, ...], backend: str) -> Call:
        """Describe the creation of a group of torch's `ranks`. No `label`: the default group."""
        caller, via = self._frames()
        ranks = tuple([self._first + rank for rank in ranks])
        return Call(
            kind="new_group" if label else "init_process_group",
            way=CREATE,
            group=_identity(group, ranks),
            label=_label(group if label in _UNNAMED else label) if label else _DEFAULT,
            ranks=ranks,
            backend=backend,
            site=_site(caller),
            via=None if via is None else _site(via),
            thread=thread_name(),
        )

    def begin_group(self, creation: Call) -> str:
        """Count the creation of a group; return the identity of the previous group of that name."""
        times = self._created.get(creation.group, 0) + 1
        self._created[creation.group] = times
        return _nth(creation.group, times - 1)

    def groups(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Return identity, name in words and members of the groups that this rank is in now."""
        from torch.distributed import distributed_c10d as c10d

        found = [self._known(group) for group in list(c10d._world.pg_names)]
        return [(known.identity, known.label, known.ranks) for known in found]

    def store_wait(self, method: str, keys: object) -> Call:
        """Describe a wait for keys of a store."""
        caller, via = self._frames()
        return Call(
            kind=f"store.{method}",
            way=STORE,
            group="",
            label="",
            ranks=(),
            backend="",
            detail=f"key {keys}"[:_TEXT],
            site=_site(caller),
            via=None if via is None else _site(via),
            thread=thread_name(),
        )

    def _known(self, group: ProcessGroup) -> _Group:
        known = self._groups.get(id(group))
        return self._look_up(group) if known is None or known.reference() is not group else known

    def _look_up(self, group: ProcessGroup) -> _Group:
        from torch.distributed import distributed_c10d as c10d

        places = c10d._world.pg_group_ranks.get(group, {})
        ranks = tuple([self._first + rank for rank in sorted(places, key=lambda r: places[r])])
        name = str(group.group_name)
        if group is c10d.GroupMember.WORLD:
            label = _DEFAULT
        else:
            described = getattr(group, "group_desc", "")
            label = _label(name if described in _UNNAMED else described)
        identity = _identity(name, ranks)
        identity = _nth(identity, self._created.get(identity, 0))
        known = _Group(weakref.ref(group), identity, label, ranks, {})
        if ranks:  # else it is not registered yet
            self._groups[id(group)] = known
        return known

    def _options(self, arguments: Sequence[Any], ranks: tuple[int, ...]) -> tuple[int | None, str]:
        """Return the root and the reduction of a collective, as far as its options have them."""
        options = arguments[-1] if arguments else None
        # cached by type: a failing attribute lookup is slow with pybind11
        has = self._option_fields.get(type(options))
        if has is None:
            has = hasattr(type(options), "rootRank"), hasattr(type(options), "reduceOp")
            self._option_fields[type(options)] = has
        if options is None:
            return None, ""
        root = _global(int(options.rootRank), ranks) if has[0] else None
        if not has[1]:
            return root, ""
        operator = getattr(options.reduceOp, "op", None)
        # by number: enums of pybind11 are slow to hash and to compare
        number = getattr(operator, "value", None)
        name = self._reductions.get(number)
        if name is None:
            name = self._reductions[number] = getattr(operator, "name", "")
        return root, name

    def _dtype(self, dtype: torch.dtype) -> str:
        name = self._dtypes.get(dtype)
        if name is None:
            name = self._dtypes[dtype] = str(dtype).removeprefix("torch.")
        return name

    def _frames(self) -> tuple[FrameType | None, FrameType | None]:
        """Return the frame that issues the operation, and the plumbing frame through which it does.

        If no caller's code is on the stack (the target of a thread), the first is a library's
        frame.
        """
        via: FrameType | None = None
        library: FrameType | None = None
        frame: FrameType | None = sys._getframe(2)
        origins = self._origins
        while frame is not None:
            file = frame.f_code.co_filename
            origin = origins.get(file)
            if origin is None:
                origin = self._classify(file)
            if origin == _CALLER:
                return frame, via
            if origin == _PLUMBING and via is None:
                via = frame
            elif origin == _LIBRARY and library is None:
                library = frame
            frame = frame.f_back
        return via or library, None

    def _classify(self, file: str) -> int:
        origin = _CALLER
        if owner_of(file) is Owner.TORCH or folders().is_wrapper(file):
            origin = _SKIPPED
        elif only_calls(file):
            origin = _LIBRARY
        elif any(part in file for part in self._plumbing):
            origin = _PLUMBING
        self._origins[file] = origin
        return origin


_SKIPPED, _LIBRARY, _PLUMBING, _CALLER = range(4)


def thread_name() -> str:
    """Return this thread's name, or that of the thread that waits while this one works for it.

    Such a pair (attribute `stands_for`) never runs at the same time: one thread cannot issue what
    the other waits for, so the two count as one.
    """
    thread = threading.current_thread()
    name = str(getattr(thread, "stands_for", thread.name))
    return name if len(name) <= _TEXT else name[:_TEXT]


def _site(frame: FrameType | None) -> Site:
    if frame is None:
        return NOWHERE
    code = frame.f_code
    return Site(code.co_filename[-_FILE:], frame.f_lineno, code.co_name[:_TEXT])


def _tensors(argument: Any) -> list[torch.Tensor]:
    """Return the tensors in an argument, which is a tensor or nested sequences of tensors."""
    if not isinstance(argument, (list, tuple)):
        return [argument]
    if len(argument) == 1 and not isinstance(argument[0], (list, tuple)):
        return list(argument)
    return [tensor for part in argument for tensor in _tensors(part)]


def _global(rank: int, ranks: tuple[int, ...]) -> int:
    return ranks[rank] if 0 <= rank < len(ranks) else rank


def _look_up_backend(known: _Group, group: ProcessGroup, device: str) -> str:
    import torch

    actual = torch.device(device or _default_device(group))
    backend = known.backends[device] = str(group._get_backend(actual).name())
    return backend


def _default_device(group: ProcessGroup) -> str:
    devices = [device.type for device in group._device_types]
    return "cpu" if "cpu" in devices or not devices else str(devices[0])


def _label(name: str) -> str:
    return f"group {name[:12]}"


def _identity(name: str, ranks: tuple[int, ...]) -> str:
    """Return a name that no group with other members has: torch reuses names."""
    return f"{name[:NAME_LENGTH]}:{crc32(repr(ranks).encode()):08x}"


def _nth(identity: str, times: int) -> str:
    return identity if times < 2 else f"{identity}~{times}"
