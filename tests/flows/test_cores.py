import threading
import time

import pytest

from flows.resources import CoreBudget, CoresClosedError, count_cores


def test_default_is_all_cores_and_a_wide_stage_gets_what_there_is():
    assert CoreBudget().total == count_cores() >= 1
    for wanted, granted in {0: 1, 1: 1, 4: 4, 64: 4}.items():
        with CoreBudget(4).reserve(wanted) as cores:
            assert cores == granted


def test_no_cores_are_refused():
    with pytest.raises(ValueError, match="cores: expected at least 1, found 0"):
        CoreBudget(0)


def run_together(budget: CoreBudget, wanted: list[int], seconds: float = 0.05) -> list[int]:
    """Hold cores in threads and return how many were held at each start."""
    held, seen, lock = [0], [], threading.Lock()

    def hold(order: int, cores: int) -> None:
        with budget.reserve(cores, order) as granted:
            with lock:
                held[0] += granted
                seen.append(held[0])
            time.sleep(seconds)
            with lock:
                held[0] -= granted

    threads = [threading.Thread(target=hold, args=item) for item in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return seen


def test_never_more_than_the_budget_and_everybody_gets_on():
    seen = run_together(CoreBudget(3), [1, 2, 3, 1, 64, 1, 2, 1])
    assert len(seen) == 8
    assert max(seen) <= 3


def test_narrow_stages_run_side_by_side():
    assert max(run_together(CoreBudget(2), [1, 1], seconds=0.5)) == 2


def test_lowest_order_that_fits_goes_first():
    budget, got = CoreBudget(2), []

    def take(order: int, cores: int) -> None:
        with budget.reserve(cores, order):
            got.append(order)

    with budget.reserve(2):
        threads = [threading.Thread(target=take, args=item) for item in ((7, 1), (3, 2), (5, 1))]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(10)
    assert got[0] == 3
    assert sorted(got) == [3, 5, 7]


def test_cores_return_after_an_error():
    budget = CoreBudget(1)
    with pytest.raises(RuntimeError, match="stage"), budget.reserve(1):
        raise RuntimeError("stage")
    with budget.reserve(1) as cores:
        assert cores == 1


def test_closed_budget_refuses_those_who_wait():
    budget, errors = CoreBudget(1), []

    def wait() -> None:
        try:
            with budget.reserve(1):
                pass
        except CoresClosedError as error:
            errors.append(str(error))

    with budget.reserve(1):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        budget.close()
        thread.join(10)
    assert errors == ["stopped before it started"]
