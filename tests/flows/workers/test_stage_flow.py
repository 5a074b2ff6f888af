"""What a worker's run of the stage flow tells the server; that and the stage are stand-ins."""

from types import SimpleNamespace

import pytest
from prefect import states
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import disable_run_logger

from flows.environment import WORKER_CLONE, WORKER_NAME
from flows.graph import Outcome
from flows.workers import stage_flow
from flows.workers.request import Request

REQUEST = Request("cut@1", "abc", "0" * 40, "", {}, {})
RUN = "PREFECT__RUNTIME__FLOW_RUN__"


class Server:
    def __init__(self, *passed: states.State) -> None:
        self.passed = [*passed]
        self.labels: dict = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read_flow_run(self, run):
        return SimpleNamespace(state=self.passed[-1])

    def read_flow_run_states(self, run):
        return self.passed

    def set_flow_run_state(self, run, state, force):
        self.passed.append(state)

    def update_flow_run_labels(self, run, labels):
        self.labels |= labels


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs REQUEST, started `count` times, as `reproduce` then does it."""
    monkeypatch.setenv(WORKER_NAME, "one")
    monkeypatch.setenv(WORKER_CLONE, "clone")
    monkeypatch.setenv(f"{RUN}ID", "the run")

    def run(server: Server, reproduce, count: int = 1) -> states.State:
        monkeypatch.setenv(f"{RUN}RUN_COUNT", str(count))
        monkeypatch.setattr(stage_flow, "get_client", lambda sync_client: server)
        monkeypatch.setattr(stage_flow, "reproduce", reproduce)
        with disable_run_logger():
            return stage_flow.stage.fn({name: getattr(REQUEST, name) for name in vars(REQUEST)})

    return run


def test_what_a_result_was_made_with_goes_to_the_coordinator(run):
    made = {"device": "cuda", "seconds": 11.5, "worker": "host"}
    server = Server(states.Running())
    state = run(server, lambda *more: Outcome("cut@1", "cut", "executed", 12.0, made=made))
    assert (state.name, state.message) == ("Executed", "on one in 12.0 s")
    assert server.labels == {"made.device": "cuda", "made.seconds": 11.5, "made.worker": "one"}


def test_starts_that_were_preempted_are_not_counted(run):
    starts = []

    def reproduce(clone, request, name, log, run, start):
        starts.append((name, run, start))
        return Outcome("cut@1", "cut", "executed")

    server = Server(states.Running(), states.Scheduled(name="Preempted"), states.Running())
    run(server, reproduce, 2)
    server.passed += [states.AwaitingRetry(), states.Running()]
    run(server, reproduce, 3)
    assert starts == [("the run-2", "the run", 1), ("the run-3", "the run", 2)]


def terminate(*more):
    raise TerminationSignal(15)


def test_a_machine_that_is_stopped_gives_its_run_back_and_a_cancelled_one_does_not(run):
    server = Server(states.Running())
    with pytest.raises(Abort):
        run(server, terminate)
    last = server.passed[-1]
    assert (last.name, last.type.value) == ("Preempted", "SCHEDULED")
    assert last.message == "one was stopped; it goes on elsewhere"
    server = Server(states.Cancelling())
    with pytest.raises(TerminationSignal):
        run(server, terminate)
    assert len(server.passed) == 1


@pytest.mark.usefixtures("run")
def test_a_request_of_another_version_has_its_worker_leave_and_say_why():
    with disable_run_logger():
        state = stage_flow.stage.fn({"stage": "cut@1", "colour": "red"})
    assert (state.name, state.is_failed()) == ("Unfit", True)
    assert "on one: " in state.message and "colour" in state.message
    assert state.message.endswith("; `git pull` in its clone and start it again")
