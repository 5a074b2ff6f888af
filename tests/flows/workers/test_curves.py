"""The curve of a stage that still runs on a worker is seen by its coordinator."""

from concurrent.futures import ThreadPoolExecutor

from flows.dvc.curves import fetch_curves
from flows.dvc.project import load_graph
from flows.workers.stage_flow import reproduce
from tests.support.fleet import make_fleet, request_for, run_on, store
from tests.support.toy import wait_until

CURVE = r'write("data/merge/curve.csv", "loss,step\n3.5,1\n2.5,2\n,3\n")'
GROWING = rf"""
write("data/merge/curve.csv", "loss,step\n3.5,1\n")
while (folder / "hold.curve").exists():
    time.sleep(0.05)
{CURVE}
"""


def test_a_curve_grows_here_while_a_worker_trains(toy, monkeypatch):
    monkeypatch.setenv("TOY_FOLDER", str(toy.root))
    monkeypatch.setenv("OVIS_PATIENCE", "0")
    monkeypatch.setenv("OVIS_RESUME_PERIOD", "0.2")
    toy.replace(CURVE, GROWING, "stages/merge/__main__.py")
    toy.git("commit", "-qam", "growing")
    workers = make_fleet(toy)
    run_on(workers, toy, "cut")
    stage, curve = load_graph(toy.root)["merge"], toy.root / "data/merge/curve.csv"
    request = request_for(toy, "merge")
    hold = toy.mark("hold.curve")

    def grows() -> bool:
        fetch_curves(toy.root, stage, request.key)
        return curve.is_file()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(reproduce, workers.clones[0], request, "run-1", print)
        try:
            wait_until(grows)
            assert curve.read_text() == "loss,step\n3.5,1\n"
        finally:
            hold.unlink()
        assert running.result().outcome == "executed"
    assert not list((store(toy) / "curves").rglob("*.csv"))
    fetch_curves(toy.root, stage, request.key)  # nothing more
    assert run_on(workers, toy, "merge") == {"merge": "restored"}
    assert curve.read_text() == "loss,step\n3.5,1\n2.5,2\n,3\n"
