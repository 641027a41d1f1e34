"""Caches over several connections: whole after damage, breaks and stalls, or refused; answers stay the local ones."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch

from heliograph.errors import BadInput
from heliograph.lm.core.decoder import CachedAttention
from heliograph.lm.core.masks import MaskSpec
from heliograph.serving.core.frames import FrameError, receive_frame, send_frame
from heliograph.serving.prfaas import (
    CacheGroup,
    ClusterRefused,
    HybridGenerator,
    HybridKVPool,
    HybridRouter,
    LinkShape,
    RemoteFailed,
    RemotePrefill,
    RemoteProcess,
    RemoteServer,
    RemoteSettings,
    WindowedKV,
    windowed_layers,
    windowed_shape,
)
from heliograph.serving.prfaas.windowed import continue_greedily, prefill, random_decoder

WINDOW = 16
MODEL = random_decoder(1)
WINDOWS = windowed_layers(6, full_every=3, window=WINDOW)
PROMPT = [(7 * n * n + n) % 256 for n in range(150)]


def local(prompt: list[int] = PROMPT, count: int = 12) -> list[int]:
    kv = WindowedKV(WINDOWS)
    return continue_greedily(MODEL, kv, prefill(MODEL, prompt, kv), count)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    made = RemoteServer(MODEL, WINDOWS, LinkShape(chunk_bytes=700), lease_s=5)
    made.start()
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.close()
    thread.join()


class Door:
    """Stands before a server and does to its chunks what a test says: "pass", "damage", "cut" or "hold"."""

    def __init__(self, behind: tuple[str, int], treat: Callable[[int, dict[str, Any]], str]) -> None:
        self.behind, self.treat, self.opened, self.seen = behind, treat, 0, 0
        self.numbers: list[int] = []
        self.lock = threading.Lock()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listening.getsockname()[:2]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                far = socket.create_connection(self.behind)
                self.opened += 1
                threading.Thread(target=self.back, args=(near, far), daemon=True).start()
                threading.Thread(target=self.forth, args=(far, near), daemon=True).start()

    def back(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(4096):
                far.sendall(data)
        far.close()

    def forth(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError, FrameError):
            while True:
                facts, body = receive_frame(far, 2**20)
                with self.lock:
                    self.seen += 1
                    what = self.treat(self.seen, facts)
                    self.numbers.append(int(facts.get("number", -1)))
                if what == "cut":
                    break
                if what == "hold":
                    continue
                if what == "damage" and body:
                    body[0] ^= 255
                facts.pop("nbytes")
                send_frame(near, facts, bytes(body))
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def behind(
    server: RemoteServer, treat: Callable[[int, dict[str, Any]], str], **more: Any
) -> tuple[Door, RemotePrefill]:
    door = Door(server.address, treat)
    return door, RemotePrefill(door.address, MODEL, WINDOWS, **{"stall_s": 2.0, **more})


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("length", [1, WINDOW, 150])
def test_an_answer_from_a_remote_cache_is_the_local_one(server: RemoteServer, layerwise: bool, length: int) -> None:
    came = RemotePrefill(server.address, MODEL, WINDOWS).fetch(PROMPT[:length], layerwise=layerwise)
    assert came.nbytes == came.kv.nbytes == windowed_shape(MODEL.config, WINDOWS).kv_bytes(length, 4.0)
    assert continue_greedily(MODEL, came.kv, came.first_token, 12) == local(PROMPT[:length])
    assert came.attempts == 1


def test_a_damaged_chunk_is_sent_again(server: RemoteServer) -> None:
    door, remote = behind(server, lambda n, _: "damage" if n in (3, 9) else "pass")
    came = remote.fetch(PROMPT)
    assert continue_greedily(MODEL, came.kv, came.first_token, 12) == local()
    assert len(door.numbers) > len(set(door.numbers))


def test_a_connection_that_breaks_hands_its_chunks_to_the_others(server: RemoteServer) -> None:
    door, remote = behind(server, lambda n, _: "cut" if n == 5 else "pass")
    came = remote.fetch(PROMPT)
    assert continue_greedily(MODEL, came.kv, came.first_token, 12) == local()
    assert (came.attempts, door.opened) == (1, 4)


def test_after_all_connections_broke_a_new_set_goes_on_with_what_is_missing(server: RemoteServer) -> None:
    broken: set[int] = set()

    def treat(n: int, facts: dict[str, Any]) -> str:
        if facts["op"] == "chunk" and facts["attempt"] == 0 and n > 10:
            broken.add(n)
            return "cut"
        return "pass"

    door, remote = behind(server, treat)
    came = remote.fetch(PROMPT)
    assert continue_greedily(MODEL, came.kv, came.first_token, 12) == local()
    assert came.attempts == 2
    assert door.seen < 2 * len(set(door.numbers))  # not everything came twice


def test_a_link_that_goes_silent_is_given_up_and_another_set_tried(server: RemoteServer) -> None:
    _, remote = behind(server, lambda n, facts: "hold" if facts.get("attempt") == 0 and n > 6 else "pass", stall_s=0.3)
    came = remote.fetch(PROMPT)
    assert continue_greedily(MODEL, came.kv, came.first_token, 12) == local()
    assert came.attempts == 2


def test_a_link_that_stays_silent_fails_and_frees_what_was_reserved(server: RemoteServer) -> None:
    pool = HybridKVPool((CacheGroup("full", "full", token_bytes=64),), 1024, 4096)
    _, remote = behind(server, lambda *_: "hold", stall_s=0.2, attempts=2, pool=pool)
    with pytest.raises(RemoteFailed, match="2 attempts"):
        remote.fetch(PROMPT)
    assert pool.num_free == 4096
    pool.check()


def test_a_cache_without_room_is_not_asked_for(server: RemoteServer) -> None:
    pool = HybridKVPool((CacheGroup("full", "full", token_bytes=64),), 64, 4)
    door, remote = behind(server, lambda *_: "pass", pool=pool)
    with pytest.raises(RemoteFailed, match="no room"):
        remote.fetch(PROMPT)
    assert door.opened == 0


def test_another_model_or_other_windows_are_refused_by_name(server: RemoteServer) -> None:
    with pytest.raises(ClusterRefused, match="same version"):
        RemotePrefill(server.address, random_decoder(2), WINDOWS).fetch(PROMPT)
    with pytest.raises(ClusterRefused, match="windows"):
        RemotePrefill(server.address, MODEL, (None,) * 6).fetch(PROMPT)


def test_a_prompt_that_the_remote_side_cannot_compute_is_refused_with_its_reason(server: RemoteServer) -> None:
    with pytest.raises(RemoteFailed, match="does not fit"):
        RemotePrefill(server.address, MODEL, WINDOWS).fetch([1] * 5000)


def test_nonsense_on_the_port_does_not_disturb_others(server: RemoteServer) -> None:
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\xc1", b"\xff" * 64):
        with socket.create_connection(server.address) as connection:
            connection.sendall(nonsense)
    with socket.create_connection(server.address) as connection:
        send_frame(connection, {"op": "join", "request": "nobody", "attempt": "x"})
    came = RemotePrefill(server.address, MODEL, WINDOWS).fetch(PROMPT)
    assert continue_greedily(MODEL, came.kv, came.first_token, 12) == local()


def test_several_prompts_at_once_do_not_mix(server: RemoteServer) -> None:
    remote = RemotePrefill(server.address, MODEL, WINDOWS, connections=2)
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        came = remote.fetch(PROMPT[number:])
        found[number] = continue_greedily(MODEL, came.kv, came.first_token, 12)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: local(PROMPT[n:]) for n in range(4)}


def test_reports_of_the_sender_reach_the_monitor(server: RemoteServer) -> None:
    router = HybridRouter(10.0)
    generator = HybridGenerator(MODEL, WINDOWS, router, RemotePrefill(server.address, MODEL, WINDOWS))
    answer = generator.generate(PROMPT, 12)
    assert (answer.path, list(answer.tokens)) == ("remote", local())
    assert router.monitor.bytes_per_s == 1.25e9


def test_short_prompts_stay_and_a_remote_side_that_is_gone_is_replaced(server: RemoteServer) -> None:
    remote = RemotePrefill(server.address, MODEL, WINDOWS, attempts=1)
    generator = HybridGenerator(MODEL, WINDOWS, HybridRouter(100.0), remote)
    assert generator.generate(PROMPT[:50], 4).path == "local"
    server.close()
    answer = generator.generate(PROMPT, 12)
    assert (answer.path, list(answer.tokens)) == ("fallback", local())
    assert HybridGenerator(MODEL, WINDOWS, HybridRouter(100.0), None).generate(PROMPT, 4).path == "local"


@pytest.mark.integration
def test_a_killed_remote_process_costs_no_answer() -> None:
    settings = RemoteSettings("random", 6, 3, WINDOW, bytes_per_s=50_000, delay_s=0.01, chunk_bytes=1000, seed=1)
    with RemoteProcess(settings) as process:
        assert process.fingerprint == MODEL.fingerprint
        remote = RemotePrefill(process.address, MODEL, WINDOWS, attempts=2, stall_s=5.0)
        heard = threading.Event()
        remote.listen = lambda _: heard.set()
        killer = threading.Thread(target=lambda: (heard.wait(30), process.process.kill()))
        killer.start()
        answer = HybridGenerator(MODEL, WINDOWS, HybridRouter(100.0), remote).generate(PROMPT, 12)
        killer.join()
    assert (answer.path, list(answer.tokens)) == ("fallback", local())


@pytest.mark.integration
def test_a_remote_process_that_cannot_start_says_why() -> None:
    with pytest.raises(BadInput, match=r"none\.gguf"):
        RemoteProcess(RemoteSettings("none.gguf"))


def plain(tokens: list[int], windows: tuple[int | None, ...]) -> torch.Tensor:
    """Hidden states by dense masks, layer by layer."""

    class Dense:
        def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            at = torch.arange(len(tokens))[None]
            return CachedAttention(MaskSpec(at, at, window=windows[layer])).attend(layer, q, k, v)

    with torch.no_grad():
        return MODEL.decoder(MODEL.decoder.embed(torch.tensor([tokens])), torch.arange(len(tokens))[None], Dense())


@pytest.mark.parametrize("cuts", [(), (1,), (16, 17), (70, 100, 149)])
def test_windows_equal_dense_masks_however_the_prompt_is_cut(cuts: tuple[int, ...]) -> None:
    kv = WindowedKV(WINDOWS)
    parts, start = [], 0
    for stop in (*cuts, len(PROMPT)):
        with torch.no_grad():
            row, at = torch.tensor([PROMPT[start:stop]]), torch.arange(start, stop)[None]
            parts.append(MODEL.decoder(MODEL.decoder.embed(row), at, kv))
        start = stop
    torch.testing.assert_close(torch.cat(parts, dim=1), plain(PROMPT, WINDOWS), rtol=1e-4, atol=1e-5)


def test_a_layer_keeps_no_more_than_its_window() -> None:
    kv = WindowedKV(WINDOWS)
    prefill(MODEL, PROMPT, kv)
    assert [len(k) for k in kv.keys] == [150 if w is None else WINDOW for w in WINDOWS]
    with pytest.raises(BadInput, match="layer 0"):
        WindowedKV.filled(WINDOWS, kv.keys, kv.values, 10)


def test_a_prompt_beyond_the_context_is_refused_before_anything_is_kept() -> None:
    kv = WindowedKV(WINDOWS)
    for wrong in ([], [1] * 5000):
        with pytest.raises(BadInput, match="does not fit"):
            prefill(MODEL, wrong, kv)
    assert kv.length == kv.nbytes == 0


@pytest.mark.parametrize("shape", [{"bytes_per_s": 0.0}, {"delay_s": -1.0}, {"chunk_bytes": 0}])
def test_a_link_that_carries_nothing_is_refused(shape: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="link"):
        LinkShape(**shape)  # type: ignore[arg-type]
