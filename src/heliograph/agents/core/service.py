"""A configured gateway that runs: builds the chain, serves, reloads on change, ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvicorn

from heliograph.agents.core.audit import AuditInterceptor, AuditLog, TakesAudit
from heliograph.agents.core.config import GatewayConfig, read_config
from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.http_front import DrainingServer, HttpFront
from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.core.limits import CallRate, RateLimiter
from heliograph.agents.core.stages import build_stage
from heliograph.errors import BadInput, HeliographError

__all__ = ["GatewayService"]

logger = logging.getLogger(__name__)


class GatewayService:
    """A gateway from a configuration file.

    Args:
        config: that was read.
        stages: names of stages switched on by hand, with their options, before those of the file.

    Raises:
        BadInput: a stage, the audit log or the authentication cannot be had.
    """

    def __init__(self, config: GatewayConfig, stages: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.config = config
        self._stages = dict(stages or {})
        self._audit: AuditLog | None = None
        self.reloads = self.refused_reloads = 0
        try:
            self.gateway = Gateway(config.specs, self._chain(config), separator=config.policy.separator)
            self.front = HttpFront(self.gateway, config.policy.listen, config.verifier())
        except BaseException:
            self.close_audit()
            raise

    def _chain(self, config: GatewayConfig) -> Sequence[Interceptor]:
        """Audit outermost, so that it sees refusals too; then the rate limit; then the stages in their order."""
        policy, chain = config.policy, []
        made: list[Interceptor] = []
        by_hand = dict(self._stages)
        if policy.mcpsec is not None or "mcpsec" in by_hand:
            folder = {"folder": str(config.path.parent)}
            by_hand["mcpsec"] = folder | (policy.mcpsec or {}) | dict(by_hand.get("mcpsec", {}))
        for name, options in by_hand.items():
            made += build_stage(name, options)
        for stage in policy.stages:
            made += build_stage(stage.name, stage.options)
        if policy.audit is not None:
            path = config.path.parent / policy.audit.path
            if self._audit is None or self._audit.path != path:
                fresh = AuditLog(path, fsync=policy.audit.fsync)
                self.close_audit()
                self._audit = fresh
                if fresh.recovered:
                    logger.warning("%s: %d bytes of an unfinished line were cut off", path, fresh.recovered)
            for interceptor in made:
                if isinstance(interceptor, TakesAudit):
                    interceptor.take_audit(self._audit)
            chain.append(
                AuditInterceptor(self._audit, arguments=policy.audit.arguments, fail_open=policy.audit.fail_open)
            )
        if policy.rate is not None:
            chain.append(CallRate(RateLimiter(policy.rate.per_second, policy.rate.burst)))  # type: ignore[arg-type]
        return [*chain, *made]

    def close_audit(self) -> None:
        """Closes the audit log."""
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    async def reload(self) -> bool:
        """Reads the file again; a bad one changes nothing and is logged. Where it listens stays until a restart."""
        try:
            config = read_config(self.config.path)
            verifier = config.verifier()
            if (verifier is None) != (self.front.verifier is None):
                raise BadInput("switching authentication on or off needs a restart")
            await self.gateway.reconfigure(config.specs, self._chain(config))
        except HeliographError as error:
            self.refused_reloads += 1
            logger.error("the configuration is not taken over: %s", error)
            return False
        if config.policy.listen != self.config.policy.listen:
            logger.warning("heliograph.listen has changed; that needs a restart")
        self.config, self.front.verifier = config, verifier
        self.reloads += 1
        logger.info("configuration taken over")
        return True

    async def serve(self, *, on_start: Callable[[int], None] = lambda _: None, watch_s: float = 1.0) -> None:
        """Serves over HTTP until a signal.

        Args:
            on_start: called with the port once it listens.
            watch_s: how often the file is looked at; 0 for never. SIGHUP always reloads.
        """
        listen = self.config.policy.listen
        config = uvicorn.Config(
            self.front,
            host=listen.host,
            port=listen.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        server = DrainingServer(config, self.gateway, self.config.policy.drain_s, lambda: on_start(server.port))
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, wake.set)
        watcher = asyncio.create_task(self._watch(wake, watch_s))
        try:
            await server.serve()
        finally:
            watcher.cancel()
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(signal.SIGHUP)
            await self.gateway.close()
            self.close_audit()
        if not server.started:
            raise BadInput(f"cannot listen on {listen.host}:{listen.port}: the address is in use or not ours")

    async def serve_stdio(self) -> None:
        """Serves one caller on standard input and output."""
        from mcp.server.lowlevel import NotificationOptions
        from mcp.server.stdio import stdio_server

        server = self.gateway.server
        changed = NotificationOptions(tools_changed=True, prompts_changed=True, resources_changed=True)
        try:
            async with stdio_server() as (read, write):
                await server.run(read, write, server.create_initialization_options(changed))
        finally:
            await self.gateway.close()
            self.close_audit()

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self.config.path.stat()
            return found.st_mtime_ns, found.st_size
        except OSError:  # an editor is replacing it
            return (0, 0)

    async def _watch(self, wake: asyncio.Event, watch_s: float) -> None:
        stamp = self._stamp()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(watch_s or None):
                    await wake.wait()
            now = self._stamp()
            if wake.is_set() or (now != stamp and now != (0, 0)):
                wake.clear()
                stamp = now
                await self.reload()
