"""Which Prefect server a flow uses, with which credentials, and two that start at once."""

import base64
import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flows.server import LocalServer
from tests.support.loopback import share_folder
from tests.support.service import HOST, free_port
from tests.support.toy import PATIENCE, REPOSITORY, wait_until

KEY = "pnu_secret"
OTHERS_KEY = "pnu_other"  # of a user who may not use this workspace
# Says where it went, and how long the answer took, without the time to load Prefect.
CONNECT = """
import sys, time
from pathlib import Path
from flows.environment import apply_settings
from flows.server import LocalServer, require_server
apply_settings(Path.cwd())
import prefect.client.orchestration
began = time.monotonic()
try:
    require_server()
except (RuntimeError, ValueError) as error:
    print(error)
    sys.exit(time.monotonic() - began < 100)
"""


class CloudHandler(BaseHTTPRequestHandler):
    """Answers as Prefect Cloud does: nothing without the key, its health neither."""

    def do_GET(self) -> None:
        self._answer(200 if self.path.endswith("/health") else 404, True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200 if self.path.endswith("/work_pools/filter") else 404, [])

    def _answer(self, status: int, content: object) -> None:
        given = self.headers.get("Authorization")
        refusal = 403 if given == f"Bearer {OTHERS_KEY}" else 401
        known = given in self.server.accepted
        body = json.dumps(content).encode()
        self.send_response(status if known else refusal)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Make a certificate for 127.0.0.1, signed by itself, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a team's own")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path / "authority.pem"
    path.write_bytes(certificate.public_bytes(pem))
    form = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.with_suffix(".key").write_bytes(key.private_bytes(*form))
    return path


@pytest.fixture
def cloud(authority: Path) -> Iterator[str]:
    """Give the API's URL of a server with TLS that wants KEY, or user and password."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), CloudHandler)
    basic = base64.b64encode(b"team:secret").decode()
    server.accepted = (f"Bearer {KEY}", f"Basic {basic}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with answering(server):
        yield f"https://127.0.0.1:{server.server_port}/api/accounts/a/workspaces/w"


@contextmanager
def answering(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let the server answer until the block ends."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def connect(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return a function that runs CONNECT for a user with a home of its own."""

    def connect(**more: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT],
            cwd=tmp_path,
            env={**clean_environment(tmp_path), **more},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout + done.stderr

    return connect


def clean_environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize(
    "credentials",
    [{"PREFECT_API_KEY": KEY}, {"PREFECT_API_AUTH_STRING": "team:secret"}],
    ids=["key", "password"],
)
def test_a_server_of_ones_own_authority_takes_a_key_or_a_password(
    connect, cloud, authority, credentials
):
    trust = {"PREFECT_API_SSL_CERT_FILE": str(authority)}
    assert connect(PREFECT_API_URL=cloud, **trust, **credentials) == (0, "")


@pytest.mark.parametrize(("key", "status"), [("another", 401), (OTHERS_KEY, 403)])
def test_a_wrong_key_is_told_at_once_in_one_line(connect, cloud, authority, key, status):
    trust = {"PREFECT_API_SSL_CERT_FILE": str(authority)}
    code, output = connect(PREFECT_API_URL=cloud, PREFECT_API_KEY=key, **trust)
    assert (code, output.count("\n")) == (1, 1)  # 1: soon
    assert f"{cloud} refuses this user ({status}): set PREFECT_API_AUTH_STRING=" in output


@pytest.mark.parametrize("where", [[], ["--pools"]], ids=["here", "pools"])
def test_a_wrong_password_is_told_before_any_stage_starts(toy, cloud, authority, where):
    share_folder(toy.root)
    wrong = {"PREFECT_API_URL": cloud, "PREFECT_API_AUTH_STRING": "team:guessed"}
    trust = {"PREFECT_API_SSL_CERT_FILE": str(authority)}
    code, output = toy.call("-m", "flows", "run", *where, **wrong, **trust)
    assert code == 1, output
    told = f"ovis-dag: Prefect's server at {cloud} refuses this user (401): set PREFECT_API_AUTH_"
    assert [line.startswith(told) for line in output.splitlines()] == [False] * len(where) + [True]
    assert toy.ran() == []


