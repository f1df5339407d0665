"""The memory guard compares what is free with what has to be."""

import pytest

from jackfield.engine.memory import CAREFUL_SECONDS, LOOK_SECONDS, MemoryGuard, Pressure, is_out_of_memory


class Machine:
    def __init__(self, free: int) -> None:
        self.free, self.now, self.looks = free, 0.0, 0

    def look(self) -> int:
        self.looks += 1
        return self.free

    def guard(self, reserve: int = 100, pool: int = 1000) -> MemoryGuard:
        return MemoryGuard(pool, reserve, self.look, lambda: self.now)


def test_nothing_is_lacking_while_the_reserve_is_free():
    machine = Machine(100)
    assert machine.guard().lacking() == 0
    machine.free = 70
    guard = machine.guard()
    assert guard.lacking() == 30
    assert not guard.critical
    machine.free = 40
    assert guard.lacking(fresh=True) == 60
    assert guard.critical


def test_the_machine_is_not_looked_at_all_the_time():
    machine = Machine(500)
    guard = machine.guard()
    for _ in range(10):
        guard.lacking()
    assert machine.looks == 1
    machine.now += LOOK_SECONDS
    guard.lacking()
    assert machine.looks == 2


def test_recovery_wants_more_than_the_reserve_so_that_it_lasts():
    machine = Machine(110)
    guard = machine.guard()
    guard.pressure = Pressure.REFUSING
    assert guard.lacking() == 15
    machine.free = 125
    assert guard.lacking(fresh=True) == 0


def test_after_an_out_of_memory_error_less_is_used_for_a_while():
    machine = Machine(500)
    guard = machine.guard()
    guard.exhausted()
    assert guard.room == 750
    machine.now += CAREFUL_SECONDS
    assert guard.room == 1000


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (MemoryError(), True),
        (RuntimeError("[malloc] Unable to allocate 42 bytes."), True),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"), True),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), True),
        (RuntimeError("a kernel failed"), False),
        (ValueError("out of memory"), False),
        (SystemExit(1), False),
    ],
)
def test_errors_that_mean_memory(error, verdict):
    assert is_out_of_memory(error) is verdict
