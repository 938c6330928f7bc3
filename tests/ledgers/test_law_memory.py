from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from maas_middleware.ledgers.memory import MemoryLedger
from maas_middleware.limiting import Ledger
from maas_middleware.testing.clock import FakeClock

from .law_machine import LedgerMachine


class InMemory(LedgerMachine):
    def make_ledgers(self, clock: FakeClock) -> Sequence[Ledger]:
        return [MemoryLedger(clock=clock)]


def test_law_holds_in_memory_for_any_schedule() -> None:
    schedules = settings(derandomize=True, database=None, deadline=None, max_examples=50, stateful_step_count=40)

    run_state_machine_as_test(InMemory, settings=schedules)
