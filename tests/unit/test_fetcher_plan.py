"""What is fetched next: readers first, then what follows, then the rest; failures after a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cisfs.format.sealed_geometry import LayerGeometry
from cisfs.registry import fetcher_plan
from cisfs.registry.fetcher_plan import Piece, Plan

KIB, MIB = 1 << 10, 1 << 20
UNIT = 64 * KIB
UNITS = 4096
NEAR, AHEAD, REST = 8, 64, 256  # in units


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Layer:
    """One of which these units are here."""

    def __init__(self) -> None:
        self.geometry = LayerGeometry(UNIT, UNITS * UNIT)
        self.here: set[int] = set()

    def lacks(self, unit: int) -> bool:
        return unit not in self.here

    def missing(self, units: range) -> Iterator[int]:
        return (unit for unit in units if unit not in self.here)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(fetcher_plan, "monotonic", made)
    return made


@pytest.fixture
def layer() -> Layer:
    return Layer()


@pytest.fixture
def plan(layer: Layer, clock: Clock) -> Plan:
    assert clock.now
    return Plan(layer, quiet=1.0)


def units(first: int, count: int = 1) -> range:
    return range(first, first + count)


def plan_now() -> float:
    """What the plan takes for the time."""
    return float(vars(fetcher_plan)["monotonic"]())


def nothing() -> None:
    """For who does not need to be told."""


def now(plan: Plan, *, rest: bool = False) -> Piece | None:
    """What `next` returns, if it does at once."""
    with plan._changed:
        piece = plan._choose(plan_now(), rest)
        if piece is not None and plan_now() >= plan._not_before:
            plan._flying.update(piece.units)
            return piece
    return None


def come(plan: Plan, layer: Layer, piece: Piece | None) -> None:
    assert piece is not None
    for unit in piece.units:
        layer.here.add(unit)
        plan.arrived(unit)
    plan.finished(piece)


def test_a_reader_gets_what_he_wants_and_a_little_more(plan: Plan, layer: Layer) -> None:
    told: list[int] = []
    plan.want(units(100, 2), lambda: told.append(1))
    piece = now(plan)
    assert piece == Piece(units(100, NEAR), wanted=True)
    assert now(plan) is None, "it is on its way"
    layer.here |= {100, 101}
    plan.arrived(100)
    assert told == []
    plan.arrived(101)
    assert told == [1]
    plan.arrived(102)
    assert told == [1]


def test_what_is_here_is_told_at_once(plan: Plan, layer: Layer) -> None:
    layer.here |= set(units(5, 3))
    told: list[int] = []
    plan.want(units(5, 3), lambda: told.append(1))
    assert told == [1]
    assert now(plan) is None


def test_who_goes_on_gets_more(plan: Plan, layer: Layer) -> None:
    layer.here.add(99)
    plan.want(units(100), nothing)
    assert now(plan) == Piece(units(100, AHEAD), wanted=True)


def test_the_next_part_is_sent_for_before_this_one_is_read(plan: Plan, layer: Layer) -> None:
    layer.here.add(99)
    plan.want(units(100), nothing)
    piece = now(plan)
    plan.want(units(120), nothing)
    assert now(plan) is None, "the end is far"
    plan.want(units(155), nothing)
    assert now(plan) == Piece(units(164, AHEAD), wanted=True)
    come(plan, layer, piece)


def test_pieces_stop_at_what_is_here_or_on_its_way(plan: Plan, layer: Layer) -> None:
    layer.here |= {104, 299}
    plan.want(units(100), nothing)
    assert now(plan) == Piece(units(100, 4), wanted=True)
    plan.want(units(320), nothing)
    assert now(plan) == Piece(units(320, NEAR), wanted=True)
    plan.want(units(300), nothing)
    assert now(plan) == Piece(units(300, 20), wanted=True)
    plan.want(units(UNITS - 1), nothing)
    assert now(plan) == Piece(units(UNITS - 1), wanted=True)


def test_the_rest_waits_for_quiet(plan: Plan, layer: Layer, clock: Clock) -> None:
    assert now(plan, rest=True) is None
    clock.now += 1.0
    assert now(plan) is None, "it is for one thread"
    piece = now(plan, rest=True)
    assert piece == Piece(units(0, REST), wanted=False)
    come(plan, layer, piece)
    plan.want(units(1000), nothing)
    come(plan, layer, now(plan, rest=True))
    assert now(plan, rest=True) is None
    clock.now += 1.0
    assert now(plan, rest=True) == Piece(units(REST, REST), wanted=False)


def test_the_rest_begins_anew_at_the_start(plan: Plan, layer: Layer, clock: Clock) -> None:
    clock.now += 1.0
    layer.here |= set(range(UNITS)) - {3, 4, UNITS - 1}
    plan._cursor = 10
    assert now(plan, rest=True) == Piece(units(UNITS - 1), wanted=False)
    assert now(plan, rest=True) == Piece(units(3, 2), wanted=False)
    assert now(plan, rest=True) is None


def test_readers_press(plan: Plan) -> None:
    pressed = [plan.is_pressing]
    waiter = plan.want(units(7), nothing)
    pressed.append(plan.is_pressing)
    now(plan)  # it is on its way
    pressed.append(plan.is_pressing)
    plan.failed(Piece(units(7, NEAR), wanted=True))
    pressed.append(plan.is_pressing)
    plan.forget(waiter)
    pressed.append(plan.is_pressing)
    assert pressed == [False, True, False, True, False]
    assert plan._wanted == {}


def test_one_who_leaves_does_not_take_it_from_another(plan: Plan) -> None:
    told: list[str] = []
    first = plan.want(units(7, 2), lambda: told.append("first"))
    plan.want(units(8), lambda: told.append("second"))
    plan.forget(first)
    assert list(plan._wanted) == [8]
    plan.arrived(8)
    assert told == ["second"]


def test_failures_are_waited_after_longer_and_longer(plan: Plan, clock: Clock) -> None:
    plan.want(units(7), nothing)
    waits = []
    for count in range(1, 9):
        piece = now(plan)
        assert piece is not None
        assert plan.failed(piece) == count
        assert now(plan) is None
        waits.append(plan._not_before - clock.now)
        clock.now = plan._not_before
    assert waits == [0.25, 0.5, 1, 2, 4, 5, 5, 5]
    piece = now(plan)
    assert piece is not None
    assert plan.failed(piece, progress=True) == 1
    clock.now = plan._not_before
    piece = now(plan)
    assert piece is not None
    plan.finished(piece)
    assert plan.failed(piece) == 1


def test_a_unit_that_was_wrong_is_left_alone(plan: Plan, layer: Layer, clock: Clock) -> None:
    clock.now += 1
    layer.here |= set(range(UNITS)) - {3, 4, 5}
    plan.ban(4)
    assert now(plan, rest=True) == Piece(units(3), wanted=False)
    assert now(plan, rest=True) == Piece(units(5), wanted=False)
    plan.want(units(4), nothing)
    assert not plan.is_pressing
    assert now(plan, rest=True) is None
    assert 0 < plan._time_to_wait(clock.now) <= 2
    clock.now += 2
    assert now(plan) == Piece(units(4), wanted=True)
    plan.ban(4)
    assert plan._banned[4].until == clock.now + 4
    plan.arrived(4)
    assert plan._banned == {}


def test_threads_wait_until_there_is_something(layer: Layer) -> None:
    plan = Plan(layer, quiet=3600)
    pieces: list[Piece | None] = []

    def take() -> None:
        pieces.extend([plan.next(rest=True), plan.next(rest=True)])

    thread = threading.Thread(target=take)
    thread.start()
    plan.want(units(9), nothing)
    while not pieces and thread.is_alive() and plan.is_pressing:
        pass
    plan.close()
    thread.join(20)
    assert pieces == [Piece(units(9, NEAR), wanted=True), None]
    assert plan.is_closed
