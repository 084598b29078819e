"""How SGLang's processes exchange messages with its Scheduler: pickled objects before 0.5.15."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from typing import Any

from pytest_pprank.sglang.compat.seams import need


def sender() -> Callable[[Any, Any], object]:
    """Return a function that sends a message through a socket."""
    io_struct = import_module("sglang.srt.managers.io_struct")
    found: Callable[[Any, Any], object] = getattr(
        io_struct, "sock_send", lambda socket, message: socket.send_pyobj(message)
    )
    return found


def receiver() -> Callable[[Any], Any]:
    """Return a function that receives the next message from a socket."""
    io_struct = import_module("sglang.srt.managers.io_struct")
    found: Callable[[Any], Any] = getattr(
        io_struct, "sock_recv", lambda socket: socket.recv_pyobj()
    )
    return found


def sampling_fields() -> tuple[str, ...]:
    """Return the parameters of SamplingParams, which is a plain class before 0.5.15."""
    params = need(import_module("sglang.srt.sampling.sampling_params"), "SamplingParams")
    known = getattr(params, "__struct_fields__", None)
    return tuple(inspect.signature(params).parameters) if known is None else tuple(known)


def request_fields() -> tuple[str, ...]:
    """Return the fields of the request for tokens, which is a dataclass before 0.5.15."""
    message = need(import_module("sglang.srt.managers.io_struct"), "TokenizedGenerateReqInput")
    known = getattr(message, "__struct_fields__", None)
    return tuple(inspect.signature(message).parameters) if known is None else tuple(known)


def stamp(message: Any, role: str) -> Any:
    """Add to a request the time statistics that SGLang's tokenizer adds; return the request.

    `role`: ``null``, ``prefill`` or ``decode``. The Scheduler reads them when it refuses a request.
    """
    stats = import_module("sglang.srt.observability.req_time_stats")
    modes = need(import_module("sglang.srt.disaggregation.utils"), "DisaggregationMode")
    message.time_stats = need(stats, "APIServerReqTimeStats")(disagg_mode=modes(role))
    if hasattr(message, "wrap_pickle_fields"):  # messages are no longer pickled
        message.wrap_pickle_fields()
    return message


def rpc_socket_of(ports: Any) -> str | None:
    """Return the name of the socket for remote calls; None if there is none."""
    name: str | None = getattr(ports, "rpc_ipc_name", None)
    return name


def message_class(name: str) -> Any:
    """Return a message class; None if this SGLang has none of that name."""
    return getattr(import_module("sglang.srt.managers.io_struct"), name, None)


def handled_requests(scheduler: object) -> frozenset[str]:
    """Return the names of the message classes that a Scheduler handles."""
    dispatcher = inspect.unwrap(need(scheduler, "_request_dispatcher"))
    handlers = need(dispatcher, "_mapping")
    return frozenset(message.__name__ for message in handlers)


def enumeration_of(message: type[object], field: str) -> type[Enum] | None:
    """Return the type of a message class's field if it is an enumeration, else None."""
    annotation = inspect.signature(message).parameters[field].annotation
    if isinstance(annotation, str):
        annotation = message_class(annotation)
    found = isinstance(annotation, type) and issubclass(annotation, Enum)
    return annotation if found else None


def problem_with(message: Any) -> str:
    """Return what is wrong with the type of a message's fields; "" if nothing is.

    Without this check the Scheduler would find out in its event loop, and end. Messages before
    0.5.15 are plain classes and are not checked.
    """
    io_struct = import_module("sglang.srt.managers.io_struct")
    encode = getattr(io_struct, "msgpack_encode", None)
    if encode is None:
        return ""
    msgspec = import_module("msgspec")
    try:
        encoded = encode(message)
    except (TypeError, msgspec.MsgspecError):
        return ""  # a kind of message that is only ever pickled
    try:
        need(io_struct, "msgpack_decode")(encoded)
    except msgspec.MsgspecError as error:
        return str(error)
    return ""


def rid_of(message: Any) -> Any:
    """Return the id of a message; None if it has none."""
    return getattr(message, "rid", None)
