"""Who may use a server, from where, and with what."""

import httpx2 as httpx
import pytest

from inward.serve.limits import Limits
from inward.serve.server import Address, Settings, named
from tests.serve.live import live

KEY = "correct-horse-battery"
ASK = {"model": "chatty", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked(thinkers):
    with live(
        {"chatty": thinkers["chatty"]}, keys=(KEY, "another-key"), limits=Limits(max_body=2000)
    ) as running:
        yield running


def test_a_key_is_needed_for_all_but_health(locked):
    right, other = ({"Authorization": f"Bearer {key}"} for key in (KEY, "another-key"))
    wrongs = ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY})
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        assert httpx.get(locked.url + path, headers=right).status_code == 200
        for wrong in wrongs:
            told = httpx.get(locked.url + path, headers=wrong)
            assert told.status_code == 401 and told.headers["www-authenticate"] == "Bearer"
    assert httpx.get(locked.url + "/health").status_code == 200
    assert locked.post("/v1/chat/completions", ASK, headers=other).status_code == 200
    assert locked.post("/v1/chat/completions", ASK).status_code == 401
    with locked.client() as client:
        assert client.chat.completions.create(**ASK).choices


def test_a_page_of_another_origin_is_refused(server):
    own = {"Origin": server.url}
    assert server.post("/v1/chat/completions", ASK, headers=own).status_code == 200
    for origin in ("https://evil.example", "null", server.url.replace("127.0.0.1", "localhost")):
        told = server.post("/v1/chat/completions", ASK, headers={"Origin": origin})
        assert told.status_code == 403 and "access-control-allow-origin" not in told.headers
    name = {"Host": "evil.example"}  # pointed to 127.0.0.1
    assert httpx.get(f"{server.url}/v1/models", headers=name).status_code == 403
    form = {"Content-Type": "text/plain"}
    told = httpx.post(f"{server.url}/v1/chat/completions", content=b"{}", headers=form)
    assert told.status_code == 415


def test_replies_forbid_what_a_browser_might_do(server):
    for path in ("/health", "/v1/nothing"):
        headers = httpx.get(server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_a_large_body_is_refused_however_it_comes(locked):
    right = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for content in (b" " * 3000, iter([b" " * 1500] * 3)):
        told = httpx.post(f"{locked.url}/v1/solve", content=content, headers=right)
        assert told.status_code == 413 and "2000 bytes" in told.text


def test_a_server_that_others_reach_needs_a_key():
    with pytest.raises(ValueError, match="a key is needed"):
        Address(host="0.0.0.0")
    assert Address(host="0.0.0.0", keys=(KEY,)).hosts == ()
    assert "localhost" in Address(host="127.0.0.5").hosts
    for key in ("short", "with a blank in it"):
        with pytest.raises(ValueError, match="8 ASCII characters"):
            Address(keys=(key,))
    with pytest.raises(ValueError, match="port is 70000"):
        Address(port=70000)


def test_models_have_names_of_their_own():
    assert named(["sudoku6", "runs/mine", "other=runs/b/mine"]) == {
        "sudoku6": "sudoku6", "mine": "runs/mine", "other": "runs/b/mine",
    }  # fmt: skip
    for wrong, told in (
        ([], "no model"),
        (["a/x", "b/x"], "called 'x'"),
        (["=x"], "write a model"),
    ):
        with pytest.raises(ValueError, match=told):
            named(wrong)
    with pytest.raises(ValueError, match="grace is -1"):
        Settings(("sudoku6",), grace=-1)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        Limits(max_tokens=0)


def test_no_request_names_a_file(server, tmp_path):
    for name in (str(tmp_path), "../sudoku6", "sudoku9"):  # shipped, but not served
        told = server.post("/v1/chat/completions", ASK | {"model": name})
        assert told.status_code == 404 and told.json()["error"]["code"] == "model_not_found"
