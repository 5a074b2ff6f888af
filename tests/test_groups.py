"""Tests that share what is slow to make run in one worker."""

import pytest

GROUP = "one of this group"


@pytest.mark.xdist_group(GROUP)
def test_the_workers_know_a_tests_group(request):
    if not hasattr(request.config, "workerinput"):
        pytest.skip("no workers: pytest runs without -n")
    assert request.node.nodeid.endswith(f"@{GROUP}")
