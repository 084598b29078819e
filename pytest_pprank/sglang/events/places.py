"""Where SGLang has each hook point and whatever else the plugin needs; plain data.

A place has one or more shapes, as SGLang's releases have had it. The first complete shape is used.
If a release has none, the plugin reports what is missing and turns off what needs the place; all
else runs. Imports neither torch nor SGLang: the controller reads this table, too (`shapes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Methods:
    """Methods (or fields) of a class, or functions of a module (`owner` empty).

    `takes`: the allowed names of those parameters whose values are read, by position (0: the object
    itself). Methods in `optional` may be missing. `hooked`: whether calls of these methods are the
    hook point; else they only distinguish one shape from another.
    """

    module: str
    owner: str
    names: tuple[str, ...]
    takes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    hooked: bool = True


@dataclass(frozen=True)
class Shape:
    """One form that a place has in some releases; `name` says in which.

    `without`: members that must be missing, because only other shapes have them.
    """

    name: str
    methods: tuple[Methods, ...]
    without: tuple[Methods, ...] = ()


@dataclass(frozen=True)
class Place:
    """A hook point, or something else that the plugin needs of SGLang.

    `roles`: the roles whose ranks reach it; empty for all. `needed_by`: what is off without it,
    except for checks and faults that listen to it (those declare it themselves).
    """

    name: str
    about: str
    shapes: tuple[Shape, ...]
    roles: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()


def _one(*methods: Methods) -> tuple[Shape, ...]:
    return (Shape("all releases", methods),)


_BATCH = "sglang.srt.managers.schedule_batch"
_SCHEDULER = "sglang.srt.managers.scheduler"
_PP = "sglang.srt.managers.scheduler_pp_mixin"
_PARTS = "sglang.srt.managers.scheduler_components"
_ALLOCATOR = "sglang.srt.mem_cache.allocator.base"
_POOL = "sglang.srt.mem_cache.memory_pool"
_TREE = "sglang.srt.mem_cache.base_prefix_cache"
_DISAGG = "sglang.srt.disaggregation"
_CONN = "sglang.srt.disaggregation.base.conn"
_MOONCAKE = "sglang.srt.distributed.device_communicators.mooncake_transfer_engine"
_STORE = "sglang.srt.disaggregation.pp_consensus_store"
_BY_RING = (
    "_pp_pd_get_prefill_transferred_ids",
    "_pp_pd_get_prealloc_ids",
    "_pp_pd_get_decode_transferred_ids",
)
_HANDSHAKE = "_pp_pd_get_bootstrapped_ids"
_store = Methods(
    _STORE,
    "PPConsensusStore",
    ("collect", "pop", "_maybe_replicate_to_rank0"),
    hooked=False,
)
_apply = {1: ("release_rids", "bootstrapped_rids", "rids")}

HOOKS: tuple[Place, ...] = (
    Place("prepare_for_extend", "a ScheduleBatch has been prepared for a forward of prompts",
          _one(Methods(_BATCH, "ScheduleBatch", ("prepare_for_extend",)))),
    Place("prepare_for_decode",
          "a ScheduleBatch has been prepared for a forward of one token each",
          _one(Methods(_BATCH, "ScheduleBatch", ("prepare_for_decode",)))),
    Place("init_new", "a ForwardBatch has been made of a ScheduleBatch",
          _one(Methods("sglang.srt.model_executor.forward_batch_info", "ForwardBatch",
                       ("init_new",), {1: ("batch",)}))),
    Place("forward", "a ForwardBatch enters the model",
          _one(Methods("sglang.srt.model_executor.model_runner", "ModelRunner", ("forward",),
                       {1: ("forward_batch",)}))),
    Place("batch_result", "the result of a batch is about to be processed",
          _one(Methods(_SCHEDULER, "Scheduler", ("process_batch_result",), {1: ("batch",)}))),
    Place("experts", "the experts of this rank have run, in one layer",
          _one(Methods("sglang.srt.layers.moe.fused_moe_triton.layer", "FusedMoE",
                       ("forward_impl",), {1: ("hidden_states",), 2: ("topk_output",)}))),
    Place("kv_alloc", "KV tokens have been taken",
          _one(Methods(_ALLOCATOR, "BaseTokenToKVPoolAllocator",
                       ("alloc", "alloc_extend", "alloc_decode")))),
    Place("kv_free", "KV tokens are about to be given back",
          _one(Methods(_ALLOCATOR, "BaseTokenToKVPoolAllocator", ("free",),
                       optional=("_release_page_ids",)))),
    Place("kv_clear", "an allocator has forgotten who holds what",
          _one(Methods(_ALLOCATOR, "BaseTokenToKVPoolAllocator", ("clear",)))),
    Place("slot_alloc", "request slots have been taken",
          _one(Methods(_POOL, "ReqToTokenPool", ("alloc",), {1: ("reqs",)}),
               # not a subclass of ReqToTokenPool
               Methods(f"{_DISAGG}.decode", "DecodeReqToTokenPool", ("alloc",), {1: ("reqs",)}))),
    Place("slot_free", "a request slot is about to be given back",
          _one(Methods(_POOL, "ReqToTokenPool", ("free",), {1: ("req",)}),
               Methods(f"{_DISAGG}.decode", "DecodeReqToTokenPool", ("free",), {1: ("req",)}))),
    Place("lock", "a prefix in the tree cache has been locked",
          _one(Methods(_TREE, "BasePrefixCache", ("inc_lock_ref",), {1: ("node",)}))),
    Place("unlock", "a prefix in the tree cache has been unlocked",
          _one(Methods(_TREE, "BasePrefixCache", ("dec_lock_ref",), {1: ("node",)}))),
    Place("metadata_alloc", "a metadata slot of a KV transfer has been taken",
          _one(Methods(f"{_DISAGG}.utils", "ReqToMetadataIdxAllocator", ("alloc",))),
          (PREFILL, DECODE)),
    Place("metadata_free", "a metadata slot is about to be given back",
          _one(Methods(f"{_DISAGG}.utils", "ReqToMetadataIdxAllocator", ("free",),
                       {1: ("free_index",)})),
          (PREFILL, DECODE)),
    Place("schedule", "a Scheduler has looked what to run next",
          _one(Methods(_SCHEDULER, "Scheduler",
                       ("get_next_batch_to_run", "get_new_batch_prefill")),
               Methods(f"{_DISAGG}.decode", "SchedulerDisaggregationDecodeMixin",
                       ("get_next_disagg_decode_batch_to_run",)))),
    Place("consensus_local", "a stage has looked for which requests it is ready",
          _one(Methods(_PP, "SchedulerPPMixin", ("get_rids",))), (PREFILL, DECODE)),
    Place("consensus_bring", "a stage has brought its requests to a consensus",
          (Shape("store, from 0.5.22", (_store, Methods(_PP, "SchedulerPPMixin", _BY_RING))),
           Shape("ring, to 0.5.21",
                 (Methods(_PP, "SchedulerPPMixin", (_HANDSHAKE, *_BY_RING)),))),
          (PREFILL, DECODE)),
    Place("consensus_apply", "a stage has applied a consensus that it received",
          (Shape("store, from 0.5.22",
                 (_store,
                  Methods(_PP, "SchedulerPPMixin", ("process_decode_transfer_queue",), _apply))),
           Shape("ring, to 0.5.21",
                 (Methods(_PP, "SchedulerPPMixin",
                          ("process_bootstrapped_queue", "process_decode_transfer_queue"),
                          _apply),))),
          (PREFILL, DECODE)),
    Place("handshake", "prefill has started requests whose handshake with decode is done",
          _one(Methods(f"{_DISAGG}.prefill", "PrefillBootstrapQueue", ("pop_bootstrapped",))),
          (PREFILL,)),
    Place("room_told", "a stage of prefill is about to tell the first one of a room",
          (Shape("store, from 0.5.22",
                 (Methods(_STORE, "PPConsensusStore", ("_maybe_replicate_to_rank0",),
                          {1: ("kind",), 2: ("key",), 3: ("value",)}),)),
           Shape("ring, to 0.5.21",
                 (Methods(_PP, "SchedulerPPMixin", (_HANDSHAKE,), hooked=False),))),
          (PREFILL,)),
    Place("transfer_send", "KV is about to be sent to the decode side",
          _one(Methods(_CONN, "BaseKVSender", ("send",), {1: ("kv_indices",)})), (PREFILL,)),
    Place("transfer_queued", "a chunk of KV is about to be handed to a thread that sends it",
          _one(Methods(f"{_DISAGG}.common.utils", "FastQueue", ("put",))), (PREFILL,)),
    Place("transfer_read", "the transfer engine is about to read this stage's memory",
          _one(Methods(_MOONCAKE, "MooncakeTransferEngine",
                       ("batch_transfer_sync", "transfer_sync"),
                       {2: ("buffers", "buffer"), 4: ("lengths", "length")})), (PREFILL,)),
    Place("transfer_target", "decode is about to say where its KV may be written",
          _one(Methods(_CONN, "BaseKVReceiver", ("send_metadata",), {1: ("kv_indices",)})),
          (DECODE,)),
    Place("transfer_poll", "a KV transfer has been asked how it goes",
          _one(Methods(_CONN, "BaseKVSender", ("poll",)),
               Methods(_CONN, "BaseKVReceiver", ("poll",))),
          (PREFILL, DECODE)),
)  # fmt: skip
"""Methods whose calls are events; `sglang.events.hooks` has the decoders."""

NEEDS: tuple[Place, ...] = (
    Place("scheduler", "a Scheduler is made on each stage",
          (Shape("published ranks, from 0.5.21",
                 (Methods(_SCHEDULER, "Scheduler", ("__init__",),
                          {1: ("server_args",), 2: ("port_args",)}),
                  Methods("sglang.srt.runtime_context", "", ("publish", "SpawnRanks")))),
           Shape("ranks as arguments, to 0.5.20",
                 (Methods(_SCHEDULER, "Scheduler", ("__init__",),
                          {1: ("server_args",), 2: ("port_args",), 3: ("gpu_id",)}),))),
          needed_by=("scheduler", "engine", "disagg")),
    Place("server_args", "server args are read by SGLang's own class",
          _one(Methods("sglang.srt.server_args", "PortArgs", ("init_new",))),
          needed_by=("scheduler", "engine", "disagg")),
    Place("event_loop", "SGLang's own event loops, entered as SGLang does",
          _one(Methods(_SCHEDULER, "Scheduler", ("run_event_loop",)),
               Methods(_PP, "SchedulerPPMixin",
                       ("event_loop_pp", "event_loop_pp_disagg_prefill",
                        "event_loop_pp_disagg_decode", "init_pp_loop_state"))),
          needed_by=("engine", "disagg")),
    Place("iteration", "the top of an iteration of every event loop",
          _one(Methods(f"{_PARTS}.request_receiver", "SchedulerRequestReceiver",
                       ("recv_requests", "scripted_scheduler_hook"))),
          needed_by=("engine", "disagg")),
    Place("messages", "how requests and outputs cross SGLang's sockets",
          (Shape("msgspec, from 0.5.15",
                 (Methods("sglang.srt.managers.io_struct", "",
                          ("TokenizedGenerateReqInput", "AbortReq", "sock_send", "sock_recv",
                           "msgspec")),)),
           Shape("pickle, to 0.5.14",
                 (Methods("sglang.srt.managers.io_struct", "",
                          ("TokenizedGenerateReqInput", "AbortReq")),),
                 without=(Methods("sglang.srt.managers.io_struct", "", ("msgspec",)),))),
          needed_by=("engine", "disagg")),
    Place("profiler", "the dynamic-chunk profiler",
          (Shape("DynamicChunkSizer, from 0.5.20",
                 (Methods(f"{_PARTS}.dynamic_chunk_sizer", "DynamicChunkSizer",
                          ("_profile_prefill_latency",)),)),
           Shape("SchedulerPPMixin, to 0.5.19",
                 (Methods(_PP, "SchedulerPPMixin", ("profile_and_init_predictor",)),))),
          needed_by=("assert_profiler_ready",)),
    Place("idle", "what says that nothing is under way",
          _one(Methods(_SCHEDULER, "Scheduler", ("is_fully_idle", "flush_cache"))),
          needed_by=("scheduler", "engine", "disagg", "assert_kv_balanced")),
    Place("bootstrap_server", "the meeting point of prefill and decode",
          _one(Methods("sglang.srt.managers.disagg_service", "", ("start_disagg_service",))),
          (PREFILL,), needed_by=("disagg",)),
    Place("polls", "the states of a transfer, and who is asked for them",
          _one(Methods(_CONN, "KVPoll",
                       ("Failed", "Bootstrapping", "WaitingForInput", "Transferring", "Success")),
               Methods(f"{_DISAGG}.utils", "", ("get_kv_class",))),
          (PREFILL, DECODE),
          needed_by=("late_poll", "flaky_poll", "lose_room", "--pprank-perturb polls")),
    Place("transfer_engine", "SGLang's wrapper of Mooncake",
          _one(Methods(f"{_DISAGG}.mooncake.conn", "MooncakeKVManager",
                       ("send_aux", "send_aux_tcp", "_handle_aux_data"))),
          (PREFILL, DECODE), needed_by=("late_metadata", "--pprank-perturb metadata")),
)  # fmt: skip
"""Places that are called or read, but are no events."""

PLACES = {place.name: place for place in (*HOOKS, *NEEDS)}


def passes(name: str, role: str) -> bool:
    """Return whether ranks of a role (``pp``, ``prefill``, ``decode``) ever reach a place."""
    place = PLACES.get(name)
    return place is None or not place.roles or role in place.roles
