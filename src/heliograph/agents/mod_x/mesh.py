"""How peers reach each other without a hub: each has a bus of its own, on which the others publish.

:class:`TcpMesh` listens on a :class:`~heliograph.agents.core.tcp_bus.TcpBusServer` and dials those of others.
:class:`MemoryMesh` does the same in one process, over a :class:`MemoryNetwork` that can lose hosts and links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from heliograph.agents.core.bus import Bus, BusClosed, MemoryBus, RequestTimeout
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.tcp_bus import TcpBus, TcpBusServer
from heliograph.errors import BadInput

__all__ = ["MemoryMesh", "MemoryNetwork", "Mesh", "TcpMesh"]


class Mesh(Protocol):
    """What a peer needs of a transport."""

    address: str

    async def listen(self) -> Bus:
        """The peer's own bus, which others can reach from now on."""
        ...

    async def send(self, address: str, env: Envelope) -> None:
        """Publishes on another's bus.

        Raises:
            BusClosed: it cannot be reached.
        """
        ...

    async def request(self, address: str, env: Envelope, *, timeout_s: float) -> Envelope:
        """Asks on another's bus.

        Raises:
            BusClosed, NoResponders, RequestTimeout: no answer.
        """
        ...

    async def close(self) -> None:
        """Ends all connections."""
        ...


class MemoryNetwork:
    """Hosts in one process. A message to a host that is down, or on the other side of a cut, vanishes."""

    def __init__(self) -> None:
        self.buses: dict[str, Bus] = {}
        self.down: set[str] = set()
        self._side: dict[str, int] = {}

    def split(self, side: Sequence[str]) -> None:
        """Cuts these addresses off from the others."""
        self._side = dict.fromkeys(side, 1)

    def heal(self) -> None:
        """All links work again."""
        self._side = {}

    def open(self, one: str, other: str) -> bool:
        """Whether a message gets from one to the other."""
        apart = self._side.get(one, 0) != self._side.get(other, 0)
        return not apart and one not in self.down and other not in self.down and other in self.buses


class MemoryMesh:
    """A peer's link to a :class:`MemoryNetwork`.

    Args:
        network: of all peers.
        address: this peer's.
    """

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network, self.address = network, address

    async def listen(self) -> Bus:
        """The peer's own bus."""
        if self.address in self._network.buses:
            raise BadInput(f"the address {self.address} is taken")
        bus = MemoryBus(log_length=0)
        self._network.buses[self.address] = bus
        return bus

    async def send(self, address: str, env: Envelope) -> None:
        """Publishes on another's bus."""
        if self._network.open(self.address, address):
            await self._network.buses[address].publish(env)

    async def request(self, address: str, env: Envelope, *, timeout_s: float) -> Envelope:
        """Asks on another's bus."""
        if not self._network.open(self.address, address):
            await asyncio.sleep(timeout_s)
            raise RequestTimeout(f"no answer from {address} within {timeout_s:g} s")
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        answer = await self._network.buses[address].request(env, timeout_s=timeout_s)
        if not self._network.open(address, self.address):  # it died, or was cut off, while it worked
            await asyncio.sleep(max(0.0, end - loop.time()))
            raise RequestTimeout(f"no answer from {address} within {timeout_s:g} s")
        return answer

    async def close(self) -> None:
        """Takes the peer off the network."""
        bus = self._network.buses.pop(self.address, None)
        if bus is not None:
            await bus.close()


class TcpMesh:
    """A peer that listens on TCP.

    Args:
        host, port: to listen on; port 0 takes a free one.
        token: that all peers of the mesh share; needed beyond loopback.
        dial_s: for a connection.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, token: str = "", dial_s: float = 2.0) -> None:
        self._server = TcpBusServer(host, port, token=token, bus=MemoryBus(log_length=0))
        self._token, self._dial_s = token, dial_s
        self._links: dict[str, TcpBus] = {}
        self._dialling: dict[str, asyncio.Lock] = {}
        self.address = f"{host}:{port}"

    async def listen(self) -> Bus:
        """The peer's own bus; :attr:`address` is then the real one."""
        await self._server.start()
        self.address = f"{self._server.host}:{self._server.port}"
        return self._server.bus

    async def _link(self, address: str, *, fresh: bool = False) -> TcpBus:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise BadInput(f"an address is HOST:PORT; got {address!r}")
        async with self._dialling.setdefault(address, asyncio.Lock()):
            if fresh and address in self._links:
                await self._links.pop(address).close()
            if address not in self._links:
                self._links[address] = await TcpBus.connect(host, int(port), token=self._token, timeout_s=self._dial_s)
            return self._links[address]

    async def send(self, address: str, env: Envelope) -> None:
        """Publishes on another's bus; a connection that was lost is made anew, once."""
        try:
            await (await self._link(address)).publish(env)
        except BusClosed:
            await (await self._link(address, fresh=True)).publish(env)

    async def request(self, address: str, env: Envelope, *, timeout_s: float) -> Envelope:
        """Asks on another's bus. A request that may have arrived is not sent again."""
        link = await self._link(address)
        try:
            await link._subscribers(env.topic)
        except BusClosed:
            link = await self._link(address, fresh=True)
        return await link.request(env, timeout_s=timeout_s)

    async def close(self) -> None:
        """Ends all connections."""
        for link in self._links.values():
            await link.close()
        self._links.clear()
        await self._server.close()
