"""The server: what it answers, what it refuses, and that nothing makes it stumble."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import as_completed
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from serving import LIGHTS
from serving import NAMES
from serving import Lights
from serving import jpeg

from promptswitch_nb import serve
from promptswitch_nb.answers import Limits
from promptswitch_nb.answers import make_app
from promptswitch_nb.answers import read_page
from promptswitch_nb.guard import cookie_of
from promptswitch_nb.interface import CALLS
from promptswitch_nb.interface import SCHEMAS
from promptswitch_nb.interface import openapi
from promptswitch_nb.serve import ServeConfig
from promptswitch_nb.serve import listening
from promptswitch_nb.serve import with_token
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.writing import write_video

httpx = pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient")
TOKEN = "a-token-of-many-letters"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
pytestmark = linux_only


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Lights:
    """Make a few videos with difficult names."""
    return Lights(tmp_path_factory.mktemp("lights"))


def client_of(index, **options):
    """Make a client of a server that is in this process."""
    return testclient.TestClient(make_app(index, **options), base_url="http://localhost:8000")


@pytest.fixture
def client(index):
    """Make a client of a server with the usual settings."""
    with client_of(index) as client:
        yield client


def seen(film: bytes) -> list[str]:
    """Name the light that each frame of a film shows."""
    with av.open(io.BytesIO(film)) as container:
        frames = [f.to_ndarray(format="rgb24").mean((0, 1)) for f in container.decode(video=0)]
    distance = [[np.abs(frame - light).sum() for light in LIGHTS.values()] for frame in frames]
    return [list(LIGHTS)[n] for n in np.argmin(distance, axis=1)]


# Searching


def test_a_search_gives_cards(client):
    answer = client.get("/api/search", params=dict(q="green", k=5)).json()
    assert answer["verdict"] == "" and len(answer["hits"]) == 5
    hit = answer["hits"][0]
    assert (hit["id"], hit["start"], hit["end"], hit["name"]) == ("v0:2", 2, 3, "plain.mp4")
    assert client.get(f"/thumbnail/{hit['id']}").content == jpeg(LIGHTS["green"])
    assert client.get("/api/search", params=dict(q="zebra")).json()["verdict"]


def test_filters_reach_the_index_and_defaults_do_not(client, index):
    given = dict(q="red", k=3, per_video="true", dedupe="false", min_confidence=0.5, rerank=7)
    given |= dict(path="a/*", after="2026-01-02", min_duration=1.5, max_shot=9)
    client.get("/api/search", params=given)
    options = dict(per_video=True, dedupe=False, min_confidence=0.5, rerank=7)
    options |= dict(path="a/*", after="2026-01-02", min_duration=1.5, max_shot=9)
    assert index.asked[-1] == ("red", 3, options)
    client.get("/api/search", params=dict(q="red"))
    assert index.asked[-1] == ("red", 24, {})


def test_names_are_told_apart_and_are_json(client):
    hits = client.get("/api/search", params=dict(q="red", k=100)).json()["hits"]
    names = {hit["file"]: hit["name"] for hit in hits}
    assert len(set(names.values())) == len(names) == len(NAMES) + 2
    assert names["v3"] == r"two\nlines\tand a tab.mp4" and names["v4"] == r"caf\xe9 \xff.mp4"
    assert "\u202e" not in names["v5"]


def test_a_dropped_picture_is_searched_for(client, index):
    answer = client.post("/api/search", params=dict(k=2), content=jpeg(LIGHTS["blue"]))
    assert [hit["start"] for hit in answer.json()["hits"]] == [3, 7]
    assert not index.asked[-1][0].exists()
    wrong = client.post("/api/search", content=b"no picture")
    assert wrong.status_code == 415 and "the dropped file" in wrong.json()["error"]
    assert "/tmp" not in wrong.json()["error"]


def test_a_dropped_file_has_a_largest_size(index):
    with client_of(index, limits=Limits(upload=1000)) as client:
        assert client.post("/api/search", content=b"x" * 1001).status_code == 413
        parts = (b"x" * 100 for _ in range(50))  # without Content-Length
        assert client.post("/api/search", content=parts).status_code == 413


def test_similar_motion_why_and_status(client):
    assert client.get("/api/similar", params=dict(id="v1:3", k=1)).json()["hits"][0]["start"] == 3
    orders = client.get("/api/motion", params=dict(q="red", k=3)).json()["hits"]
    assert orders[0]["reversed"] == -orders[0]["as_is"] and orders[2]["shuffled"] > 0
    why = client.get("/api/why", params=dict(q="a red light", id="v0:0")).json()
    assert [word for word, _ in why["words"]] == ["a", "red", "light"]
    status = client.get("/api/status").json()
    assert (status["files"], status["n_skipped"], status["running"]) == (len(NAMES) + 2, 1, False)
    assert status["skipped"][0]["path"].endswith(r"bad \xff\n.mp4")
    for path in ("/api/similar?id=gone:1", "/api/why?q=a&id=gone:1"):
        assert client.get(path).status_code == 404


def test_the_mistake_in_a_query_is_shown(client):
    answer = client.get("/api/search", params=dict(q='"dog'))
    assert answer.status_code == 400 and "never closed" in answer.json()["error"]


# Videos


@pytest.mark.parametrize("file", [f"v{n}" for n in range(len(NAMES))])
def test_a_video_of_any_name_is_sent_whole_and_in_parts(client, index, file):
    way = client.get("/api/play", params=dict(file=file, at=3)).json()
    assert (way["converted"], way["begins"]) == (False, 0)
    whole = index.paths[file].read_bytes()
    answer = client.get(way["src"])
    assert answer.content == whole and answer.headers["content-type"] == "video/mp4"
    for given, part, said in (
        ("bytes=0-0", whole[:1], "bytes 0-0"),
        ("bytes=10-", whole[10:], f"bytes 10-{len(whole) - 1}"),
        ("bytes=-7", whole[-7:], f"bytes {len(whole) - 7}-{len(whole) - 1}"),
    ):
        answer = client.get(way["src"], headers={"range": given})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"] == f"{said}/{len(whole)}"
    beyond = client.get(way["src"], headers={"range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416
    assert len(client.head(way["src"]).content) == 0


def test_strange_ranges_do_no_harm(client):
    many = "bytes=" + ",".join(f"{n}-{n}" for n in range(5000))
    for given in ("", "bytes=", "bytes=a-b", "bits=0-1", "bytes=5-2", "bytes=-", many, "bytes=--5"):
        answer = client.get("/video/v0", headers={"range": given})
        assert answer.status_code in (200, 206, 400, 416), given
        assert len(answer.content) < 100_000


@pytest.mark.parametrize(
    "file, at", [("avi", 2.5), ("avi", 0), ("mkv", 0), ("mkv", 4.3), ("mkv", 5.5)]
)
def test_what_a_browser_cannot_play_is_converted(client, file, at):
    way = client.get("/api/play", params=dict(file=file, at=at)).json()
    assert way["converted"] and "container" in way["reason"]
    assert at - 1 <= way["begins"] <= at
    answer = client.get(way["src"])
    assert answer.headers["content-type"] == "video/mp4" and "content-length" not in answer.headers
    shown = seen(answer.content)
    expected = [list(LIGHTS)[int(t + 1e-6) % 4] for t in np.arange(way["begins"], 7.99, 0.1)]
    assert abs(len(shown) - len(expected)) <= 1 and shown[: len(expected)] == expected[: len(shown)]


def test_a_playable_video_is_converted_on_demand(client):
    way = client.get("/api/play", params=dict(file="v0", at=4.2, convert="true")).json()
    assert way["converted"] and way["reason"]
    assert seen(client.get(way["src"]).content)[0] == "red"
    assert client.get("/video/avi").status_code == 415
    assert client.head("/video/avi?start=0").status_code == 200
    assert client.get("/video/avi?start=1000").status_code == 415


def test_a_stream_has_a_longest_piece(index):
    with client_of(index, limits=Limits(stream=2)) as client:
        assert 19 <= len(seen(client.get("/video/avi?start=3").content)) <= 22


def test_only_what_is_a_video_is_sent(client, index, tmp_path):
    """The index knows a path; what lies there today decides."""
    secret, film = tmp_path / "secret.txt", index.paths["v0"]
    secret.write_text("a secret")
    cases = {
        "gone": (lambda p: None, 404),
        "text": (lambda p: p.write_text("a secret"), 415),
        "empty": (lambda p: p.touch(), 415),
        "folder": (lambda p: p.mkdir(), 415),
        "pipe": (os.mkfifo, 415),
        "link_to_text": (lambda p: p.symlink_to(secret), 415),
        "link_to_nothing": (lambda p: p.symlink_to(tmp_path / "nothing"), 404),
        "link_to_itself": (lambda p: p.symlink_to(p), 404),
        "playlist": (lambda p: p.write_text(f"ffconcat version 1.0\nfile {secret}\n"), 415),
        "link_to_film": (lambda p: p.symlink_to(film), 200),
    }
    for name, (make, status) in cases.items():
        path = tmp_path / f"{name}.mp4"
        make(path)
        index.paths[name] = path
        try:
            for address in (f"/video/{name}", f"/api/play?file={name}"):
                answer = client.get(address)
                assert answer.status_code == status, address
                assert b"a secret" not in answer.content
            if status != 200:
                assert client.get(f"/video/{name}?start=0").status_code == status
        finally:
            del index.paths[name]


def test_a_file_that_changes_is_looked_at_again(client, index, tmp_path):
    index.paths["changing"] = tmp_path / "changing.mp4"
    index.paths["changing"].write_bytes(index.paths["v0"].read_bytes())
    assert client.get("/video/changing").status_code == 200
    index.paths["changing"].write_text("no video any more")
    assert client.get("/video/changing").status_code == 415
    del index.paths["changing"]


@pytest.mark.parametrize(
    "address",
    [
        *("/video/../../etc/passwd", "/video/..%2f..%2fetc%2fpasswd", "/video//etc/passwd"),
        *("/video/%00", "/video/a%27%20OR%201", "/video/", "/video", "/thumbnail/v0:9999"),
        *("/thumbnail/..%2f:0", "/thumbnail/", "/page/index.html", "/%2e%2e/x", "/index.html"),
        *("/api", "/api/", "/api/nothing", "/" + "a" * 5000, "/video/v0/", "/video/v0%0a"),
    ],
)
def test_addresses_that_lead_nowhere(client, index, address):
    answer = client.get(address)
    assert answer.status_code in (400, 404)
    assert set(answer.json()) == {"error"}
    assert all(re.fullmatch(r"[\w-]+", file) for file in index.looked_for)


def test_wrong_methods(client):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"):
        assert client.request(method, "/api/search").status_code == 405
    assert client.post("/video/v0").status_code == 405
    assert client.get("/api/login").status_code == 405


# Who may ask


def test_every_call_asks_for_the_token(index):
    with client_of(index, token=TOKEN) as client:
        assert client.get("/").status_code == 200
        for call in CALLS:
            address = call.path.format(id="v0:0", file="v0")
            answer = client.request(call.method, address)
            assert answer.status_code == 401, address
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/openapi.json").status_code == 401


def test_the_token_is_exchanged_for_a_cookie(index):
    with client_of(index, token=TOKEN) as client:
        wrong = client.post("/api/login", headers={"authorization": "Bearer wrong"})
        assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
        answer = client.post("/api/login", headers={"authorization": f"Bearer {TOKEN}"})
        cookie = answer.headers["set-cookie"].lower()
        assert answer.status_code == 204
        assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
        assert TOKEN not in cookie
        assert client.get("/api/status").status_code == 200
        assert client.get("/video/v0").status_code == 200
        client.cookies.clear()
        name, _ = cookie_of(TOKEN)
        client.cookies.set(name, "f" * 56)
        assert client.get("/api/status").status_code == 401


def test_headers_of_every_answer(client):
    for address in ("/", "/api/status", "/nothing", "/video/v0", "/api/search", "/openapi.json"):
        headers = client.get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert client.get("/api/status").headers["cache-control"] == "no-store"


def test_other_names_and_other_pages_are_refused_before_anything_else(client, index):
    n = len(index.asked)
    for headers in (
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ):
        for method in ("GET", "POST"):
            answer = client.request(method, "/api/search?q=red", headers=headers)
            assert answer.status_code == 403
    assert len(index.asked) == n


# So much at once


class Slow(Lights):
    """Keep each search until it may end."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.may_end = threading.Event()

    def search(self, query, k, **options):
        self.may_end.wait(100)
        return super().search(query, k, **options)


