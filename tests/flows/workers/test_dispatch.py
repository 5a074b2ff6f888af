"""How requests become Prefect runs, and what their ends mean; the server is a stand-in."""

import asyncio
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace

import httpx
import pytest
from prefect import states
from prefect.exceptions import ObjectNotFound

from flows.environment import HEARTBEAT_SECONDS
from flows.stage import StageFailedError
from flows.workers import dispatch
from flows.workers.dispatch import SECONDS_BETWEEN_LOOKS, LostError, PrefectDispatcher
from flows.workers.pools import SECONDS_UNTIL_LOST, lost_rule
from flows.workers.request import Request
from tests.support.toy import wait_until

REQUEST = Request("cut@1", "abc", "0" * 40, "", {}, {})


@dataclass
class Server:
    """Runs by idempotency key; each goes through the given states, one a look."""

    ends: list[list[states.State]]
    runs: dict[str, SimpleNamespace] = field(default_factory=dict)
    trouble: list[Exception] = field(default_factory=list)
    set_to: list[str] = field(default_factory=list)
    connections: int = 0

    def run_deployment(self, name, parameters, idempotency_key, **more):
        self._answer()
        if idempotency_key not in self.runs:
            coming = list(self.ends.pop(0))
            self.runs[idempotency_key] = SimpleNamespace(
                id=uuid.uuid4(),
                name=name,
                state=coming.pop(0),
                coming=coming,
                passed=[],
                tags=[],
                labels={"prefect.flow.id": "f", "made.device": "cuda", "made.seconds": 11.5},
                total_run_time=timedelta(seconds=12.345),
            )
        return self.runs[idempotency_key]

    def read_flow_run(self, wanted):
        self._answer()
        run = next(run for run in self.runs.values() if run.id == wanted)
        if run.coming:
            run.state = run.coming.pop(0)
            run.passed.append(run.state)
        return run

    def read_flow_run_states(self, wanted):
        return next(run for run in self.runs.values() if run.id == wanted).passed

    def set_flow_run_state(self, run, state):
        self.set_to.append(state.name)

    def update_flow_run(self, wanted, tags):
        next(run for run in self.runs.values() if run.id == wanted).tags = tags

    @asynccontextmanager
    async def events(self, wanted):
        """Say of each run now and then that it changed."""

        async def events():
            while not all(run.state.is_final() for run in self.runs.values()):
                for run in self.runs.values():
                    yield SimpleNamespace(resource=SimpleNamespace(id=f"prefect.flow-run.{run.id}"))
                await asyncio.sleep(0.01)
            await asyncio.sleep(3600)

        self.connections += 1
        yield events()

    def _answer(self):
        if self.trouble:
            raise self.trouble.pop()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def make(monkeypatch):
    """Return a function that makes REQUEST on a server with these ends."""
    monkeypatch.setattr(dispatch, "SECONDS_BETWEEN_ATTEMPTS", 0.01)

    def make(*ends, trouble=(), dispatcher=None):
        server = Server([list(end) for end in ends], trouble=list(trouble))
        monkeypatch.setattr(dispatch, "get_events_subscriber", server.events)
        monkeypatch.setattr(dispatch, "run_deployment", server.run_deployment)
        monkeypatch.setattr(dispatch, "get_client", lambda sync_client: server)
        told: list[str] = []
        looks: list[int] = []
        try:
            made = (dispatcher or PrefectDispatcher)().make(
                REQUEST, "gpu", told.append, lambda: looks.append(len(told))
            )
        except Exception as error:
            made = error
        else:
            assert looks  # at how far the stage was
        return made, server, told

    return make


def test_a_state_that_is_over_before_the_next_look_is_told(make, monkeypatch):
    monkeypatch.setattr(Server, "read_flow_run", two_states_at_once(Server.read_flow_run))
    lost = states.AwaitingRetry(message="its machine counts as lost")
    _, _, told = make([states.Scheduled(), states.Running(), lost, states.Running(), DONE])
    assert [line.split(":")[0] for line in told[1:]] == [
        "Running",
        "AwaitingRetry",
        "Running",
        "Executed",
    ]


def two_states_at_once(read):
    def read_twice(self, wanted):
        read(self, wanted)
        return read(self, wanted)

    return read_twice


DONE = states.Completed(name="Executed", message="on one in 12.0 s")


def test_a_run_is_waited_for_and_its_end_told(make):
    made, server, told = make([states.Scheduled(), states.Running(), DONE])
    assert (made.stage, made.group, made.outcome) == ("cut@1", "cut", "executed")
    assert (made.seconds, made.message) == (12.35, "on one in 12.0 s")
    assert made.made == {"device": "cuda", "seconds": 11.5}
    assert server.connections == 1
    assert list(server.runs) == ["gpu-abc-0"]
    assert told == ["waits for a worker of pool gpu", "Running", "Executed: on one in 12.0 s"]


def test_a_run_that_is_under_way_is_joined_and_an_ended_one_is_not(make):
    crashed = states.Crashed(message="of yesterday")
    made, server, _ = make([crashed], [states.Completed()], [states.Running(), DONE])
    assert made.outcome == "executed"
    assert list(server.runs) == ["gpu-abc-0", "gpu-abc-1", "gpu-abc-2"]


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        (states.Failed(name="StageFailed", message="on one: boom"), StageFailedError, "boom"),
        (states.Failed(message="Flow not found"), LostError, "Failed: Flow not found"),
        (states.Crashed(message="exit code -9"), LostError, "Crashed: exit code -9"),
        (states.Cancelled(), StageFailedError, "cut@1 was cancelled on Prefect's server"),
    ],
)
def test_the_stages_own_failure_and_a_persons_no_are_final(make, state, kind, told):
    error, _, _ = make([states.Pending(), state])
    assert type(error) is kind
    assert told in str(error)


