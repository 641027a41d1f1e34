"""Virtual time: one discrete-event engine with queues, rates and links, timelines, ledgers and faults on purpose."""

from __future__ import annotations

from heliograph.sim.engine import Deadlock, Process, Sim, Wait
from heliograph.sim.faults import Fault, FaultPlan, FaultRun
from heliograph.sim.ledger import Ledger
from heliograph.sim.parts import Fifo, Link, Resource, Signal, Slots
from heliograph.sim.timeline import Span, Timeline

__all__ = [
    "Deadlock",
    "Fault",
    "FaultPlan",
    "FaultRun",
    "Fifo",
    "Ledger",
    "Link",
    "Process",
    "Resource",
    "Signal",
    "Sim",
    "Slots",
    "Span",
    "Timeline",
    "Wait",
]
