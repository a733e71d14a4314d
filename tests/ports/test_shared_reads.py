"""Reads of one key that share a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mirror.errors import BucketUnavailable
from mirror.store.objects.shared_reads import SharedReads


class Store:
    """Answers with the number of the call; the first call lasts until the test lets it end."""

    def __init__(self) -> None:
        self.calls = 0
        self.began = threading.Event()
        self.go = threading.Event()
        self.fails = False

    def read(self) -> int:
        """Blocks."""
        self.calls += 1
        number = self.calls
        if number == 1:
            self.began.set()
            assert self.go.wait(60)
        if self.fails:
            raise BucketUnavailable("the bucket is down")
        return number


@pytest.fixture
def store() -> Store:
    """Nobody has read from it."""
    return Store()


def _ask(shared: SharedReads[int], store: Store, key: str = "key") -> tuple[threading.Thread, list[object]]:
    answer: list[object] = []

    def ask() -> None:
        try:
            answer.append(shared.ask(key, store.read))
        except BucketUnavailable as error:
            answer.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answer


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def test_who_asks_while_a_call_is_under_way_shares_the_next(store: Store) -> None:
    """The call that is under way may have been answered before they asked."""
    shared = SharedReads[int]()
    asking = [_ask(shared, store)]
    assert store.began.wait(60)
    asking += [_ask(shared, store) for _ in range(8)]
    _until(lambda: shared.waiting == 8)
    store.go.set()
    for thread, _ in asking:
        thread.join()
    assert [answer for _, answer in asking] == [[1], *[[2]] * 8]
    assert store.calls == 2
    assert shared.ask("key", store.read) == 3
    assert shared.waiting == 0


def test_other_keys_do_not_wait(store: Store) -> None:
    """Each key has calls of its own."""
    shared = SharedReads[int]()
    thread, answer = _ask(shared, store)
    assert store.began.wait(60)
    assert shared.ask("another", store.read) == 2
    store.go.set()
    thread.join()
    assert answer == [1]


def test_an_error_is_that_of_all_who_share_the_call(store: Store) -> None:
    """Nobody waits for ever, and the next call is tried."""
    shared = SharedReads[int]()
    asking = [_ask(shared, store)]
    assert store.began.wait(60)
    asking += [_ask(shared, store) for _ in range(3)]
    _until(lambda: shared.waiting == 3)
    store.fails = True
    store.go.set()
    for thread, answer in asking:
        thread.join()
        assert isinstance(answer[0], BucketUnavailable)
    store.fails = False
    assert shared.ask("key", store.read) == 3
