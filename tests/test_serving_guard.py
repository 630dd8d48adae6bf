"""Who may ask the server, and how much: key, Host, Origin, sizes, times; mistaken flags."""

import base64
import json
import socket
import sys
import time

import httpx
import pytest
from served import all_routes, connected, inside, is_error, raw, request_bytes, tiny_folder

import serve_model
from serving import connection, guard
from training import cli

KEY = "correct horse"
BEARER = f"Authorization: Bearer {KEY}\r\n"
ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer_dir):
    return tiny_folder(tmp_path_factory.mktemp("served"), tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def locked(folder):
    """A server with a key."""
    with inside(folder, api_key=KEY, names={"gpu-box", "chat.example."}) as server:
        yield server


@pytest.fixture(scope="module")
def url(folder):
    """The address of a server without a key."""
    with inside(folder) as server:
        yield server.url


def host(name: bytes) -> bytes:
    return b"GET /health HTTP/1.1\r\nHost: " + name + b"\r\n\r\n"


def test_every_route_but_health_wants_the_key(locked):
    """Each method of each route of the application, and paths that are none: 401 without the key
    and with wrong ones, anything else with it. Only /health is open."""
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    wrong = [
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY}x"}, {"Authorization": "Bearer"}, {"Authorization": ""},
        {"Authorization": f"Basic {base64.b64encode(b'me:wrong').decode()}"},
        {"Authorization": "Basic !"}, {"Authorization": f"Digest {KEY}"}, {"api-key": KEY},
        {"Authorization": f"Basic {base64.b64encode(KEY.encode()).decode()}"},  # as the user
        {"Authorization": "Bearer " + "x" * 10_000},
    ]  # fmt: skip
    right = [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Basic {basic}"},
             {"Authorization": f"bearer {KEY}"}]  # fmt: skip
    routes = all_routes(locked.app)
    assert len({path for _, path in routes}) >= 11
    for path in ("/health/", "//health", "/HEALTH", "/health/x", "/health%2f..%2fmetrics", "/none"):
        routes += [("GET", path), ("POST", path)]
    with httpx.Client(base_url=locked.url) as client:
        for method, path in routes:
            if path == "/health":
                continue
            for headers in wrong if path in ("/", "/v1/models") else wrong[:2]:
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (method, path, headers)
                assert method == "HEAD" or is_error(answer.text)
                assert method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            for headers in right:
                assert client.request(method, path, headers=headers).status_code != 401
        assert client.get("/health").status_code == 200
        assert client.get("/", headers={"Accept": "text/html"}).headers["www-authenticate"] == (
            'Basic realm="MiniMind"'
        )


def test_a_key_of_other_letters_is_a_key(folder):
    """A key may be of any characters: it comes as UTF-8, from a browser's Basic, too."""
    with inside(folder, api_key="Schlüssel 键") as server:
        basic = base64.b64encode(":Schlüssel 键".encode())
        for header, status in (
            ("Bearer Schlüssel 键".encode(), 200), (b"Basic " + basic, 200),
            ("Bearer Schlüssel".encode(), 401), (b"Bearer Schl\xfcssel \xe9\x94\xae", 401),
        ):  # fmt: skip
            answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": header})
            assert answer.status_code == status


@pytest.mark.parametrize(
    "name",
    [
        b"localhost", b"LOCALHOST:80", b"localhost.", b"localhost.:8000", b"127.0.0.1",
        b"127.0.0.1:1", b"[::1]", b"[::1]:8000", b"192.168.1.7:8000", b"gpu-box:8000",
        b"GPU-Box.", b"chat.example", b"[fe80::1%25eth0]:8000",
    ],
)  # fmt: skip
def test_names_of_this_machine_are_answered(locked, name):
    """localhost, addresses and --allowed_hosts, in any case, with a port or a dot behind."""
    assert raw(locked.url, host(name))[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        b"evil.example", b"evil.example:8000", b"localhost.evil.example", b"127.0.0.1.evil.example",
        b"127.0.0.1.nip.io", b"", b"evil.example.", b"xn--localhost", b"localhosts",
        b"evil.example@localhost", b"localhost@evil.example", b"localhost:80@evil.example",
        b"evil.example#localhost", b"localhost/evil.example", b"localhost#evil.example",
        b"localhost?evil.example", b"localhost\\evil.example", b"[::1", b"[evil.example]",
        b"localhost, evil.example", b"localhost evil.example", b"0x7f.1", b"2130706433",
        b"local\xc3\xa9host", b"[::1]evil.example", b"localhost:port",
    ],
)  # fmt: skip
def test_other_names_are_refused(locked, url, name):
    """What a stranger's DNS may point here (rebinding), and what is no name: 403, key or not."""
    for at in (locked.url, url):
        status, _, body = raw(at, host(name))
        assert status == 403 and is_error(body)
        assert b"--allowed_hosts" in body


