from fleet import make_fleet, run_all


def test_same(toy, done):
    agents = make_fleet(toy)
    outcomes = run_all(toy, agents)
    print(outcomes)
    print("\n".join(agents.logged))
    assert toy.lock() == done.lock()
    assert toy.ran() == []