def test_searches_wait_or_are_refused_while_all_else_goes_on(tmp_path):
    index, limits = Slow(tmp_path), Limits(searches=1, waiting=2, seconds=90)
    get = partial(httpx.get, timeout=90)
    with listening(make_app(index, limits=limits)) as url, ThreadPoolExecutor(8) as pool:
        try:
            jobs = [pool.submit(get, f"{url}/api/search?q=red") for _ in range(8)]
            answered = as_completed(jobs, timeout=60)
            refused = [next(answered).result() for _ in range(5)]
            assert [answer.status_code for answer in refused] == [503] * 5
            assert all(answer.headers["retry-after"] for answer in refused)
            assert get(f"{url}/").status_code == 200
            assert get(f"{url}/video/v0").status_code == 200
            assert get(f"{url}/api/status").status_code == 200
            assert sum(job.done() for job in jobs) == 5
        finally:
            index.may_end.set()
        assert [job.result().status_code for job in answered] == [200] * 3
        assert get(f"{url}/api/search?q=red").status_code == 200


def test_a_search_that_takes_too_long_is_answered_with_a_no(tmp_path):
    index = Slow(tmp_path)
    with client_of(index, limits=Limits(seconds=0.05)) as client:
        assert client.get("/api/search?q=red").status_code == 503
        index.may_end.set()


