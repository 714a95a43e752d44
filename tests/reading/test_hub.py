"""The hub's failures: a server on this machine plays each, and no test needs a network."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import _http
from huggingface_hub.utils import logging as hub_logging

from embspace_helpers import load
from embspace_helpers.reading import hub, sources
from embspace_helpers.reading.sources import ModelNotFound, fingerprint, locate
from embspace_helpers.reading.weights import BadModelFile

COMMIT = "c0ffee" + "0" * 34
TWIN = sources.BUNDLED / "twin-a"


class Player(BaseHTTPRequestHandler):
    """A hub with one model, "owner/twin"; `server.play` may answer a request in its place."""

    def log_message(self, *_):
        """Say nothing."""

    def do_HEAD(self):
        self.server.asked.append((self.command, self.path))
        if not self.server.play(self):
            self.serve()

    do_GET = do_HEAD

    def serve(self):
        if self.path == "/api/models/owner/twin/revision/main":
            return self.send(json.dumps({"id": "owner/twin", "sha": COMMIT}).encode())
        if self.path.startswith(f"/api/models/owner/twin/tree/{COMMIT}"):
            names = sorted(file.name for file in self.server.folder.iterdir())
            tree = [{"type": "file", "path": path, "size": 9, "oid": "0" * 40}
                    for path in [*names, "onnx/config.json"]]
            return self.send(json.dumps(tree).encode())
        file = self.server.folder / self.path.rpartition("/")[2]
        if not self.path.startswith("/owner/twin/resolve/") or not file.is_file():
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
        self.send(file.read_bytes())

    def send(self, body, status=200, headers=None):
        self.send_response(status)
        tag = hashlib.sha256(body).hexdigest()
        marks = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        xet = {"X-Xet-Hash": tag, "X-Xet-Refresh-Route": "http://127.0.0.1:9/never"}
        for key, value in {**marks, **xet, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def hub_server(monkeypatch, play=lambda player: False, folder=TWIN):
    """A hub on this machine that HF_ENDPOINT points at."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Player)
    server.asked, server.play, server.folder, server.over = [], play, folder, threading.Event()
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """An empty hub cache, a hub that may be asked, and half a second of patience."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for variable in (*hub.OFFLINE, hub.RETRIES, "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(hub.TIMEOUT, "0.5")


def silent(player):
    player.server.over.wait(30)
    return True


def trickling(player):
    for letter in b"HTTP/1.1 200 OK\r\nX: " + b"." * 1000:
        player.wfile.write(bytes([letter]))
        if player.server.over.wait(0.1):
            break
    return True


def status(number, code=""):
    def play(player):
        player.send(b"no", number, {"X-Error-Code": code} if code else {"Retry-After": "300"})
        return True

    return play


def broken_off(at, wait):
    """A server that sends half of a file and then nothing, or hangs up."""

    def play(player):
        if player.command == "HEAD" or not player.path.endswith(at):
            return False
        player.send_response(200)
        player.send_header("Content-Length", "1000")
        player.end_headers()
        player.wfile.write(b"x" * 500)
        player.wfile.flush()
        player.server.over.wait(wait)
        player.close_connection = True
        return True

    return play


NO_ANSWER = r"sent nothing for 0.5 s \(EMBSPACE_HUB_TIMEOUT sets another limit\)"
FAILURES = [
    (silent, NO_ANSWER),
    (trickling, NO_ANSWER),
    (status(404), r"there is none, or it is private .* \(HTTP 404\)"),
    (status(404, "RepoNotFound"), r"there is none, or it is private .* \(HTTP 404\)"),
    (status(404, "EntryNotFound"), r"there is none, or it is private .* \(HTTP 404\)"),
    (status(401), r"there is none, or it is private and needs `hf auth login` \(HTTP 401\)"),
    (status(403, "GatedRepo"), r"terms must be accepted .* \(HTTP 403\)"),
    (status(500), "the hub answered with HTTP 500"),
    (status(429), "the hub answered with HTTP 429"),
    (broken_off("config.json", 30), NO_ANSWER),
    (broken_off("config.json", 0), "no connection to 127.0.0.1: peer closed"),
    (broken_off("tokenizer.json", 30), NO_ANSWER),
    (broken_off("model.safetensors", 30), NO_ANSWER),
]


@pytest.mark.parametrize(("play", "said"), FAILURES)
def test_failures_of_the_hub_are_told_soon_in_a_sentence(play, said, monkeypatch, capfd):
    factory, level = _http._GLOBAL_CLIENT_FACTORY, hub_logging.get_verbosity()
    with hub_server(monkeypatch, play) as server:
        start = time.monotonic()
        with pytest.raises(ModelNotFound, match=said) as caught:
            load("owner/twin")
        assert time.monotonic() - start < 1.5
    message = str(caught.value)
    assert message.startswith("'owner/twin' is no known name") and "\n" not in message
    assert message.endswith("with one, any name on the hub.") and "twin-a, twin-b" in message
    printed = capfd.readouterr()
    assert printed.out == "asking the Hugging Face hub for owner/twin (at most 0.5 s)\n"
    assert "Retrying" not in printed.err and "thrown" not in printed.err
    assert len(server.asked) == len(set(server.asked))  # nothing was asked twice
    assert _http._GLOBAL_CLIENT_FACTORY is factory and hub_logging.get_verbosity() == level


def test_nothing_else_is_asked_of_a_hub_that_is_silent(monkeypatch):
    run = [sys.executable, "-c", "from embspace_helpers.reading import hub; hub.hub_folder('gpt2')"]
    with hub_server(monkeypatch, silent) as server:
        start = time.monotonic()
        done = subprocess.run(run, capture_output=True, text=True)
        assert time.monotonic() - start < 8  # most of it Python's own
    assert done.stdout == "asking the Hugging Face hub for gpt2 (at most 0.5 s)\n"
    assert re.search(NO_ANSWER, done.stderr.splitlines()[-1])
    assert server.asked == [("GET", "/api/models/gpt2/revision/main")]


def test_no_server(monkeypatch, capfd):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    for ask in (load, fingerprint, locate):
        start = time.monotonic()
        with pytest.raises(ModelNotFound, match=r"no connection to 127.0.0.1: .*refused"):
            ask("gpt2")
        assert time.monotonic() - start < 0.5
        assert len(capfd.readouterr().out.splitlines()) == 1


def test_a_host_that_cannot_be_looked_up_in_time(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    start = time.monotonic()
    with pytest.raises(ModelNotFound, match=NO_ANSWER):
        load("gpt2")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("variable", hub.OFFLINE)
def test_offline_nothing_is_asked_or_printed(variable, monkeypatch, capfd):
    monkeypatch.setenv(variable, "1")
    said = "HF_HUB_OFFLINE is set, so the hub is not asked"
    with hub_server(monkeypatch) as server, pytest.raises(ModelNotFound, match=said):
        load("owner/twin")
    assert server.asked == [] and capfd.readouterr() == ("", "")


def test_retries_when_they_are_asked_for(monkeypatch):
    monkeypatch.setenv(hub.RETRIES, "1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    failures = iter([True])

    def once(player):
        return next(failures, False) and status(503)(player)

    with hub_server(monkeypatch, once) as server:
        assert fingerprint("owner/twin") == COMMIT
    assert server.asked[0] == server.asked[1] and len(set(server.asked)) == len(server.asked) - 1


@pytest.mark.parametrize("variable", [hub.TIMEOUT, hub.RETRIES])
@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_variables_that_are_no_numbers(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"{hub.TIMEOUT} .* and {hub.RETRIES} .* must be numbers"):
        load("owner/twin")


def test_a_model_is_downloaded_once_and_then_found_offline(monkeypatch, capfd):
    twin = load("twin-a")
    with hub_server(monkeypatch) as server:
        assert fingerprint("owner/twin") == COMMIT
        model = load("owner/twin")
        paths = {path.rpartition("/")[2] for method, path in server.asked if method == "GET"}
        assert {"config.json", "tokenizer.json", "model.safetensors"} <= paths
        assert "README.md" not in paths
        server.asked.clear()
        assert torch.equal(load("owner/twin").model.lm_head.weight, twin.model.lm_head.weight)
        assert server.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    capfd.readouterr()
    assert torch.equal(load(" owner/twin ").model.lm_head.weight, model.model.lm_head.weight)
    assert fingerprint("owner/twin") == COMMIT and capfd.readouterr() == ("", "")
    assert model.tokenizer.get_vocab() == twin.tokenizer.get_vocab()


def test_a_download_goes_on_as_long_as_data_come(monkeypatch, tmp_path):
    def slowly(player):
        if player.command == "HEAD" or not player.path.endswith("/config.json"):
            return False
        body = (TWIN / "config.json").read_bytes()
        player.send_response(200)
        player.send_header("Content-Length", str(len(body)))
        player.end_headers()
        for i in range(5):
            time.sleep(0.2)
            player.wfile.write(body[i * 200 :] if i == 4 else body[i * 200 : i * 200 + 200])
        return True

    with hub_server(monkeypatch, slowly):
        found = hub.hub_file("owner/twin", "config.json")
    assert found.read_bytes() == (TWIN / "config.json").read_bytes()


def test_a_download_that_broke_off_is_taken_up_where_it_was(monkeypatch):
    play = broken_off("model.safetensors", 0)
    with hub_server(monkeypatch, play), pytest.raises(ModelNotFound, match="no connection to"):
        load("owner/twin")
    with hub_server(monkeypatch) as server:
        load("owner/twin")
    assert not any(path.endswith("/config.json") for _, path in server.asked)
    assert any("model.safetensors" in path for _, path in server.asked)


def test_a_model_in_shards(monkeypatch, tmp_path):
    load("twin-a").model.save_pretrained(tmp_path / "twin", max_shard_size="5MB")
    for file in TWIN.glob("token*"):
        shutil.copy(file, tmp_path / "twin")
    with hub_server(monkeypatch, folder=tmp_path / "twin") as server:
        load("owner/twin")
        assert sum(re.search("model-0.*safetensors", path) is not None
                   for method, path in server.asked if method == "GET") > 1


def test_weights_in_other_formats_are_not_downloaded(monkeypatch, tmp_path):
    folder = shutil.copytree(TWIN, tmp_path / "twin")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with hub_server(monkeypatch, folder=folder) as server:  # noqa: SIM117
        with pytest.raises(BadModelFile, match="no file named model.safetensors found"):
            load("owner/twin")
    assert not any(path.endswith(".bin") for _, path in server.asked)


def test_safetensors_that_the_hubs_bot_offers_are_taken_and_no_one_elses(monkeypatch, tmp_path):
    main = shutil.copytree(TWIN, tmp_path / "twin")
    (main / "model.safetensors").rename(main / "pytorch_model.bin")
    pulls = [("somebody", 1, "Adding `safetensors` variant of this model"),
             (hub.BOT, 2, "Adding `safetensors` variant of this model")]
    pull, asked = "beef" + "0" * 36, "/api/models/owner/twin"

    def play(player):
        if player.path.startswith(f"{asked}/discussions?"):
            found = [{"title": title, "num": num, "author": {"name": author}, "status": "open",
                      "createdAt": "2024-01-01T00:00:00.000Z", "isPullRequest": True,
                      "repo": {"name": "owner/twin", "type": "model"}}
                     for author, num, title in pulls]
            player.send(json.dumps({"count": 2, "start": 0, "discussions": found}).encode())
        elif player.path == f"{asked}/revision/refs%2Fpr%2F2":
            player.send(json.dumps({"id": "owner/twin", "sha": pull}).encode())
        elif player.path.startswith(f"{asked}/tree/{pull}"):
            tree = [{"type": "file", "path": file.name, "size": 9, "oid": "0" * 40}
                    for file in TWIN.iterdir()]
            player.send(json.dumps(tree).encode())
        elif f"/resolve/{pull}/" in player.path:
            body = (TWIN / player.path.rpartition("/")[2]).read_bytes()
            player.send(body, headers={"X-Repo-Commit": pull})
        else:
            return False
        return True

    with hub_server(monkeypatch, play, main) as server:
        assert fingerprint("owner/twin") == pull
        assert not any(path.endswith(".bin") for _, path in server.asked)
        server.asked.clear()
        model = load("owner/twin")
        assert server.asked == []
    assert torch.equal(model.model.lm_head.weight, load("twin-a").model.lm_head.weight)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fingerprint("owner/twin") == pull


def test_a_damaged_file_of_the_hub_says_which_folder_to_delete(monkeypatch, tmp_path):
    shutil.copytree(TWIN, tmp_path / "twin")
    (tmp_path / "twin" / "model.safetensors").write_bytes(b"cut off")
    said = r"delete the folder .*--owner--twin and"
    with hub_server(monkeypatch, folder=tmp_path / "twin"):  # noqa: SIM117
        with pytest.raises(BadModelFile, match=said):
            load("owner/twin")


@pytest.mark.parametrize(
    ("name", "possible"),
    [("gpt2", True), ("owner/name", True), ("a.b_c-d/E.F", True), ("a/b/c", False), ("a b", False),
     ("-a", False), ("a--b", False), ("café", False), ("a" * 97, False), ("", False),
     ("https://hub/x", False), ("c:\\models", False)],
)  # fmt: skip
def test_what_looks_like_a_name_on_the_hub(name, possible):
    assert hub.is_hub_name(name) is possible