def test_one_host_is_given(url):
    """None, or two of which one is ours: refused, in HTTP/1.0, too."""
    for head in (
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ):
        status, _, body = raw(url, head)
        assert status in (400, 403) and is_error(body), head


ORIGINS = {
    "": None,
    "http://127.0.0.1:{port}": 200,
    "HTTP://127.0.0.1:{port}": 200,
    "http://localhost:{port}": 403,  # another origin than the page's, whatever it points at
    "http://127.0.0.1": 403,
    "http://127.0.0.1:1": 403,
    "http://evil.example": 403,
    "http://evil.example:{port}": 403,
    "http://127.0.0.1:{port}.evil.example": 403,
    "http://evil.example/127.0.0.1:{port}": 403,
    "http://127.0.0.1:{port}@evil.example": 403,
    "null": 403,
    "file://": 403,
    "chrome-extension://abc": 403,
    "http://[": 403,
}


@pytest.mark.parametrize("origin", [origin for origin in ORIGINS if origin])
def test_pages_of_other_sites_may_not_ask(url, origin):
    """Origin has to be the server's own, as it was asked for; `null` is nobody's."""
    headers = {"Origin": origin.format(port=url.rpartition(":")[2])}
    for answer in (
        httpx.post(f"{url}/v1/chat/completions", json=ASK, headers=headers),
        httpx.get(f"{url}/v1/models", headers=headers),
    ):
        assert answer.status_code == ORIGINS[origin]
        assert answer.status_code == 200 or is_error(answer.text)


def test_two_origins_are_refused(url):
    """Two Origins, of which one is ours, are no Origin of ours."""
    own = url.removeprefix("http://")
    for pair in ((url, "http://evil.example"), ("http://evil.example", url)):
        lines = "".join(f"Origin: {one}\r\n" for one in pair)
        head = f"GET /v1/models HTTP/1.1\r\nHost: {own}\r\n{lines}\r\n".encode()
        assert raw(url, head)[0] == 403


