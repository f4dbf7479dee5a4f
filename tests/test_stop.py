"""Signals: raised at once, kept for later, agreed upon."""

import signal

import pytest

from p2p_jax import stop
from p2p_jax.stop import Stop, Stopped


@pytest.fixture
def ended(monkeypatch):
    """What a process would have ended with at once."""
    codes = []
    monkeypatch.setattr(stop.os, '_exit', codes.append)
    return codes


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_raises_at_once_and_the_handlers_come_back(number, code):
    before = [signal.getsignal(n) for n in stop.SIGNALS]
    with pytest.raises(Stopped, match=f'stopped by {number.name}') as caught, Stop():
        signal.raise_signal(number)
        raise AssertionError
    assert caught.value.code == code
    assert [signal.getsignal(n) for n in stop.SIGNALS] == before


def test_a_deferred_signal_waits_until_it_is_asked_for(ended):
    with Stop() as signals:
        signals.defer()
        assert not signals.requested()
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same one, which was passed on twice
        assert signals.requested()
        with pytest.raises(Stopped):
            signals.check()
        with pytest.raises(Stopped):
            signals.resume()
    assert not ended


def test_a_second_signal_ends_at_once(ended, monkeypatch, capfd):
    monkeypatch.setattr(stop, '_SAME', -1.0)
    with Stop() as signals:
        signals.defer()
        signal.raise_signal(signal.SIGTERM)
        assert not ended
        signal.raise_signal(signal.SIGINT)
    assert ended == [130]
    assert 'ended at once' in capfd.readouterr().err


def test_what_takes_too_long_is_ended_but_not_a_save(ended, monkeypatch):
    monkeypatch.setattr(stop, '_PATIENCE', 0.02)
    for saving, codes in ((True, []), (False, [143])):
        with Stop() as signals:
            signals.defer()
            signal.raise_signal(signal.SIGTERM)
            if saving:
                signals.finishing()
            signals._timer.join(2)
        assert ended == codes


def test_several_processes_stop_where_the_runtime_says(ended, monkeypatch):
    passed_on, asked = [], []
    monkeypatch.setattr(stop.os, 'kill', lambda pid, number: passed_on.append(number))
    before = signal.getsignal(signal.SIGTERM)

    def sync_point(count):
        asked.append(count)
        return count == 3

    with Stop(sync_point) as signals:
        assert signal.getsignal(signal.SIGTERM) == before  # it is the runtime's
        signal.raise_signal(signal.SIGINT)
        assert passed_on == [signal.SIGTERM]
        assert [signals.requested() for _ in range(5)] == [False, False, True, True, True]
        assert signals.stopped().code == 130
    assert asked == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) == before
