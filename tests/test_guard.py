"""A server of ours keeps to its limits and answers nobody that it should not, over real connections."""

import asyncio
import http.client
import json
import socket
from contextlib import closing

import no_network
import pytest
from serving import HOST, serving
from starlette.responses import PlainTextResponse, StreamingResponse

from budgetnet import guard
from budgetnet.errors import ConfigError
from budgetnet.guard import Guard, Limits


async def count(scope, receive, send):
    """Answer with the number of bytes that came, or with more than a connection holds."""
    if scope["path"] == "/flood":
        return await StreamingResponse(iter([b"x" * 2**20] * 64))(scope, receive, send)
    if scope["path"] == "/never":
        await asyncio.Event().wait()
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await PlainTextResponse(str(size))(scope, receive, send)


@pytest.fixture(scope="module")
def port():
    limits = Limits(body_bytes=100_000)
    with serving(Guard(count, limits, ["box.example"]), limits) as port:
        yield port


@pytest.fixture(scope="module")
def hasty():
    limits = Limits(body_bytes=100_000, header_seconds=0.3, body_seconds=0.3, answer_seconds=0.6, idle_seconds=0.3)
    with serving(Guard(count, limits), limits) as port:
        yield port


def ask(port, method="GET", path="/", body=None, **headers):
    """Status, headers and body of an answer."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=20)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def say(port, text):
    """All that is answered to these bytes until the server hangs up."""
    with socket.create_connection((HOST, port), timeout=20) as connection:
        connection.sendall(text)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "192.168.0.7", "box.example"]
)
def test_addresses_localhost_and_the_names_given_are_served(port, host):
    assert ask(port, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[", "a@b"]
)
def test_other_hosts_are_refused_as_a_page_of_a_strangers_would_have_them(port, host):
    status, _, body = ask(port, Host=host)
    assert status == 421
    assert "expected an address, box.example or localhost" in json.loads(body)["error"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", ""])
def test_what_a_page_of_another_server_posts_is_refused(port, origin):
    status, _, body = ask(port, "POST", body=b"x", Host=f"127.0.0.1:{port}", Origin=origin)
    assert status == 403
    assert "expected a page of this server's own" in json.loads(body)["error"]


def test_what_an_own_page_or_a_program_posts_is_taken(port):
    assert ask(port, "POST", body=b"abc", Host=f"127.0.0.1:{port}", Origin=f"http://127.0.0.1:{port}")[2] == "3"
    assert ask(port, "POST", body=b"abc")[2] == "3"


def test_a_body_of_exactly_the_limit_is_taken_and_of_one_byte_more_is_not(port):
    assert ask(port, "POST", body=b"x" * 100_000)[::2] == (200, "100000")
    status, headers, body = ask(port, "POST", body=b"x" * 100_001)
    assert (status, json.loads(body)) == (413, {"error": "the body is larger than 100,000 bytes"})
    assert headers["connection"] == "close"


def test_a_body_that_says_nothing_of_its_length_is_counted_while_it_comes(port):
    assert ask(port, "POST", body=iter([b"x" * 50_000] * 2))[::2] == (200, "100000")
    assert ask(port, "POST", body=iter([b"x" * 50_000] * 3))[0] == 413


def test_a_body_without_end_is_not_heard_to_the_end(port):
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((HOST, port), timeout=20) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
            for _ in range(100_000):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def test_a_declared_length_far_beyond_the_limit_is_refused_before_the_body(port):
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n"
    for expect in (b"", b"Expect: 100-continue\r\n"):
        assert say(port, head + expect + b"\r\n").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000,
        b"\x00" * 100,
    ],
)
def test_what_is_no_request_is_answered_in_one_line_and_hung_up_on(port, text):
    head, _, body = say(port, text).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"].startswith("found no request of HTTP/1.1")
    assert ask(port)[0] == 200


@pytest.mark.parametrize("text", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_header_that_does_not_come_in_time_ends_the_connection(hasty, text):
    assert say(hasty, text) == b""


def test_a_body_that_does_not_come_in_time_is_told_so(hasty):
    answer = say(hasty, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body was not there within 0.3 seconds" in answer


def test_a_connection_that_asks_nothing_more_is_ended(hasty):
    answer = say(hasty, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_takes_too_long_is_given_up_with_a_time_to_come_back(hasty):
    status, headers, body = ask(hasty, path="/never")
    assert (status, headers["retry-after"]) == (503, "1")
    assert "took too long" in json.loads(body)["error"]


def test_a_client_that_does_not_take_its_answer_is_hung_up_on(hasty):
    with socket.create_connection((HOST, hasty), timeout=20) as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ask(hasty, path="/never")  # which is answered after the flood's time
        ask(hasty, path="/never")
        ask(hasty, path="/never")
        received = 0
        try:
            while part := connection.recv(2**20):
                received += len(part)
        except ConnectionResetError:
            pass
    assert received < 64 * 2**20


def test_one_connection_too_many_is_told_to_come_back_and_many_too_many_are_hung_up_on():
    limits = Limits(connections=2)
    with serving(Guard(count, limits), limits) as port:
        kept = [http.client.HTTPConnection(HOST, port, timeout=20) for _ in range(5)]
        for connection in kept[:4]:
            connection.connect()
        # Those that were let in first are served, in whichever order they ask.
        answers = []
        for connection in kept[:2]:
            connection.request("GET", "/")
            answers.append(connection.getresponse())
            answers[-1].read()
        assert [answer.status for answer in answers] == [200, 200]
        kept[4].connect()
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):  # noqa: PT012
            kept[4].request("GET", "/")
            kept[4].getresponse()
        for connection in kept[2:4]:
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "too many connections" in json.loads(answer.read())["error"]
        for connection in kept:
            connection.close()
        assert ask(port)[0] == 200


def test_every_answer_forbids_foreign_scripts_framing_and_sniffing(port):
    for _, headers, _ in (ask(port), ask(port, Host="evil.example"), ask(port, "POST", body=b"x" * 100_001)):
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do():
    listener, url = guard.listen(HOST, 0)
    port = int(url.rpartition(":")[2])
    with listener, pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1, port {port}: .*in use; --port 0"):
        guard.listen(HOST, port)


@pytest.mark.parametrize(
    ("host", "port"), [("no host at all", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1), ("8.8.8.8", 0)]
)
def test_a_host_or_port_that_is_none_of_this_machine_is_refused(host, port):
    with pytest.raises(ConfigError, match=r"expected|cannot listen on 8.8.8.8"):
        guard.listen(host, port)
    no_network.refused.clear()  # to look a name up is meant here


def test_whether_only_this_machine_can_reach_a_port_is_known():
    for host, alone in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        listener, url = guard.listen(host, 0)
        with listener:
            assert guard.is_loopback(listener) is alone
            assert url.startswith(f"http://{host}:")