def long_film(path: Path) -> Path:
    """Write noise, which takes much room in a socket and, being copied, little work."""
    frames = np.random.default_rng(0).integers(0, 255, (150, 240, 320, 3), dtype=np.uint8)
    return write_video(path, frames, fps=10, options={"qp": "10", "preset": "ultrafast"})


def test_a_conversion_ends_when_the_viewer_leaves(tmp_path):
    index = Lights(tmp_path)
    index.paths["long"] = long_film(tmp_path / "long.mkv")
    limits = Limits(conversions=1, stalled=60)
    with listening(make_app(index, limits=limits)) as url:
        for _ in range(3):  # each needs the one place
            with httpx.stream("GET", f"{url}/video/long?start=0", timeout=20) as answer:
                assert answer.status_code == 200
                next(answer.iter_raw(1000))
            film = httpx.get(f"{url}/video/avi?start=6", timeout=20)
            assert film.status_code == 200 and len(seen(film.content)) == 20


def test_a_viewer_who_stops_reading_loses_the_place(tmp_path):
    index = Lights(tmp_path)
    index.paths["long"] = long_film(tmp_path / "long.mkv")
    limits = Limits(conversions=1, stalled=0.5)
    with listening(make_app(index, limits=limits)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as lazy:
            lazy.sendall(b"GET /video/long?start=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert lazy.recv(12) == b"HTTP/1.1 200"
            answers = (httpx.get(f"{url}/video/avi?start=6", timeout=30) for _ in range(10))
            assert any(answer.status_code == 200 for answer in answers)


# The page


def colours_of(page: str) -> dict[str, tuple[str, str]]:
    """Read the palette: name -> colour in the light theme, in the dark theme."""
    return {
        name: (light, dark)
        for name, light, dark in re.findall(
            r"--([\w-]+): light-dark\((#\w{6,8}), (#\w{6,8})\)", page
        )
    }


def contrast(one: str, other: str) -> float:
    """Compute the contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    colours = colours_of(read_page()[0])
    grounds = ("bg", "surface", "raised", "soft", "note")
    pairs = [("text", ground, 4.5) for ground in grounds]
    pairs += [("dim", ground, 4.5) for ground in ("bg", "surface", "raised")]
    pairs += [("accent", ground, 4.5) for ground in ("bg", "surface", "soft")]
    pairs += [("on-accent", "accent", 4.5), ("up", "surface", 4.5), ("down", "surface", 4.5)]
    pairs += [("edge", "bg", 3), ("edge", "surface", 3)]
    for theme in (0, 1):
        for one, other, least in pairs:
            found = contrast(colours[one][theme], colours[other][theme])
            assert found >= least, f"{one} on {other}: {found:.2f}"


def test_the_page_asks_no_other_address_and_writes_no_markup():
    page, policy = read_page()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)
    assert not re.search(r"<[^>]+\son\w+=", page.partition("<script>")[0])
    assert not re.search(r"<[^>]+\sstyle=", page)
    assert policy.count("'sha256-") == 2 and "unsafe" not in policy
    assert len(page) < 60_000


def test_the_page_uses_what_the_server_offers():
    page = read_page()[0]
    used = set(re.findall(r"/(?:api/\w+|thumbnail)", page))
    offered = {re.sub(r"/\{.*", "", call.path) for call in CALLS} - {"/video"}
    assert used == offered
    names = set(re.findall(r'<(?:input|select) name="(\w+)"', page))
    [filters] = [c.takes.names() for c in CALLS if c.name == "search_by_file"]
    assert names == set(filters) - {"rerank"}


# The description


def test_every_parameter_is_described():
    for path in openapi()["paths"].values():
        for call in path.values():
            assert call["summary"] and call["responses"]
            for parameter in call["parameters"]:
                assert parameter["description"], parameter["name"]


def test_answers_are_as_described(client):
    jsonschema = pytest.importorskip("jsonschema")
    for address, name in (
        ("/api/search?q=red&k=30", "Hits"),
        ("/api/similar?id=v0:1", "Hits"),
        ("/api/motion?q=red", "Motion"),
        ("/api/why?q=a+red&id=v0:0", "Why"),
        ("/api/play?file=avi&at=1", "Play"),
        ("/api/status", "Status"),
        ("/api/status?x=1", "Error"),
    ):
        jsonschema.validate(client.get(address).json(), SCHEMAS[name])
    assert client.get("/openapi.json").json() == json.loads(json.dumps(openapi()))


def test_schemathesis_finds_no_fault(index):
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    app = make_app(index, hosts=("localhost", "testserver"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schemathesis.checks.load_all_checks()
    names = ["not_a_server_error", "status_code_conformance", "content_type_conformance"]
    names += ["response_schema_conformance", "negative_data_rejection"]
    checks = schemathesis.checks.CHECKS.get_by_names(names)
    tried = []
    settings = hypothesis.settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    for result, mode in product(schema.get_all_operations(), schemathesis.GenerationMode):

        @settings
        @hypothesis.given(case=result.ok().as_strategy(generation_mode=mode))
        def run(case):
            answer = case.call()
            tried.append(answer.status_code)
            case.validate_response(answer, checks=checks)

        with suppress(hypothesis.errors.Unsatisfiable):  # without parameters nothing can be wrong
            run()
    assert len(tried) > 200 and {200, 400, 404} <= set(tried)


# The command


def test_others_are_let_in_with_a_token_only():
    for host in ("0.0.0.0", "::", "192.168.1.5", "videos.local"):
        with pytest.raises(ConfigError, match="token is required"):
            with_token(ServeConfig("a.lance", host=host), {})
        assert with_token(ServeConfig("a.lance", host=host), dict(PROMPTSWITCH_TOKEN=TOKEN)).token
    with pytest.raises(ConfigError, match="at least 16"):
        with_token(ServeConfig("a.lance"), dict(PROMPTSWITCH_TOKEN="short"))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from serving import Lights
from promptswitch_nb import serve
from promptswitch_nb.command import command_line
with command_line("promptswitch serve"):
    index = Lights(Path(sys.argv[2]))
    serve.serve(index, serve.ServeConfig("x", port=int(sys.argv[3]), token=sys.argv[4] or None))
"""


def start(folder: Path, port: int = 0, token: str = ""):
    """Start a server as a command."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(SCRIPT),
            Path(__file__).parent,
            folder,
            str(port),
            token,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_the_command_says_where_the_page_is_and_ends_with_ctrl_c(tmp_path):
    process = start(tmp_path, token=TOKEN)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/#token=(\S+)", line)
        assert found[2] == TOKEN
        url = f"http://127.0.0.1:{found[1]}"
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{url}/api/status").status_code == 401
        assert httpx.get(f"{url}/api/status", headers=bearer).status_code == 200
        assert httpx.get(f"{url}/video/v0?token={TOKEN}").status_code == 401
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode in (0, 130), err
        assert "Traceback" not in err and TOKEN not in out + err
    finally:
        process.kill()


def test_raw_requests_do_no_harm(index):
    """What no client library would send."""
    with listening(make_app(index)) as url:
        host, port = url.removeprefix("http://").split(":")
        for raw in (
            b"GET /api/status HTTP/1.1\r\n\r\n",
            b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
            b"GET http://evil.example/api/status HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"GET /api/search?q=%ff%fe&k=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /video/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x00\x01\x02\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), timeout=5) as client:
                client.sendall(raw)
                status = client.recv(100).split(b" ")[1]
                assert status in (b"400", b"403", b"404"), raw
        assert (
            httpx.get(f"{url}/api/search", params={"q": "\u0000 \ud7ff \U0001f415"}).status_code
            == 200
        )


def test_the_command_opens_the_index_and_serves_it(monkeypatch, capsys):
    opened, served = [], []

    class VideoIndex:
        @staticmethod
        def open(db, model=None):
            opened.append((db, model))
            return "the index"

    stand_in = SimpleNamespace(VideoIndex=VideoIndex)
    monkeypatch.setitem(sys.modules, "promptswitch_nb.search", stand_in)
    monkeypatch.setattr(serve, "serve", lambda index, config: served.append((index, config)))
    monkeypatch.setenv("PROMPTSWITCH_TOKEN", TOKEN)
    serve.main(["--db", "a.lance", "--port", "0"])
    assert opened == [("a.lance", None)]
    assert served == [("the index", ServeConfig("a.lance", port=0, token=TOKEN))]
    monkeypatch.delenv("PROMPTSWITCH_TOKEN")
    for argv, words in (
        ([], "db has no value"),
        (["--db", "a", "--host", "0.0.0.0"], "a token is required"),
        (["--db", "a", "--port", "70000"], "port is 70000"),
        (["--db", "a", "--token", "short"], "at least 16 characters"),
        (["--db", "a", "--hots", "x"], "did you mean"),
    ):
        with pytest.raises(SystemExit) as end:
            serve.main(argv)
        assert end.value.code == 1 and words in capsys.readouterr().err
    assert len(opened) == 1


@pytest.mark.parametrize("library, module", [("starlette", "guard"), ("uvicorn", "serve")])
def test_what_is_missing_is_said_with_what_to_install(library, module):
    script = f"import sys; sys.modules['{library}'] = None; import promptswitch_nb.{module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'promptswitch_nb[search]'" in done.stderr.splitlines()[-1]
