"""Messages between device tensors of two processes, through gloo, with NCCL's rules of order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

_PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from pytest_pprank.devices.sim import module
from pytest_pprank.devices.sim.reports import Kind, findings
module.install()
rank = int(sys.argv[1]); other = 1 - rank
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
sim = torch.get_device_module("sim")
def t(*v): return torch.tensor(v, dtype=torch.float32, device="sim")
def zeros(n): return torch.zeros(n, device="sim")

# every operation gives what gloo gives
x = t(1, 2); dist.all_reduce(x); assert x.tolist() == [2, 4]
x = t(float(rank)); dist.broadcast(x, 1); assert x.tolist() == [1]
l = [zeros(1), zeros(1)]; dist.all_gather(l, t(float(rank))); assert [i.item() for i in l] == [0, 1]
x = zeros(2); dist.all_gather_into_tensor(x, t(float(rank))); assert x.tolist() == [0, 1]
x = zeros(1); dist.reduce_scatter_tensor(x, t(1, 2)); assert x.tolist() == [2 + 2 * rank]
x = t(1.0); dist.reduce(x, 0); assert rank or x.tolist() == [2]
x = zeros(2); dist.all_to_all_single(x, t(rank, rank + 10.0))
assert x.tolist() == [[0, 1], [10, 11]][rank]
x = zeros(2); works = dist.batch_isend_irecv(
    [dist.P2POp(dist.isend, t(rank, 5), other), dist.P2POp(dist.irecv, x, other)])
[w.wait() for w in works]; assert x.tolist() == [other, 5], x
g = dist.new_group([0, 1]); x = t(1); dist.all_reduce(x, group=g); assert x.item() == 2
x = torch.ones(1); dist.all_reduce(x); assert x.item() == 2
assert findings() == []

# a message is after what was enqueued before it, on the stream that is current
side = sim.Stream()
if rank == 0:
    x = t(7, 8)
    side.wait_stream(sim.current_stream())
    with sim.stream(side): x.mul_(2)
    dist.send(x, 1)
    (one,) = findings()
    assert one.kind is Kind.UNORDERED and "c10d::send" in one.second.what, one
    assert one.second.frames[0][0] == "<string>", one.second.frames
    sim.current_stream().wait_stream(side)
    dist.send(x, 1)
    assert findings() == []
    # the buffer of a send is free for the stream that has waited for the Work
    work = dist.isend(x, 1); x.zero_()
    (one,) = findings()
    assert one.kind is Kind.UNORDERED and "c10d::send" in one.first.what, one
    work.wait(); x = t(1, 2); sim.synchronize()
    work = dist.isend(x, 1); work.wait(); x.zero_()
    assert findings() == []
else:
    x = zeros(2)
    dist.recv(x, 0); dist.recv(x, 0); assert x.tolist() == [14, 16]
    # what was received is there for the stream that has waited for the Work, not for others
    work = dist.irecv(x, 0); work.wait(); x + 1
    assert findings() == []
    with sim.stream(side): x + 1
    found = findings()
    assert any(f.kind is Kind.UNORDERED and "c10d::recv_" in f.first.what for f in found), found
    x = zeros(2); work = dist.irecv(x, 0); x + 1
    found = findings()
    assert any("c10d::recv_" in f.first.what for f in found), found
    work.wait()
# order comes along: what the sender's stream had behind it, the receiver's has after its wait
def in_stream(stream, wait, then):
    with sim.stream(stream):
        wait(); then()
    return findings()
def bounced(reply):
    # rank 1 writes x and sends it; when the reply of rank 0 is there, may its side stream write x?
    sim.synchronize(); x = t(5, 6)
    if rank == 0:
        dist.recv(x, 1); reply(x)
        return findings()
    x.mul_(2); dist.send(x, 0)
    return in_stream(sim.Stream(), lambda: reply(zeros(2)), x.zero_)
# in a group of its own: what one group does is in order anyway
def message(x):
    dist.send(x, 1, group=g) if rank == 0 else dist.recv(x, 0, group=g)
def from_anybody(x):
    dist.send(x, 1, group=g) if rank == 0 else dist.recv(x, group=g)
def tagged(x):
    if rank == 0: [dist.isend(x, 1, g, tag).wait() for tag in (3, 4)]
    else: [dist.irecv(x, 0, g, tag).wait() for tag in (3, 4)]
def in_a_batch(x):
    op = dist.P2POp(dist.irecv if rank else dist.isend, x, other, group=g)
    [work.wait() for work in dist.batch_isend_irecv([op])]
def in_many(x):
    for _ in range(300): message(x)
for reply in (message, from_anybody, tagged, in_a_batch, in_many,
              lambda x: dist.all_reduce(x, group=g), lambda x: dist.broadcast(x, 0, group=g),
              lambda x: dist.reduce(x, 1, group=g),
              lambda x: dist.all_gather([zeros(2), zeros(2)], x, group=g)):
    g = dist.new_group([0, 1])
    assert bounced(reply) == [], reply
# not where the sender's stream did not have it behind it, nor where nothing was sent
def from_another_stream(x):
    if rank: return dist.recv(x, 0, group=g)
    with sim.stream(sim.Stream()): dist.send(t(1, 2), 1, group=g)
for reply in (from_another_stream, lambda x: dist.broadcast(x, 1, group=g),
              lambda x: dist.reduce(x, 0, group=g)):
    g = dist.new_group([0, 1])
    found = bounced(reply)
    assert {one.kind for one in found} == {Kind.UNORDERED} if rank else not found, (reply, found)
# before the wait nothing is ordered
if rank == 0:
    x = zeros(1); dist.recv(x, 1); dist.send(x, 1)
else:
    sim.synchronize(); x, y = t(1), zeros(1); dist.send(x, 0)
    with sim.stream(sim.Stream()):
        work = dist.irecv(y, 0)
        x.zero_()
        assert len(findings()) == 1
        work.wait(); x.zero_()
        assert findings() == []
dist.barrier()
dist.destroy_process_group()
"""


def test_messages_and_collectives(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", _PROGRAM, str(rank), str(tmp_path / "s")] for rank in (0, 1)]
    # torch's logger of the environment would wait for a network that does not exist
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    with (tmp_path / "errors").open("w+") as errors:
        ranks = [subprocess.Popen(c, env=environment, stderr=errors) for c in commands]
        ends = time.monotonic() + 240
        # a rank that has failed leaves the other one waiting
        while any(r.poll() is None for r in ranks) and not any(r.poll() for r in ranks):
            assert time.monotonic() < ends
            time.sleep(0.05)
        for rank in ranks:
            rank.kill()
        assert [rank.wait() for rank in ranks] == [0, 0], (tmp_path / "errors").read_text()
