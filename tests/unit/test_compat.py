"""What differs between SGLang's releases, on objects of the forms that they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_pprank.errors import SeamMissing
from pytest_pprank.sglang.compat import batches, disagg, model, pipeline, pools, requests, start
from pytest_pprank.sglang.compat import scheduler as compat_scheduler
from pytest_pprank.sglang.compat.profiler import predict_chunk, run_again


class FINISH_LENGTH: ...


class FINISH_ABORT: ...


def _req(**changes: Any) -> Any:
    known = {"origin_input_ids": [1, 2, 3], "output_ids": [4], "finished_reason": None}
    return SimpleNamespace(**{**known, **changes})


class TestRequests:
    @pytest.mark.parametrize(
        "req",
        [
            _req(req_pool_idx=2, kv_allocated_len=7, kv_committed_len=6),
            _req(kv=SimpleNamespace(kv_allocated_len=7), req_pool_idx=2, kv_committed_len=6),
            _req(
                kv=SimpleNamespace(req_pool_idx=2, kv_allocated_len=7, kv_committed_len=6),
                req_pool_idx=9,
            ),
        ],
        ids=["up to 0.5.15", "up to 0.5.18", "from 0.5.19"],
    )
    def test_kv(self, req: Any) -> None:
        assert requests.slot_of(req) == 2
        assert requests.allocated_tokens_of(req) == 7
        assert requests.committed_tokens_of(req) == 6

    def test_none(self) -> None:
        req = _req(kv=None)
        assert requests.slot_of(req) is None
        assert requests.allocated_tokens_of(req) == requests.committed_tokens_of(req) == 0
        assert requests.sender_of(req) is None
        assert requests.room_of(SimpleNamespace(bootstrap_room=None)) == 0

    @pytest.mark.parametrize(
        ("reason", "name", "by_length"),
        [
            (None, "", False),
            (FINISH_LENGTH(), "FINISH_LENGTH", True),
            (FINISH_ABORT(), "FINISH_ABORT", False),
        ],
    )
    def test_end(self, reason: Any, name: str, by_length: bool) -> None:
        req = _req(finished_reason=reason)
        assert requests.finish_reason_of(req) == name
        assert requests.finished_by_length(req) is by_length

    def test_tokens(self) -> None:
        req = _req(sampling_params=SimpleNamespace(max_new_tokens=None))
        assert (requests.tokens_of(req), requests.last_token_of(req)) == (4, 4)
        assert requests.last_token_of(_req(output_ids=[])) == 3
        assert requests.most_tokens_of(req) == 3
        req.sampling_params.max_new_tokens = 5
        assert requests.most_tokens_of(req) == 8
        assert requests.tokens_to_send_of(req) == 3
        assert requests.tokens_to_send_of(_req(disagg_decode_prefix_len=2)) == 1

    def test_request_in_the_wrapper_of_decode(self) -> None:
        @dataclass
        class DecodeRequest:
            req: Any

        class Req: ...

        req = Req()
        assert requests.wrapped_request(DecodeRequest(req)) is req
        assert requests.wrapped_request(req) is req
        assert requests.is_request(req)
        assert not requests.is_request(DecodeRequest(req))

    @pytest.mark.parametrize(
        ("req", "holds"),
        [
            (_req(req_pool_idx=1), True),
            (_req(req_pool_idx=None), False),
            (_req(kv=SimpleNamespace(holds_kv=False), req_pool_idx=1), False),
            (_req(kv=SimpleNamespace(holds_kv=True)), True),
        ],
    )
    def test_holds_kv(self, req: Any, holds: bool) -> None:
        assert requests.holds_kv(req) is holds

    def _record_calls(self, req: Any, name: str) -> list[tuple[int, ...]]:
        calls: list[tuple[int, ...]] = []
        setattr(req, name, lambda *args: calls.append(args))
        return calls

    @pytest.mark.parametrize(("chunk", "end", "cuts"), [(None, 10, False), (5, 7, True)])
    def test_extend(self, chunk: int | None, end: int, cuts: bool) -> None:
        ids = {"full_untruncated_fill_ids": range(10)}
        old, mid = (_req(prefix_indices=[0, 1], **ids) for _ in range(2))
        inputs = self._record_calls(old, "set_extend_input_len")
        ranges = self._record_calls(mid, "set_extend_range")
        new = _req(prefix_len=2, extend_end=0, **ids)
        assert [requests.set_extend(req, chunk) for req in (old, mid, new)] == [cuts] * 3
        assert (inputs, old.fill_len) == ([(end - 2,)], end)
        assert ranges == [(2, end)]
        assert new.extend_end == end

    def test_extend_of_another_form(self) -> None:
        with pytest.raises(SeamMissing, match=r"has no Req\.set_extend_range"):
            requests.set_extend(_req(prefix_len=0, full_untruncated_fill_ids=()), None)

    def test_lock(self) -> None:
        tree = SimpleNamespace(
            lock=lambda node: f"lock of {node}",
            inc_lock_ref=lambda node: SimpleNamespace(to_dec_params=lambda: f"receipt of {node}"),
        )
        forms: list[dict[str, Any]] = [{}, {"lock_receipt": None}, {"lock": None}]
        old, mid, new = (_req(last_node="n", **form) for form in forms)
        for req in (old, mid, new):
            requests.lock_prefix(tree, req)
        assert mid.lock_receipt == "receipt of n"
        assert new.lock == "lock of n"


class TestPools:
    @pytest.mark.parametrize(
        ("state", "collects"),
        [
            ({"free_group": None}, False),
            ({"free_group": []}, True),
            ({}, False),
            ({"free_group": [], "is_not_in_free_group": True}, False),
            ({"free_group": [], "is_not_in_free_group": False}, True),
        ],
    )
    def test_collects(self, state: dict[str, Any], collects: bool) -> None:
        assert pools.collects_what_is_freed(SimpleNamespace(**state)) is collects

    def test_free_pages(self) -> None:
        kept = SimpleNamespace(free_pages="free", release_pages="released")
        assert pools.all_free_pages_of(kept) == ("free", "released")
        kept.get_all_free_pages = lambda: "both"
        assert pools.all_free_pages_of(kept) == ("both",)

    def test_tokens_one_by_one(self) -> None:
        class TokenToKVPoolAllocator(SimpleNamespace): ...

        plain = TokenToKVPoolAllocator(page_size=1, free_pages=())
        assert pools.keeps_single_tokens(plain)
        assert not pools.keeps_single_tokens(TokenToKVPoolAllocator(page_size=2, free_pages=()))
        assert not pools.keeps_single_tokens(TokenToKVPoolAllocator(page_size=1))
        assert not pools.keeps_single_tokens(SimpleNamespace(page_size=1, free_pages=()))

    def test_kv_by_layer(self) -> None:
        pool = SimpleNamespace(k_buffer=["k"], v_buffer=["v"], start_layer=2)
        assert pools.kv_buffers_of(pool) == (["k"], ["v"])
        assert pools.first_layer_of(pool) == 2
        assert pools.kv_buffers_of(SimpleNamespace(kv_buffer=[])) is None
        assert pools.first_layer_of(SimpleNamespace()) == 0

    def test_others(self) -> None:
        assert pools.request_slots_of(SimpleNamespace(size=4)) == 4
        assert pools.request_slots_of(SimpleNamespace(size=4, pre_alloc_size=2)) == 6
        assert pools.node_key(7) == 7
        assert pools.node_key(node := object()) == id(node)
        assert not pools.lists_its_tokens(object())


class TestScheduler:
    def _batch(self, *rids: str, finished: bool = False) -> Any:
        reqs = [SimpleNamespace(rid=rid, finished=lambda: finished) for rid in rids]
        return SimpleNamespace(reqs=reqs, is_empty=lambda: not reqs)

    def test_what_is_pending(self) -> None:
        running, done = self._batch("a"), self._batch("b", finished=True)
        plain = SimpleNamespace(waiting_queue=[SimpleNamespace(rid="w")], running_batch=running)
        assert [req.rid for req in compat_scheduler.pending_requests(plain)] == ["w", "a"]
        plain.chunked_req, plain.running_mbs = SimpleNamespace(rid="c"), [done, None, running]
        plain.running_batch = None
        assert [req.rid for req in compat_scheduler.pending_requests(plain)] == ["w", "c", "a"]

    def test_batches_and_slots(self) -> None:
        one, none = self._batch("a"), self._batch()
        plain = SimpleNamespace(running_batch=one, last_batch=none)
        assert dict(compat_scheduler.batches_of(plain)) == {"running_batch": one}
        assert list(compat_scheduler.slots_of(plain)) == []
        assert compat_scheduler.microbatch_pairs(plain) == [(none, one)]
        pipe = SimpleNamespace(mbs=[None, one], running_mbs=[none, one])
        assert dict(compat_scheduler.slots_of(pipe)) == {"mbs[1]": one, "running_mbs[1]": one}
        assert compat_scheduler.microbatch_pairs(pipe) == [(None, none), (one, one)]
        assert len(compat_scheduler.microbatches_of(pipe)) == 2

    def test_others(self) -> None:
        plain = SimpleNamespace()
        assert compat_scheduler.chunked_request_of(plain) is None
        assert compat_scheduler.waiting_for_grammar(plain) == []
        assert not compat_scheduler.is_hybrid(plain)
        assert not compat_scheduler.is_scheduler(plain)
        compat_scheduler.reset_estimates(plain)
        resets: list[int] = []
        full = SimpleNamespace(
            grammar_manager=SimpleNamespace(grammar_queue=[1, 2]),
            is_hybrid_ssm=True,
            token_to_kv_pool_allocator=None,
            new_token_ratio_tracker=SimpleNamespace(reset=lambda: resets.append(1)),
        )
        assert compat_scheduler.waiting_for_grammar(full) == [1, 2]
        assert compat_scheduler.is_hybrid(full)
        assert compat_scheduler.is_scheduler(full)
        compat_scheduler.reset_estimates(full)
        assert resets == [1]

    def test_between_stages(self) -> None:
        plain = SimpleNamespace()
        assert list(pipeline.received_too_early(plain)) == []
        assert pipeline.results_not_sent(plain) == 0
        assert not pipeline.open_sends(plain, pipeline.PROXIES)
        pipeline.settle_sends(plain)
        settled: list[Any] = []
        work = SimpleNamespace(work=SimpleNamespace(wait=lambda: settled.append("poll")))
        full = SimpleNamespace(
            _pp_tensor_dict_inbox={"proxy": [1], "output": []},
            last_rank_comm_queue=[1, 2],
            send_req_work=["requests"],
            send_output_work=[],
            _pp_commit_comm_work=settled.append,
            disagg_prefill_bootstrap_queue=SimpleNamespace(pp_poll_sync_work_list=[work]),
            grammar_manager=SimpleNamespace(_drain_pp_sync_work=lambda: settled.append("grammar")),
        )
        assert list(pipeline.received_too_early(full)) == [("proxy", 1)]
        assert pipeline.results_not_sent(full) == 2
        pipeline.settle_sends(full)
        assert settled == [["requests"], "poll", "grammar"]


class TestBatchesAndModel:
    def test_batches(self) -> None:
        assert batches.rids_of(SimpleNamespace(rids=["a"])) == ("a",)
        assert batches.rids_of(SimpleNamespace(rids=None)) == batches.rids_of(object()) == ()
        batch = SimpleNamespace(
            extend_prefix_lens_cpu=[0, 2], extend_seq_lens_cpu=[3, 1], seq_lens=None
        )
        assert list(batches.extends_of(batch)) == [(0, 3), (2, 3)]
        assert list(batches.extends_of(object())) == []
        assert batches.tensor_field(batch, "seq_lens") is None
        assert batches.device_of(object()) == batches.device_of(SimpleNamespace(device="")) == "cpu"
        assert batches.device_of(SimpleNamespace(device="cuda:1")) == "cuda:1"
        assert batches.tensors_of_proxy(None) == {}
        assert batches.tensors_of_proxy(SimpleNamespace(tensors={"x": 1})) == {"x": 1}

    @pytest.mark.parametrize(
        ("extend", "verify", "plain"), [(True, False, True), (True, True, False), (False,) * 3]
    )
    def test_modes(self, extend: bool, verify: bool, plain: bool) -> None:
        mode = SimpleNamespace(is_extend=lambda: extend, is_target_verify=lambda: verify)
        assert batches.is_plain_extend(mode) is plain

    def test_model(self) -> None:
        layers = SimpleNamespace(start_layer=2, end_layer=4)
        assert model.layers_of(layers) == model.layers_of(SimpleNamespace(layer_info=layers))
        assert model.logits_of("logits") == "logits"
        assert model.logits_of(SimpleNamespace(logits_output="logits")) == "logits"
        assert model.kv_pool_of(object()) is None


class TestDisagg:
    def test_role(self) -> None:
        assert disagg.role_of(object()) == "null"
        mode = SimpleNamespace(disaggregation_mode=SimpleNamespace(value="decode"))
        assert disagg.role_of(mode) == "decode"

    def _decode(self, **more: Any) -> Any:
        entry = SimpleNamespace(req="a")
        return SimpleNamespace(
            disaggregation_mode=SimpleNamespace(value="decode"),
            disagg_decode_prealloc_queue=SimpleNamespace(
                queue=[entry], retracted_queue=["r"], **more.get("prealloc", {})
            ),
            disagg_decode_transfer_queue=SimpleNamespace(queue=[], **more.get("transfer", {})),
        )

    def test_queues_of_decode(self) -> None:
        some = {"prealloc": ["a"], "transfer": [], "retracted": ["r"]}
        old = self._decode()
        assert disagg.queues(old) == {**some, "rebootstrap": [], "deferred": []}
        new = self._decode(
            prealloc={"held_rebootstrap_reqs": ["h"], "pending_reqs": ["p"]},
            transfer={"_deferred_releases": [(SimpleNamespace(req="d"), 1)]},
        )
        assert disagg.queues(new) == {**some, "rebootstrap": ["h"], "deferred": ["d"]}
        for each in (old, new):
            disagg.clear_queues(each)
            assert not any(disagg.queues(each).values())
        assert new.disagg_decode_prealloc_queue.pending_reqs == []

    def test_queues_of_prefill(self) -> None:
        prefill = SimpleNamespace(
            disaggregation_mode=SimpleNamespace(value="prefill"),
            disagg_prefill_bootstrap_queue=SimpleNamespace(queue=["a"]),
            disagg_prefill_inflight_queue=["b"],
        )
        assert disagg.queues(prefill) == {"bootstrap": ["a"], "inflight": ["b"]}
        prefill.disagg_prefill_pending_chunk_rids = {"c"}
        disagg.clear_queues(prefill)
        assert not any(disagg.queues(prefill).values())
        assert prefill.disagg_prefill_pending_chunk_rids == set()


class TestProfiler:
    def test_prediction(self) -> None:
        assert predict_chunk(SimpleNamespace(length_predictor=None), 0) is None
        old = SimpleNamespace(length_predictor=1, predict_next_chunk_size=lambda history: history)
        assert predict_chunk(old, 5) == 5
        sizer = SimpleNamespace(predict=lambda history: 2 * history)
        assert predict_chunk(SimpleNamespace(dynamic_chunk_sizer=sizer), 5) == 10

    def test_run(self) -> None:
        ran: list[str] = []

        def fail() -> None:
            ran.append("old")
            raise ValueError

        run_again(SimpleNamespace(profile_and_init_predictor=fail))
        run_again(SimpleNamespace(maybe_init_dynamic_chunk_sizer=lambda: ran.append("new")))
        assert ran == ["old", "new"]
        with pytest.raises(SeamMissing, match="dynamic-chunk profiler"):
            run_again(object())


class TestStart:
    @pytest.mark.parametrize(("version", "bind"), [("0.5.18", "4"), ("0.5.19", "3|4"), (None, "4")])
    def test_threads(self, monkeypatch: pytest.MonkeyPatch, version: str | None, bind: str) -> None:
        answer: Callable[[], str | None] = lambda: version  # noqa: E731
        monkeypatch.setattr(start, "sglang_version", answer)
        assert start.thread_binding(["3", "4"], 1, 1) == bind
        assert start.thread_binding(["3", "4"], 0, 2) == "3|4"  # one stage of two ranks

    def test_instance(self) -> None:
        new, old = SimpleNamespace(instance_id=None), SimpleNamespace()
        for ports in (new, old):
            start.name_instance(ports, "me")
        assert (new.instance_id, vars(old)) == ("me", {})