def test_an_unknown_authority_is_told_at_once_in_one_line(connect, cloud):
    code, output = connect(PREFECT_API_URL=cloud, PREFECT_API_KEY=KEY)
    assert (code, output.count("\n")) == (1, 1)
    assert "CERTIFICATE_VERIFY_FAILED" in output
    assert "PREFECT_API_SSL_CERT_FILE=<file>" in output


def test_the_users_profile_names_server_and_key(connect, cloud, authority, tmp_path):
    profiles = tmp_path / ".prefect/profiles.toml"
    profiles.parent.mkdir()
    profiles.write_text(
        f"""
        active = "team"
        [profiles.local]
        [profiles.team]
        PREFECT_API_URL = "{cloud}"
        PREFECT_API_KEY = "{KEY}"
        PREFECT_API_SSL_CERT_FILE = "{authority}"
        """
    )
    assert connect() == (0, "")
    assert "PREFECT_API_URL is not set" in connect(PREFECT_PROFILE="local")[1]


def test_the_servers_password_is_wanted_though_its_health_is_anybodys(connect, tmp_path):
    """A server of one's own tells its health without a password."""
    server = (
        "import sys, time; from flows.server import LocalServer; from pathlib import Path\n"
        "server = LocalServer(Path.cwd()).start(); server.wait_until_ready()\n"
        "print(server.url, flush=True); sys.stdin.read()"
    )
    secret = {"PREFECT_SERVER_API_AUTH_STRING": "team:secret"}
    know = {"PREFECT_API_AUTH_STRING": "team:secret"}
    environment = {**clean_environment(tmp_path), **secret, **know}
    with subprocess.Popen(
        [sys.executable, "-c", server],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        url = process.stdout.readline().strip()
        assert connect(PREFECT_API_URL=url, **know) == (0, "")
        code, output = connect(PREFECT_API_URL=url)
        process.stdin.close()
    assert (code, output.count("\n")) == (1, 1)
    assert "refuses this user (401)" in output


@pytest.fixture
def alone(monkeypatch) -> None:
    """Let this process have no server yet."""
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_two_projects_whose_servers_start_at_once_each_get_their_own(tmp_path, monkeypatch):
    """The system gives both the same port, if it is free. Names of folders stay what they are."""
    port = free_port()

    class Socket(socket.socket):
        def bind(self, address: tuple[str, int]) -> None:
            try:
                super().bind((address[0], port))
            except OSError:
                super().bind(address)

    one, two = (LocalServer(tmp_path / name) for name in ("a%20b", "why?x=1"))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Socket)
            one.start()
            two.start()
        assert one.url == f"http://{HOST}:{port}/api" != two.url
        for server in (one, two):
            server.wait_until_ready()
        assert {path.name for path in tmp_path.iterdir()} == {"a%20b", "why?x=1"}
        one.stop()
        two.wait_until_ready()
        with pytest.raises(RuntimeError, match="Prefect's server ended with code"):
            one.wait_until_ready()
    finally:
        one.stop()
        two.stop()


@pytest.mark.usefixtures("alone")
def test_who_answers_at_the_address_of_a_server_that_has_ended_is_not_taken_for_it(
    tmp_path, monkeypatch
):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    server, others = LocalServer(tmp_path).start(), []

    def has_ended() -> bool:
        with suppress(OSError):
            others.append(ThreadingHTTPServer((HOST, urlsplit(server.url).port), CloudHandler))
        return bool(others)

    wait_until(has_ended)  # and its port is free
    others[0].accepted = (None,)  # everybody
    with answering(others[0]), pytest.raises(RuntimeError, match="server ended with code 3; see"):
        server.wait_until_ready()
