"""Nonces that several worker processes share, so that a message counts once among all of them."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Protocol

from heliograph.agents.core.identity import IdentityError, NonceStore
from heliograph.errors import BadInput

__all__ = ["ReplayWindow", "SharedNonces"]


class ReplayWindow(Protocol):
    """Remembers nonces; :class:`~heliograph.agents.NonceStore` in memory, :class:`SharedNonces` in a file."""

    window_s: float

    def admit(self, kid: str, nonce: str, signed_at: float, now: float) -> None:
        """Records a nonce.

        Raises:
            IdentityError: seen before ("replay"), or signed too long ago or too far ahead ("expired").
        """
        ...


class SharedNonces:
    """As :class:`~heliograph.agents.NonceStore`, in an SQLite file.

    The file outlives its processes: after a restart, messages that were seen before it are still refused.

    Args:
        path: of the file; made if absent.
        window_s: seconds that a message stays valid.
        capacity: nonces kept a key; what is forgotten early is refused by its age.

    Raises:
        BadInput: the file cannot be used.
    """

    def __init__(self, path: str | Path, *, window_s: float = 30.0, capacity: int = 1000) -> None:
        NonceStore(window_s=window_s, capacity=capacity)  # the same limits
        self.window_s, self.capacity, self.path = window_s, capacity, Path(path)
        self._lock = threading.Lock()
        try:
            self._table = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)
            self._table.execute("pragma journal_mode=wal")
            self._table.execute("pragma synchronous=normal")
            self._table.executescript(
                "create table if not exists nonces (kid text, nonce text, signed_at real, primary key (kid, nonce))"
                " without rowid;"
                "create index if not exists by_age on nonces (kid, signed_at);"
                "create table if not exists floors (kid text primary key, floor real) without rowid;"
            )
        except sqlite3.Error as error:
            raise BadInput(f"cannot use {path} for nonces: {error}") from None

    def admit(self, kid: str, nonce: str, signed_at: float, now: float) -> None:
        """Records a nonce, in one transaction.

        Raises:
            IdentityError: seen before ("replay"), too old or too far ahead ("expired"), or the file failed ("store").
        """
        if not abs(now - signed_at) <= self.window_s:
            raise IdentityError(
                f"signed {now - signed_at:.1f} s ago; messages are valid for {self.window_s:g} s (check both clocks)",
                "expired",
            )
        with self._lock:
            try:
                self._table.execute("begin immediate")
            except sqlite3.Error as error:  # refused rather than let through unseen
                raise IdentityError(f"the file of nonces does not answer: {error}", "store") from None
            try:
                self._admit(kid, nonce, signed_at, now)
            except BaseException as error:
                self._table.execute("rollback")
                if isinstance(error, sqlite3.Error):
                    raise IdentityError(f"the file of nonces failed: {error}", "store") from None
                raise
            self._table.execute("commit")

    def _admit(self, kid: str, nonce: str, signed_at: float, now: float) -> None:
        run = self._table.execute
        if run("select 1 from nonces where kid = ? and nonce = ?", (kid, nonce)).fetchone():
            raise IdentityError(f"the nonce {nonce} was used before", "replay")
        floor = run("select floor from floors where kid = ?", (kid,)).fetchone()
        if floor is not None and signed_at <= floor[0]:
            raise IdentityError("older than the oldest message still remembered, so it may be a replay", "replay")
        run("delete from nonces where kid = ? and signed_at < ?", (kid, now - self.window_s))
        (kept,) = run("select count(*) from nonces where kid = ?", (kid,)).fetchone()
        if kept >= self.capacity:
            gone, oldest = run(
                "select nonce, signed_at from nonces where kid = ? order by signed_at limit 1", (kid,)
            ).fetchone()
            run("delete from nonces where kid = ? and nonce = ?", (kid, gone))
            run(
                "insert into floors values (?, ?) on conflict (kid) do update set floor = max(floor, excluded.floor)",
                (kid, oldest),
            )
        run("insert into nonces values (?, ?, ?)", (kid, nonce, signed_at))

    def prune(self, now: float) -> int:
        """Forgets what no window reaches, of all keys; returns how many nonces."""
        with self._lock:
            old = self._table.execute("delete from nonces where signed_at < ?", (now - self.window_s,)).rowcount
            self._table.execute("delete from floors where floor < ?", (now - self.window_s,))
        return old

    def __len__(self) -> int:
        with self._lock:
            (kept,) = self._table.execute("select count(*) from nonces").fetchone()
        return int(kept)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._table.close()
