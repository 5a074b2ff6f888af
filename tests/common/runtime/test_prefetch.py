"""Items prepared in the background: order, bound, errors."""

import threading
import time

import pytest

from stages.common.runtime.prefetch import prefetch


def test_results_come_in_order_whatever_takes_long():
    def prepare(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(prefetch(prepare, range(20), ahead=4)) == [k * k for k in range(20)]


def test_no_more_than_so_many_are_drawn_early():
    drawn = []
    results = prefetch(lambda item: item, (drawn.append(k) or k for k in range(50)), ahead=3)
    assert next(results) == 0
    assert drawn == [0, 1, 2, 3]
    results.close()


def test_items_are_drawn_by_the_callers_thread_and_prepared_by_others():
    here = threading.current_thread()
    source = (threading.current_thread() is here for _ in range(4))
    found = prefetch(lambda drawn: (drawn, threading.current_thread() is here), source)
    assert list(found) == [(True, False)] * 4


def test_an_error_comes_out_at_its_turn():
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("image 2 is broken")
        return item

    results, got = prefetch(prepare, range(5)), []
    with pytest.raises(ValueError, match="image 2 is broken"):
        got.extend(results)
    assert got == [0, 1]