@pytest.mark.parametrize(
    ("site", "more", "status"),
    [
        ("same-origin", {}, 200),
        ("none", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ("cross-site", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ("cross-site", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("cross-site", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ("cross-site", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ("same-site", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"}, 403),
        ("cross-site", {}, 403),
    ],
)
def test_only_links_lead_here_from_other_sites(url, site, more, status):
    """A browser may follow a link to a page; no frame, script, image or form of another site."""
    answer = httpx.get(f"{url}/v1/models", headers={"Sec-Fetch-Site": site} | more)
    assert answer.status_code == status
    post = httpx.post(
        f"{url}/v1/chat/completions", json=ASK,
        headers={"Sec-Fetch-Site": site, "Origin": "http://evil.example"} | more,
    )  # fmt: skip
    assert post.status_code == 403


def test_nothing_is_shared_with_other_origins(locked):
    """No answer has an Access-Control header, and a preflight gets none."""
    port = locked.url.rpartition(":")[2]
    for origin in (f"http://127.0.0.1:{port}", "http://evil.example"):
        for method, path in (*all_routes(locked.app), ("OPTIONS", "/v1/chat/completions")):
            answer = httpx.request(
                method, locked.url + path,
                headers={"Origin": origin, "Authorization": f"Bearer {KEY}",
                         "Access-Control-Request-Method": "POST"},
            )  # fmt: skip
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert method != "OPTIONS" or answer.status_code in (403, 405)


def test_pages_load_nothing_from_elsewhere(url):
    """Every page and its files: a policy without other sources, scripts in the page or frames."""
    for path in ("/", "/runs", "/lab", "/pages/style.css", "/pages/common.js"):
        answer = httpx.get(url + path)
        if answer.status_code == 404:
            continue  # not written yet
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", [
    "/pages/..%2f..%2fserve_model.py", "/pages/%2e%2e/%2e%2e/serve_model.py", "/pages/",
    "/pages/../../serve_model.py", "/pages/..\\..\\serve_model.py", "/pages//etc/passwd",
    "/pages/style.css%00", "/pages/.", "/pages/style.css/", "/v1/models/../../../etc/passwd",
])  # fmt: skip
def test_no_path_leads_out_of_the_pages(url, path):
    """Only the files of serving/pages, by their names."""
    status, _, body = raw(url, request_bytes(path))
    assert status == 404 and is_error(body)


def test_a_body_is_bounded(url):
    """More than 4 MiB is 413, told by Content-Length or not; and the connection does not stay."""
    size = guard.LARGEST_BODY + 1
    head = "Host: localhost\r\nContent-Type: application/json\r\n"
    post = f"POST /v1/completions HTTP/1.1\r\n{head}"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    for parts in (
        (f"{post}Content-Length: {size}\r\n\r\n".encode(),),
        (f"{post}Content-Length: {10**18}\r\n\r\n".encode(),),
        (f"{post}Transfer-Encoding: chunked\r\n\r\n".encode(), chunk * 65),
        (f"{post}Content-Length: {size}\r\n\r\n".encode(), b" " * size),
    ):  # fmt: skip
        status, _, body = raw(url, *parts)
        assert status == 413 and is_error(body), parts[0]
    full = json.dumps({"prompt": "a", "max_tokens": 1, "user": "x" * (guard.LARGEST_BODY - 100)})
    answer = httpx.post(
        f"{url}/v1/completions", content=full, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 200


def test_a_slow_body_is_not_waited_for(url, monkeypatch):
    """A body that does not come is 408 after the limit, and its connection is closed then."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    begun = time.perf_counter()
    status, _, body = raw(url, head, b"{")
    assert status == 408 and is_error(body) and time.perf_counter() - begun < 5
    with connected(url) as client:  # small drops do not keep it
        client.sendall(head)
        _drip(client, b"{")


def _drip(client: socket.socket, drop: bytes):
    """Send drops until the server has closed the connection, which has to be soon."""
    end = time.perf_counter() + 10
    client.settimeout(0.1)
    with pytest.raises(OSError):
        while time.perf_counter() < end:
            client.sendall(drop)
            time.sleep(0.02)
    assert time.perf_counter() < end, "the connection stays"


def test_a_head_is_bounded_in_time(url, monkeypatch):
    """Who says nothing, or a head in small drops, is left; so is the second request's."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    with connected(url) as client:
        assert client.recv(100) == b""
    with connected(url) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: ")
        _drip(client, b"x")
    with connected(url) as client:
        client.sendall(request_bytes("/health"))
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        _drip(client, b"G")


def test_a_head_is_bounded_in_size(url):
    """Headers, names and paths that are too long or too many: refused, in one part or in many."""
    for head in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 40_000 + b"\r\n",
        b"GET /health?" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G" * 200_000,
    ):
        for parts in ([head], [head[i : i + 9000] for i in range(0, 36_000, 9000)]):
            status, _, body = raw(url, *parts)
            assert status == 400 and is_error(body), head[:30]


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("data", [
    b"\r\n\r\n\r\n\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\xfc\x03",  # TLS
    b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    POST + b"Transfer-Encoding: gzip\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
])  # fmt: skip
def test_bad_http_gets_an_error_object(url, data):
    """What is no HTTP is refused as everything else is, and the server goes on."""
    status, headers, body = raw(url, data)
    assert status in (400, 403, 501) and is_error(body)
    assert headers["content-type"] == "application/json"
    assert httpx.get(f"{url}/health").status_code == 200


def test_there_are_no_websockets(url, locked):
    """An upgrade is not made: what comes is an answer like any other, after the same checks."""
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    assert raw(url, request_bytes("/v1/ws", more=upgrade))[0] == 404
    assert raw(locked.url, request_bytes("/v1/models", more=upgrade))[0] == 401
    foreign = "Origin: http://evil.example\r\n"
    assert raw(locked.url, request_bytes("/v1/models", more=upgrade + foreign))[0] == 403
    h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    assert raw(locked.url, request_bytes("/v1/models", more=h2c + BEARER))[0] == 200


def test_requests_in_a_row_are_each_checked(locked):
    """On one connection, the key of the first request is nothing to the second."""
    with connected(locked.url) as client:
        client.sendall(request_bytes("/v1/models", more=BEARER) + request_bytes("/v1/models"))
        seen = b""
        while seen.count(b"HTTP/1.1 ") < 2:
            seen += client.recv(65536)
        assert seen.index(b"HTTP/1.1 200") < seen.index(b"HTTP/1.1 401")


def test_methods_that_routes_do_not_have(url):
    """405 with an error object for every other method; HEAD of a GET has no body."""
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO", "GET"):
        answer = httpx.request(method, f"{url}/v1/chat/completions")
        assert answer.status_code == 405 and is_error(answer.text)
        assert answer.headers["allow"] == "POST"
    for path in ("/health", "/", "/v1/models"):
        answer = httpx.head(url + path)
        assert answer.status_code in (200, 405) and answer.content == b""


def exits_with(monkeypatch, capsys, *flags) -> str:
    """serve_model.py with these flags has to end with status 2: its one line."""
    monkeypatch.setattr(sys, "argv", ["serve_model.py", *map(str, flags)])
    monkeypatch.delenv(serve_model.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(serve_model.Server, "serve", lambda *_, **__: pytest.fail("it started"))
    with pytest.raises(SystemExit) as ended:
        cli.run(serve_model.main)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    return errors


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_no_public_address_without_a_key(monkeypatch, capsys, folder, address):
    """--host for other machines without --api_key, or with an empty one: refused in one line."""
    for more in ([], ["--api_key", ""]):
        line = exits_with(monkeypatch, capsys, "--model", folder, "--host", address, *more)
        assert line.count("\n") == 1 and "--api_key" in line


def test_an_empty_key_is_a_mistake(monkeypatch, capsys, folder):
    """--api_key "$UNSET" must not leave a server open that was to be locked."""
    assert "--api_key" in exits_with(monkeypatch, capsys, "--model", folder, "--api_key", "")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "{tmp}/none"], "--model"),
        (["--model", "{tmp}"], "--model"),
        (["--model", "{folder}", "--lora", "x={tmp}/none"], "--lora"),
        (["--model", "{folder}", "--lora", "{tmp}"], "--lora"),
        (["--model", "{folder}", "--lora", "x={folder}"], "--lora"),
        (["--model", "{folder}", "--lora", "={folder}"], "--lora"),
        (["--model", "{folder}", "--host", "no.such.host.invalid"], "--host"),
        (["--model", "{folder}", "--port", "70000"], "--port"),
        (["--model", "{folder}", "--max_concurrency", "0"], "--max_concurrency"),
        (["--model", "{folder}", "--max_seconds", "nan"], "--max_seconds"),
        (["--model", "{folder}", "--max_context", "1"], "--max_context"),
        (["--model", "{folder}", "--device", "cuda:99"], "device"),
    ],
)
def test_mistakes_end_with_status_2(monkeypatch, capsys, folder, tmp_path, flags, expected):
    """One line that names the flag (argparse's own have its usage before)."""
    flags = [flag.format(tmp=tmp_path, folder=folder) for flag in flags]
    line = exits_with(monkeypatch, capsys, "--port", "0", *flags)
    assert expected in line.splitlines()[-1] and "Traceback" not in line
    assert line.startswith("usage:") or line.count("\n") == 1


def test_a_port_in_use_is_a_mistake(monkeypatch, capsys, folder, url):
    """Found before the models are loaded; also while another server is still loading its own."""
    port = url.rpartition(":")[2]
    line = exits_with(monkeypatch, capsys, "--model", folder, "--port", port)
    assert line.count("\n") == 1 and f"--port {port}" in line
    with serve_model.listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        line = exits_with(monkeypatch, capsys, "--model", folder, "--port", port)
        assert line.count("\n") == 1 and f"--port {port}" in line


def test_the_guard_lets_a_client_that_leaves_go(url):
    """A client that goes away in the middle of its body leaves nothing behind."""
    for _ in range(20):
        with connected(url) as client:
            client.sendall(POST + b"Content-Length: 100\r\n\r\n{")
    assert httpx.get(f"{url}/health").status_code == 200