def test_a_server_that_restarts_is_waited_for(make):
    trouble = [httpx.ReadTimeout("slow"), httpx.ConnectError("refused")]
    made, _, told = make([states.Pending(), DONE], trouble=trouble)
    assert made.outcome == "executed"
    assert sum("does not answer" in line for line in told) == 2


def test_a_server_that_stays_away_or_refuses_is_told(make, monkeypatch):
    monkeypatch.setattr(dispatch, "SECONDS_WITHOUT_SERVER", -1)
    error, _, _ = make(trouble=[httpx.ConnectError("refused")])
    assert isinstance(error, LostError)
    refused = httpx.Response(422, request=httpx.Request("POST", "http://x"))
    error, _, _ = make(trouble=[httpx.HTTPStatusError("too large", request=None, response=refused)])
    assert str(error) == "Prefect's server refuses: too large"


def test_a_deployment_or_a_run_that_is_gone_is_named(make, monkeypatch):
    gone = ObjectNotFound(Exception("404"))  # str() of it is "None"
    error, _, _ = make(trouble=[gone])
    told = "Prefect's server has no deployment ovis-dag-stage/gpu; `make pools` makes it"
    assert (type(error), str(error)) == (StageFailedError, told)

    def read(self, wanted):
        raise gone

    monkeypatch.setattr(Server, "read_flow_run", read)
    error, server, _ = make([states.Running()])
    (run,) = server.runs.values()
    told = (
        f"Prefect's server no longer has run {run.id} of cut@1; was it deleted? Run the same again"
    )
    assert (type(error), str(error)) == (StageFailedError, told)


def test_stopping_cancels_what_is_waited_for(make):
    def stopped():
        dispatcher = PrefectDispatcher()
        dispatcher.stop()
        return dispatcher

    error, server, _ = make([states.Running()], dispatcher=stopped)
    assert "cut@1 was stopped" in str(error)
    assert server.set_to == ["Cancelling"]
    assert next(iter(server.runs.values())).tags == [dispatch.STOPPED]


def test_what_another_coordinator_cancelled_as_it_was_stopped_is_asked_for_again(make, monkeypatch):
    def read(self, wanted, read=Server.read_flow_run):
        run = read(self, wanted)
        if run.state.is_cancelled():
            run.tags = [dispatch.STOPPED]
        return run

    monkeypatch.setattr(Server, "read_flow_run", read)
    made, server, _ = make([states.Running(), states.Cancelled()], [states.Running(), DONE])
    assert made.outcome == "executed"
    assert len(server.runs) == 2


def test_unfit_workers_leave_the_stage_to_the_next_however_many_they_are(make):
    unfit = states.Failed(name="Unfit", message="on one: disk")
    made, server, told = make(*[[states.Running(), unfit]] * 5, [states.Running(), DONE])
    assert made.outcome == "executed"
    assert len(server.runs) == 6
    assert told.count("Unfit: on one: disk") == 5


def test_a_run_of_which_nothing_is_heard_is_looked_at_now_and_then(make, monkeypatch):
    @asynccontextmanager
    async def away(self, wanted):
        raise ConnectionRefusedError
        yield

    monkeypatch.setattr(Server, "events", away)
    monkeypatch.setattr(dispatch, "SECONDS_BETWEEN_LOOKS", 0.01)
    before = set(threading.enumerate())
    made, server, _ = make([states.Scheduled(), states.Running(), DONE])
    assert (made.outcome, server.connections) == ("executed", 0)
    for listener in set(threading.enumerate()) - before:  # as nobody waits any more
        listener.join(60)
        assert not listener.is_alive()


def test_a_run_is_looked_at_when_an_event_of_it_comes_and_not_before(make, monkeypatch):
    connected, ended, looks = threading.Event(), threading.Event(), []

    def read(self, wanted, read=Server.read_flow_run):
        looks.append(wanted)
        return read(self, wanted) if ended.is_set() else next(iter(self.runs.values()))

    @asynccontextmanager
    async def events(self, wanted):
        async def events():
            await asyncio.to_thread(ended.wait)
            (run,) = self.runs.values()
            yield SimpleNamespace(resource=SimpleNamespace(id=f"prefect.flow-run.{run.id}"))
            await asyncio.sleep(3600)

        connected.set()
        yield events()

    monkeypatch.setattr(Server, "read_flow_run", read)
    monkeypatch.setattr(Server, "events", events)
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(make, [states.Running(), DONE])
        try:
            wait_until(lambda: connected.is_set() and looks)
            before = len(looks)
            time.sleep(1)
            assert len(looks) - before <= 1  # at what changed before it listened
        finally:
            ended.set()
        assert made.result(SECONDS_BETWEEN_LOOKS / 2)[0].outcome == "executed"


def test_a_lost_machine_is_noticed_within_two_minutes():
    assert HEARTBEAT_SECONDS + SECONDS_UNTIL_LOST <= 120
    rule = lost_rule()
    assert rule.trigger.within == timedelta(seconds=SECONDS_UNTIL_LOST)
    # A run that ended, under whichever name, must not count as lost.
    assert rule.trigger.expect == {"prefect.flow-run.*"}
    assert rule.actions[0].name == "AwaitingRetry"
