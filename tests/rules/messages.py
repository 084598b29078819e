"""Rules of messages and collectives, as ranked tests that run on `sim` and on GPUs.

Each test returns nothing and says by its name whether it is racy. On a GPU it compares the values;
on sim the sanitizer `streams` must report the racy ones, and no other.
"""

from __future__ import annotations

SOURCE = """
import pytest, torch, torch.distributed as dist

@pytest.fixture
def m(process_group, pprank):
    class Machine:
        name = pprank.device.partition(":")[0]
        # on a GPU 512 MiB: more than NCCL sends before somebody receives
        size = 1 << (26 if name == "cuda" else 8)
        module = torch.get_device_module(name)
        rank = pprank.rank
        def full(self, value):
            return torch.full((self.size,), value, device=pprank.device)
        def hold(self):
            if self.name == "cuda":
                torch.cuda._sleep(200_000_000)
    it = Machine()
    dist.all_reduce(it.full(1))  # connects the ranks
    message = it.full(0)
    dist.send(message, 1) if it.rank == 0 else dist.recv(message, 0)
    # what is loaded later than this may wait for the whole device
    assert not (message.fill_(1) + 1).add_(1).eq(7).any()
    it.module.synchronize()
    pprank.barrier()
    yield it
    it.module.synchronize()

@pytest.fixture
def value(m):
    value = m.full(7 if m.rank == 0 else 0)
    m.module.synchronize()
    return value

@pytest.fixture
def summand(m):
    value = m.full(1)
    m.module.synchronize()
    if m.rank == 0:
        m.hold()
    return value

def judge(m, as_written, racy):
    m.module.synchronize()
    if m.name == "cuda":
        assert bool(as_written.all()) != racy

def test_received_is_read_after_the_wait(m, value):
    if m.rank == 0:
        m.hold()
        dist.isend(value, 1).wait()
    else:
        dist.irecv(value, 0).wait()
        judge(m, value + 1 == 8, racy=False)

def test_racy_received_is_read_before_the_wait(m, value):
    if m.rank == 0:
        m.hold()
        dist.isend(value, 1).wait()
    else:
        work = dist.irecv(value, 0)
        seen = value + 1
        work.wait()
        judge(m, seen == 8, racy=True)

def test_sent_is_rewritten_after_the_wait(m, value):
    if m.rank == 0:
        dist.isend(value, 1).wait()
        value.fill_(9)
    else:
        m.hold()
        dist.irecv(value, 0).wait()
        judge(m, value == 7, racy=False)

def test_racy_sent_is_rewritten_before_the_wait(m, value):
    if m.rank == 0:
        work = dist.isend(value, 1)
        value.fill_(9)
        work.wait()
    else:
        m.hold()
        dist.irecv(value, 0).wait()
        judge(m, value == 7, racy=True)

def test_message_is_sent_after_the_current_stream(m, value):
    if m.rank == 0:
        m.hold()
        value.add_(1)
        dist.isend(value, 1).wait()
    else:
        dist.irecv(value, 0).wait()
        judge(m, value == 8, racy=False)

def test_racy_result_of_a_collective_before_the_wait(m, summand):
    work = dist.all_reduce(summand, async_op=True)
    seen = summand + 0
    work.wait()
    if m.rank == 1:
        judge(m, seen == 2, racy=True)

def test_wait_in_another_stream_orders_that_stream(m, summand):
    work = dist.all_reduce(summand, async_op=True)
    with m.module.stream(m.module.Stream()):
        work.wait()
        seen = summand + 0
    m.module.synchronize()
    judge(m, seen == 2, racy=False)

def test_racy_wait_in_another_stream_does_not_order_the_default_one(m, summand):
    work = dist.all_reduce(summand, async_op=True)
    with m.module.stream(m.module.Stream()):
        work.wait()
    seen = summand + 0
    m.module.synchronize()
    if m.rank == 1:
        judge(m, seen == 2, racy=True)
"""
TESTS = [line[4:].partition("(")[0] for line in SOURCE.splitlines() if line.startswith("def test")]
RACY = [name for name in TESTS if "_racy_" in name]
