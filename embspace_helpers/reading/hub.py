"""Files from the Hugging Face hub, with short patience: no request waits long, none is repeated.

EMBSPACE_HUB_TIMEOUT: seconds the hub has to connect and to answer, and that a download may go
without data (default 10; there is no limit on a whole download). EMBSPACE_HUB_RETRIES: how often
a failed look-up or download is tried again (default 0). HF_HUB_OFFLINE=1: the hub is never asked.
What is complete in the hub's cache folder is used as it is, and the hub is not asked.
"""

import contextvars
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import _http, httpx, logging, validate_repo_id

from embspace_helpers.reading.model_files import INDEX, TOKENIZERS, WEIGHTS, weight_files

TIMEOUT, RETRIES = "EMBSPACE_HUB_TIMEOUT", "EMBSPACE_HUB_RETRIES"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
SMALL = (".json", ".txt", ".model", ".jinja")  # configuration and tokenizer files end so
XET_HASH = "X-Xet-Hash"
STATISTICS = "/api/agent-harnesses"  # the client asks this first, and waits, for its statistics


class HubError(Exception):
    """The hub did not give a file; the message is a clause that says why."""


class _NoAnswer(HubError):
    """The hub could not be reached or broke off: what another try may mend."""


def is_hub_name(name: str) -> bool:
    """True for what may be a name on the hub: `name` or `owner/name` of permitted characters."""
    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def cached_file(name: str, file: str, kind: str = "model") -> Path | None:
    """A file of a hub repository, from the cache folder only; None where it is not there.

    `kind`: "model" or "dataset".
    """
    found = huggingface_hub.try_to_load_from_cache(name, file, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def hub_file(name: str, file: str, kind: str = "model") -> Path:
    """A file of a hub repository, from the cache folder or else from the hub.

    Raises HubError.
    """
    options = {} if kind == "model" else {"repo_type": kind}
    cached = cached_file(name, file, kind)
    return cached or _patiently(name, partial(_download, name, file, options))


def commit(name: str) -> str:
    """The commit of a hub model: of the cached files, or else of what the hub has now.

    Raises HubError.
    """
    return hub_file(name, "config.json").parent.name


def snapshot(name: str) -> Path:
    """Folder in the hub's cache with all files of a model that loading it takes.

    Asks the hub, after a line that says so, only for what the folder lacks. Raises HubError.
    """
    config = cached_file(name, "config.json")
    if config and is_complete(config.parent):
        return config.parent
    return _patiently(name, partial(_download_model, name))


def is_complete(folder: Path) -> bool:
    """True where a folder has a model's configuration, all its weights and a tokenizer."""
    try:
        files = weight_files(folder)
    except (OSError, ValueError):
        return False
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZERS)
    return bool(files) and all(file.is_file() for file in files) and has_tokenizer


def _download_model(name: str) -> Path:
    """Download what a model needs, the weights last; files that are there are not asked for."""
    config = cached_file(name, "config.json") or _download(name, "config.json", {})
    folder = config.parent
    pinned: dict[str, Any] = {"revision": folder.name}
    found = huggingface_hub.HfApi(**_endpoint()).model_info(name, **pinned)
    files = {sibling.rfilename for sibling in found.siblings or []}
    for file in sorted(files):
        if file.endswith(SMALL) and "/" not in file and (".index." not in file or file == INDEX):
            _download(name, file, pinned)
    if not {WEIGHTS, INDEX} & files:
        raise HubError(f"it has no {WEIGHTS}, and files of other formats are not read")
    weights = [WEIGHTS] if WEIGHTS in files else _shards(folder)
    for file in weights:
        _download(name, file, pinned)
    return folder


def _shards(folder: Path) -> list[str]:
    """Names of the weight files that the index in a folder lists."""
    return [str(file.relative_to(folder)) for file in weight_files(folder)]


def _download(name: str, file: str, options: dict[str, Any]) -> Path:
    """One file, into the hub's cache folder."""
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, **(options | _endpoint())))
    except errors.RemoteEntryNotFoundError:
        raise HubError(f"it has no {file}") from None


