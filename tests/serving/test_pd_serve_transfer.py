"""Contiguous caches arrive bit by bit, into blocks of any size; links that cannot work are refused at once."""

import socket
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.pd_serve import ContiguousKV, KVShape, LinkRefused, check_link, recv_scatter
from heliograph.serving.pd_serve.transfer import (
    ACK,
    SmoothPace,
    block_messages,
    receive_messages,
    scatter_blocks,
    send_messages,
)

SHAPE = KVShape(2, 2, 4, "float32", 4, "model")


def cache(blocks: int, block_size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 2, blocks, block_size, 2, 4, generator=torch.Generator().manual_seed(seed))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_scattered_buffer_is_packed_again_unchanged(data: st.DataObject) -> None:
    sizes = st.integers(1, 9)
    sender, receiver, tokens = data.draw(sizes), data.draw(sizes), data.draw(st.integers(1, 40))
    skip = data.draw(st.integers(0, tokens))
    there, here = -(-tokens // sender), -(-tokens // receiver)
    ours, theirs = cache(there + 3, sender), torch.zeros(2, 2, here + 2, receiver, 2, 4)
    table = data.draw(st.permutations(range(there + 3)))[:there]
    other = data.draw(st.permutations(range(here + 2)))[:here]
    kv = ContiguousKV(data.draw(st.none() | st.integers(1, 3)))
    whole = kv.pack(ours, table, tokens)
    recv_scatter(whole[:, :, :skip].contiguous(), theirs, other)
    recv_scatter(torch.cat(list(kv.split(kv.pack(ours, table, tokens, skip=skip)))), theirs, other, start=skip)
    assert torch.equal(kv.pack(theirs, other, tokens), whole)
    untouched = [block for block in range(here + 2) if block not in other]
    assert not theirs[:, :, untouched].any()


def test_a_table_that_is_too_short_writes_nothing() -> None:
    target = torch.zeros(2, 2, 4, 4, 2, 4)
    with pytest.raises(BadInput, match="do not hold"):
        recv_scatter(torch.ones(2, 2, 9, 2, 4), target, [0, 1])
    assert not target.any()


@pytest.mark.parametrize("table", [[0, 0], [0, 7]])
def test_a_table_with_a_wrong_block_is_refused(table: list[int]) -> None:
    with pytest.raises(BadInput, match="block table"):
        ContiguousKV().pack(cache(4, 4), table, 8)


def test_another_number_format_is_refused() -> None:
    with pytest.raises(BadInput, match="bfloat16"):
        recv_scatter(torch.ones(2, 2, 4, 2, 4).bfloat16(), cache(4, 4), [0])


@pytest.mark.parametrize(
    ("name", "value"), [("dtype", "bfloat16"), ("kv_heads", 1), ("layers", 3), ("fingerprint", "b")]
)
def test_a_link_between_different_caches_is_refused_with_both_values(name: str, value: object) -> None:
    with pytest.raises(LinkRefused, match=str(value)):
        check_link(SHAPE, replace(SHAPE, **{name: value}))  # type: ignore[arg-type]


def test_block_sizes_may_differ_for_ranges_only() -> None:
    check_link(SHAPE, replace(SHAPE, block_size=16))
    with pytest.raises(LinkRefused, match="block_size"):
        check_link(SHAPE, replace(SHAPE, block_size=16), contiguous=False)


def test_a_shape_counts_the_bytes_of_a_token() -> None:
    assert KVShape.of(cache(3, 4), "model") == SHAPE
    assert SHAPE.bytes_per_token == 2 * 2 * 2 * 4 * 4


def test_blocks_go_into_other_blocks() -> None:
    ours, theirs = cache(5, 4), torch.zeros(2, 2, 5, 4, 2, 4)
    scatter_blocks(list(block_messages(ours, [3, 1])), theirs, [0, 4])
    assert torch.equal(theirs[:, :, [0, 4]], ours[:, :, [3, 1]])


@pytest.mark.parametrize("acknowledged", [True, False])
def test_messages_pass_over_a_paced_connection(acknowledged: bool) -> None:
    here, there = socket.socketpair()
    source, target = cache(6, 4), torch.zeros(6, 4)
    sent = list(source.flatten()[:24].view(6, 4))

    def receive() -> None:
        receive_messages(there, list(target), acknowledged=acknowledged)
        there.sendall(ACK)

    thread = threading.Thread(target=receive)
    thread.start()
    assert send_messages(here, iter(sent), SmoothPace(1e6), acknowledged=acknowledged) == (6, 96)
    thread.join()
    assert torch.equal(target, torch.stack(sent))


def test_a_sender_that_goes_away_is_told() -> None:
    here, there = socket.socketpair()
    here.sendall(b"abc")
    here.close()
    with pytest.raises(ConnectionError, match="message 1 of 1"):
        receive_messages(there, [torch.zeros(4)])
