"""Which signals are wishes to stop, and that none of them is met twice."""

import signal

import pytest

from trainer.ranks import stop as module
from trainer.ranks.stop import StopRequest

ENDS = [
    number
    for number in sorted(signal.valid_signals())
    if number not in module._OTHERS and number not in (signal.SIGPIPE, signal.SIGXFSZ)  # which Python ignores
]


@pytest.fixture
def default_handlers():
    before = {number: signal.getsignal(number) for number in ENDS}
    for number in ENDS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDS)
def test_every_signal_that_would_end_the_process_is_a_wish_to_stop(default_handlers, number, capfd):
    stop = StopRequest().listen()
    assert stop.signal is None
    assert stop.signal_name is None
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    assert stop.signal == number
    assert stop.signal_name in (getattr(number, "name", None), f"signal {number}")
    assert ("once more" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_what_is_ignored_or_handled_stays_so(default_handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signal.signal(signal.SIGALRM, handler := lambda *_: None)
    stop = StopRequest().listen()
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGALRM)
    assert stop.signal is None
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_second_interrupt_of_a_person_ends_at_once(default_handlers, monkeypatch, capfd):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    stop = StopRequest().listen()
    signal.raise_signal(signal.SIGINT)
    now += 0.1
    signal.raise_signal(signal.SIGINT)  # the launcher's, of the same Ctrl-C
    now += 2
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stop.signal_name == "SIGINT"
