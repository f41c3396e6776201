"""Times belong to their calls, warm-up is not counted, the order turns, and CUDA is waited for."""

import numpy as np
import pytest

from dart import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only calls move."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_each_call_gets_its_own_seconds(clock):
    def takes(seconds):
        def call():
            clock[0] += seconds
        return call

    found = timing.interleaved({"long": takes(3.0), "short": takes(0.5)}, rounds=4)
    assert list(found) == ["long", "short"]
    np.testing.assert_array_equal(found["long"], [3.0] * 4)
    np.testing.assert_array_equal(found["short"], [0.5] * 4)


def test_warm_up_is_not_counted(clock):
    calls = []

    def slow_at_first():
        clock[0] += 9.0 if len(calls) < 2 else 1.0
        calls.append(clock[0])

    assert timing.interleaved({"a": slow_at_first}, rounds=3, warmup=2)["a"].tolist() == [1.0] * 3
    assert len(calls) == 5


def test_calls_take_turns_and_every_other_round_goes_backwards():
    order = []
    timing.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, rounds=2, warmup=0)
    assert "".join(order) == "abccba"


def test_a_machine_that_grows_slower_favours_none(clock):
    def call():
        clock[0] *= 1.01

    found = timing.interleaved({"a": call, "b": call}, rounds=2, warmup=0)
    assert found["a"].sum() == pytest.approx(found["b"].sum(), rel=1e-3)


def test_the_device_is_waited_for_before_and_after_each_call(monkeypatch):
    said = []
    monkeypatch.setattr(timing.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: said.append("wait"))
    timing.interleaved({"a": lambda: said.append("call")}, rounds=2, warmup=0)
    assert said == ["wait", "call", "wait"] * 2


@pytest.mark.parametrize("wrong", [{"calls": {}}, {"rounds": 0}, {"warmup": -1}])
def test_nothing_to_measure_is_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        timing.interleaved(**{"calls": {"a": lambda: None}, **wrong})
