"""Threads that read ahead: what hangs in one of them holds nobody up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import FORK

from data import WaitError, threads
from data.threads import Threads, result_of


@pytest.fixture
def pool():
    made = Threads(2)
    yield made
    made.end()


def test_results_come_in_order_and_errors_where_they_are_asked_for(pool):
    futures = [pool.submit(divmod, 9, i) for i in (2, 0, 3)]
    assert result_of(futures[2], "c") == (3, 0)
    assert result_of(futures[0], "a") == (4, 1)
    with pytest.raises(ZeroDivisionError):
        result_of(futures[1], "b")


def test_nothing_is_computed_after_the_end():
    pool, first, more = Threads(1), threading.Event(), []
    pool.submit(first.wait)
    future = pool.submit(more.append, 1)
    pool.end()
    first.set()
    threads.let_them_finish()
    assert not future.done()
    assert more == []


def test_what_does_not_arrive_is_named_once_and_waited_for_until_a_stop(pool, monkeypatch, capsys):
    monkeypatch.setattr(threads, "PATIENCE", 0.01)
    monkeypatch.setattr(threads, "LOOK", 0.01)
    go, looks = threading.Event(), []

    def stopped() -> bool:
        looks.append(1)
        return len(looks) == 5

    future = pool.submit(go.wait)
    with pytest.raises(WaitError, match=r"^a\.png did not arrive$"):
        result_of(future, "a.png", stopped)
    assert capsys.readouterr().err.count("waiting for a.png") == 1
    go.set()
    assert result_of(future, "a.png", lambda: True) is True  # control: it has arrived


def hang(pool_of) -> None:
    """A program that ends while a thread of its waits for ever."""
    pool = pool_of()
    pool.submit(threading.Event().wait)


def ours():
    return Threads(1)


def theirs():
    return ThreadPoolExecutor(1)


@pytest.mark.parametrize("pool_of", [ours, theirs])
def test_a_thread_that_hangs_does_not_keep_the_program(pool_of):
    process = FORK.Process(target=hang, args=(pool_of,))
    process.start()
    process.join(60 if pool_of is ours else 1)
    assert process.is_alive() == (pool_of is theirs)  # control
    process.kill()
    process.join()
