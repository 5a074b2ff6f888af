"""A file server on loopback that misbehaves as planned, request by request."""

import hashlib
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread


class Server:
    """What to serve, and how: `plans` has a list of faults per path, one for each future request.

    Faults: ("status", code, headers), ("drop", bytes), ("truncate", bytes), "wrong", "no_length",
    "ignore_range", "other_part", "changed", "untagged", "hang". Without a fault the file is served
    correctly.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.plans: dict[str, list] = defaultdict(list)
        self.headers: dict[str, dict[str, str]] = defaultdict(dict)
        self.requests: list[tuple[str, str, str | None]] = []
        self.lock = Lock()
        self.url = ""

    def next_fault(self, handler: BaseHTTPRequestHandler) -> object:
        with self.lock:
            self.requests.append((handler.command, handler.path, handler.headers.get("Range")))
            plan = self.plans[handler.path]
            return plan.pop(0) if plan and handler.command == "GET" else None

    def gets(self, path: str) -> list[str | None]:
        """Return the ranges that were requested of a path."""
        return [asked for command, own, asked in self.requests if (command, own) == ("GET", path)]


class Handler(BaseHTTPRequestHandler):
    told: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.told.next_fault(self)
        if self.path not in self.told.files:
            self.answer(404, {"Content-Length": "0"})
        else:
            self.answer(200, {"Content-Length": str(len(self.told.files[self.path]))})

    def do_GET(self) -> None:
        fault, *facts = self.as_tuple(self.told.next_fault(self))
        if fault == "hang":
            self.rfile.read(1)  # until the other side gives up
            return
        if fault == "status":
            self.answer(facts[0], {"Content-Length": "0", **facts[1]})
            return
        content = self.told.files.get(self.path)
        if content is None:
            self.answer(404, {"Content-Length": "0"})
            return
        if fault == "changed":
            content = self.told.files[self.path] = content[::-1]
        tag = f'"{hashlib.sha1(content).hexdigest()[:12]}"'
        headers = {} if fault == "untagged" else {"ETag": tag}
        headers |= self.told.headers[self.path]
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        start, status = 0, 200
        if asked and condition in (None, tag) and fault != "ignore_range":
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(content):
                self.answer(
                    416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}
                )
                return
            shown = start + 1 if fault == "other_part" else start
            headers["Content-Range"] = f"bytes {shown}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "wrong":
            body = bytes(255 - byte for byte in body)
        if fault == "truncate":
            body = body[: facts[0]]
        if fault != "no_length":
            headers["Content-Length"] = str(len(body))
        self.answer(status, headers)
        self.wfile.write(body[: facts[0]] if fault == "drop" else body)
        if fault == "drop":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def as_tuple(fault: object) -> tuple:
        return fault if isinstance(fault, tuple) else (fault,)

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        return self.told.headers[self.path].get("Server", "test")


@contextmanager
def serve() -> Iterator[Server]:
    """Serve on a free loopback port until the block ends."""
    told = Server()
    handler = type("Told", (Handler,), {"told": told})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        told.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
