"""Keys and values from device to device between processes; and what happens where that cannot be."""

import multiprocessing

import pytest
import torch

from heliograph.serving.core import cuda_peer, kv_transfer
from heliograph.serving.core.cuda_peer import PeerUnreachable, checksum, open_tensor, share_tensor
from heliograph.serving.core.kv_transfer import TransferFailed, fetch_blocks

from .test_transfer import plain, run

with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_sum_counts_every_byte():
    draw = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        for count in (1, 3, 4, 7, 64):
            numbers = torch.randint(1, 100, (count + 1,), generator=draw).to(dtype)
            own = checksum(numbers[1:])
            assert own == checksum(numbers[1:].clone())
            for place in range(1, count + 1):
                other = numbers.clone()
                other[place] += 1
                assert checksum(other[1:]) != own


def test_what_lies_elsewhere_is_not_shared_and_what_is_no_handle_is_not_opened():
    with pytest.raises(PeerUnreachable, match="cpu"):
        share_tensor(torch.zeros(3))
    for bad in ({}, {"shape": [2], "dtype": "float32", "device": "GPU-0", "offset": 0, "handle": []}, {"shape": "x"}):
        with pytest.raises(PeerUnreachable):
            open_tensor(bad)


class Shared:
    """Stands for a driver: what one end shares, the other opens."""

    def __init__(self, monkeypatch, *, opens=True, damages=False):
        self.asked, self.opened = 0, 0
        self.tensor = None
        monkeypatch.setattr(cuda_peer, "share_tensor", self.share)
        monkeypatch.setattr(cuda_peer, "open_tensor", self.open)
        monkeypatch.setattr(kv_transfer, "_on_device", lambda contents: True)
        monkeypatch.setattr(torch.Tensor, "to", _to_cpu(torch.Tensor.to))
        self.opens, self.damages = opens, damages

    def share(self, tensor):
        self.asked += 1
        self.tensor = tensor.clone()
        return {"sum": checksum(tensor)}

    def open(self, where):
        if not self.opens:
            raise PeerUnreachable("not here")
        self.opened += 1
        if self.damages:
            self.tensor.view(torch.uint8).view(-1)[5] ^= 1
        return self.tensor


def _to_cpu(to):
    return lambda self, *args, **settings: to(self, *("cpu" if each == "cuda" else each for each in args), **settings)


def _on_gpu(ticket):
    return fetch_blocks(ticket, 5.0, device="cuda")


async def _answer(both):
    tokens, last = await both.consume(*await both.produce())
    await both.settled()
    return tokens, last, (await both.consumer.stats()).prompt_tokens


def test_a_handle_goes_over_the_wire_and_the_lease_ends(tiny, monkeypatch):
    shared = Shared(monkeypatch)
    tokens, last, computed = run(tiny, _answer, fetch=_on_gpu)
    assert tokens == plain(tiny)
    assert not last.error
    assert computed == 0
    assert (shared.asked, shared.opened) == (1, 1)


def test_where_it_cannot_be_opened_the_bytes_go_over_tcp(tiny, monkeypatch):
    shared = Shared(monkeypatch, opens=False)
    monkeypatch.setattr(kv_transfer, "_on_device", lambda contents: shared.asked == 0)
    tokens, _, computed = run(tiny, _answer, fetch=_on_gpu)
    assert tokens == plain(tiny)
    assert computed == 0
    assert (shared.asked, shared.opened) == (1, 0)


def test_damage_on_the_way_is_noticed_and_the_prompt_computed(tiny, monkeypatch):
    shared = Shared(monkeypatch, damages=True)

    async def act(both):
        token, ticket = await both.produce()
        with pytest.raises(TransferFailed, match="damaged"):
            _on_gpu(ticket)
        tokens, _ = await both.consume(token, ticket)
        await both.producer.call(lambda: both.producer.engine.core.kv.release(ticket.key))
        await both.settled()
        return tokens, (await both.consumer.stats()).prompt_tokens

    tokens, computed = run(tiny, act, fetch=_on_gpu)
    assert tokens == plain(tiny)
    assert computed > 0
    assert shared.opened == 2


def test_a_holder_without_a_gpu_answers_with_bytes(tiny):
    tokens, _, computed = run(tiny, _answer, fetch=_on_gpu)
    assert tokens == plain(tiny)
    assert computed == 0


def _holder(pipe):
    numbers = torch.arange(24, dtype=torch.float32, device="cuda").view(2, 3, 4)
    pipe.send(share_tensor(numbers[1:]))
    pipe.recv()


@with_gpu
def test_two_processes_on_one_gpu():
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_holder, args=(there,))
    process.start()
    where = here.recv()
    opened = open_tensor(where)
    assert torch.equal(opened.cpu(), torch.arange(12.0, 24.0).view(1, 3, 4))
    assert checksum(opened) == where["sum"]
    del opened
    here.send("thanks")
    process.join(30)
    assert process.exitcode == 0