def _endpoint() -> dict[str, Any]:
    """HF_ENDPOINT as it is now; the hub's client reads it on import only."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return {"endpoint": endpoint} if endpoint else {}


# ---- patience


def _patiently(name: str, task: Callable[[], Path]) -> Path:
    """What a task gives that asks the hub; a line announces it, EMBSPACE_HUB_RETRIES repeats it.

    Raises HubError, which says in a clause why the hub did not give it.
    """
    tries = 1 + int(_number(RETRIES, 0))
    if not _offline():
        print(f"asking the Hugging Face hub for {name} (at most {_limit():g} s)", flush=True)
    for left in reversed(range(tries)):
        try:
            with _short_patience():
                return task()
        except _NoAnswer as error:
            if not left:
                raise HubError(str(error)) from None
            time.sleep(1)
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise HubError(_reason(error)) from None  # the chain of causes is pages long
    raise AssertionError("tries is at least 1")


def _limit() -> float:
    """Seconds the hub has to answer."""
    return _number(TIMEOUT, 10) or 10


def _number(variable: str, default: float) -> float:
    """Value of an environment variable. Raises ValueError where it is no number from 0 up."""
    text = os.environ.get(variable, "").strip() or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ValueError(f"the environment variable {variable} is {text!r}, but must be a number "
                         f"from 0 to a million (default {default})")
    return value


def _offline() -> bool:
    """True where an environment variable forbids asking the hub."""
    said = (os.environ.get(name, "").upper() for name in OFFLINE)
    return huggingface_hub.is_offline_mode() or any(s in ("1", "ON", "YES", "TRUE") for s in said)


@contextmanager
def _short_patience() -> Iterator[None]:
    """Give `huggingface_hub` a client that fails soon, and hide the lines it would log."""
    made_by = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    level = logging.get_verbosity()
    huggingface_hub.set_client_factory(lambda: _impatient(made_by()))
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        huggingface_hub.set_client_factory(made_by)


def _impatient(client: httpx.Client) -> httpx.Client:
    """The client, whose requests wait no longer than the limit and whose failures are HubErrors.

    `huggingface_hub` repeats a request, with up to a minute's patience each, after the errors it
    knows; it does not know HubError. A hash of the Xet storage is hidden: that download would go
    past this client.
    """
    send, limit = client.send, _limit()

    def bounded(request: httpx.Request, **options: Any) -> httpx.Response:
        if _offline():
            raise HubError(f"{OFFLINE[0]} is set, so the hub is not asked")
        if request.url.path.endswith(STATISTICS):
            raise HubError("statistics are not sent")
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), limit)
        try:
            response = _within(limit, partial(send, request, **options))
        except httpx.TimeoutException:
            raise _no_answer(limit) from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise _NoAnswer(f"{request.url.host} cannot be reached: {why}") from None
        if response.status_code in (408, 429) or response.status_code >= 500:
            response.close()
            raise _NoAnswer(f"the hub answered with HTTP {response.status_code}")
        response.headers.pop(XET_HASH, None)
        if options.get("stream"):
            response.stream = _Body(response.stream, limit)
        return response

    client.send = bounded  # type: ignore[method-assign]  # of this one client, made for us
    return client


class _Body(httpx.SyncByteStream):
    """The body of an answer; a stall or a break is a HubError, which is not retried."""

    def __init__(self, stream: Any, limit: float):
        """Keep both."""
        self.stream, self.limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        """The chunks as they come. Raises HubError."""
        try:
            yield from self.stream
        except httpx.TimeoutException:
            raise _NoAnswer(f"the download broke off: no data for {self.limit:g} s "
                            f"({TIMEOUT} sets another limit)") from None
        except httpx.TransportError as error:
            raise _NoAnswer(f"the download broke off: {error}") from None

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()


def _within(limit: float, call: Callable[[], httpx.Response]) -> httpx.Response:
    """What a call gives or raises, or HubError after `limit` seconds.

    The call runs in a thread: looking up a host's address has no time-out of its own, and an
    answer that trickles in passes every other one.
    """
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # given to the thread that waits
            answers.put((None, error))

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    try:
        response, error = answers.get(timeout=limit)
    except queue.Empty:
        raise _no_answer(limit) from None
    if error is not None:
        raise error
    return response


def _no_answer(limit: float) -> HubError:
    return _NoAnswer(f"the hub did not answer within {limit:g} s ({TIMEOUT} sets another limit)")


def _reason(error: BaseException) -> str:
    """Why the hub did not give a file, in a clause: of the causes, the first that is telling."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return f"{OFFLINE[0]} is set, so the hub is not asked"
        if response is not None:
            return _refusal(cause, response.status_code)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, json.JSONDecodeError):
        return "the hub's answer cannot be read"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refusal(error: BaseException, status: int) -> str:
    """What an answer that is an error means."""
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"its terms must be accepted on its page, and `hf auth login` run (HTTP {status})"
    if status in (401, 404):
        return f"there is none, or it is private and needs `hf auth login` (HTTP {status})"
    return f"the hub answered with HTTP {status}"
