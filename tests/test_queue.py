"""The queue: by priority, but nobody waits for ever."""

from jackfield.engine.queue import PASSING_REQUESTS, PASSING_SECONDS, WaitingQueue
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.engine.sequence import Sequence


def sequence(name: str, submitted: float, priority: int = 0) -> Sequence:
    request = GenerationRequest(name, (1,), 1, SamplingParameters(), priority=priority)
    return Sequence(request, submitted=submitted)


def order(*sequences: Sequence) -> list[str]:
    queue = WaitingQueue()
    for one in sequences:
        queue.put(one)
    assert queue.first is ((sequences and min(sequences, key=lambda s: s.rank)) or None)
    return [queue.take(queue.first).request.id for _ in range(len(queue))]


def test_equals_keep_the_order_of_arrival():
    assert order(sequence("a", 1), sequence("b", 1), sequence("c", 2)) == ["a", "b", "c"]


def test_lower_priorities_go_first():
    assert order(sequence("a", 1), sequence("b", 2, -5), sequence("c", 3, 5)) == ["b", "a", "c"]


def test_a_second_of_waiting_counts_as_one_level_so_nobody_waits_for_ever():
    patient = sequence("patient", submitted=0, priority=20)
    eager = [sequence(f"eager {second}", submitted=second, priority=-10) for second in range(60)]
    assert order(patient, *eager).index("patient") == 30


def test_those_not_far_behind_the_first_may_pass_it():
    queue = WaitingQueue()
    assert list(queue.candidates()) == []
    late = PASSING_SECONDS + 5
    for one in (sequence("late", late + 3), sequence("urgent", late, -5), sequence("first", 5), sequence("near", 6)):
        queue.put(one)
    assert [s.request.id for s in queue.candidates()] == ["first", "near", "urgent"]
    queue.take(next(queue.candidates()))
    assert [s.request.id for s in queue.candidates()] == ["near", "urgent"]
    for second in range(100):
        queue.put(sequence("many", second / 100))
    assert len(list(queue.candidates())) == PASSING_REQUESTS


def test_what_leaves_is_handed_out_and_the_rest_stays_in_order():
    queue = WaitingQueue()
    for one in (sequence("a", 1), sequence("b", 2), sequence("c", 3)):
        queue.put(one)
    assert [s.request.id for s in queue.remove(lambda s: s.request.id == "b")] == ["b"]
    assert [s.request.id for s in queue] == ["a", "c"]
    assert queue.remove(lambda _: False) == []
    queue.clear()
    assert queue.first is None
