"""Files from the Hugging Face hub, with short patience: no request waits long, none is repeated.

EMBSPACE_HUB_TIMEOUT: seconds the hub has to connect and to answer, and that a download may go
without data (default 10; there is no limit on a whole download). EMBSPACE_HUB_RETRIES: how often
it is asked again after no answer (default 0). HF_HUB_OFFLINE=1: the hub is never asked.
What is in the hub's cache folder is used as it is, and the hub is not asked. Of a model whose page
has a pickle alone, as those of the MultiBERTs, the safetensors are taken that the hub's own bot
offers in a pull request, where there is one.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import _http, httpx, logging, validate_repo_id

TIMEOUT, RETRIES = "EMBSPACE_HUB_TIMEOUT", "EMBSPACE_HUB_RETRIES"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
BOT = "SFconvertbot"  # opens pull requests that add a pickle's weights as safetensors
FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model.safetensors", "model-*.safetensors"]


class HubError(Exception):
    """The hub did not give a file; the message is a clause that says why."""


def is_hub_name(name: str) -> bool:
    """True for what may be a name on the hub: `name` or `owner/name` of permitted characters."""
    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def hub_file(name: str, file: str, kind: str = "model") -> Path:
    """A file of a hub "model" or "dataset", in the hub's cache folder. Raises HubError."""
    return _cached_or_asked(huggingface_hub.hf_hub_download, name, filename=file, repo_type=kind)


def hub_folder(name: str) -> Path:
    """Folder in the hub's cache with what loading a model takes; it is named by the commit.

    Raises HubError.
    """
    return _cached_or_asked(_snapshot, name)


def _snapshot(name: str, **options: Any) -> str:
    """The folder of the main branch, or that of the bot's pull request if only this has weights."""
    download = partial(huggingface_hub.snapshot_download, name, allow_patterns=FILES,
                       ignore_patterns="*/*", max_workers=1, **options)
    folder = download()
    if not any(Path(folder).glob("*.safetensors")):
        with suppress(errors.HfHubHTTPError, errors.LocalEntryNotFoundError):
            for revision in _offered(name, **options):
                return download(revision=revision)
    return folder


def _offered(name: str, endpoint: str | None = None,
             local_files_only: bool = False) -> Iterator[str]:
    """The bot's pull requests, as revisions: those in the cache, or those that are open."""
    if local_files_only:
        model = repo_folder_name(repo_id=name, repo_type="model")
        refs = Path(constants.HF_HUB_CACHE, model, "refs/refs/pr").glob("*")
        yield from (f"refs/pr/{ref.name}" for ref in refs)
        return
    for pull in huggingface_hub.HfApi(endpoint).get_repo_discussions(
            name, author=BOT, discussion_type="pull_request", discussion_status="open"):
        if pull.author == BOT and "safetensors" in pull.title:
            yield f"refs/pr/{pull.num}"


def _cached_or_asked(download: Callable[..., str], name: str, **options: Any) -> Path:
    """What `download` gives, after a line that says so where the hub is asked."""
    with suppress(errors.LocalEntryNotFoundError):
        found = Path(download(name, local_files_only=True, **options))
        if found.is_file() or any(found.glob("*.safetensors")):  # else others cached other parts
            return found
    limit, tries = _patience()
    if huggingface_hub.is_offline_mode() or any(
            os.environ.get(x, "").upper() in constants.ENV_VARS_TRUE_VALUES for x in OFFLINE):
        raise HubError(f"{OFFLINE[0]} is set, so the hub is not asked")
    print(f"asking the Hugging Face hub for {name} (at most {limit:g} s)", flush=True)
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    for left in reversed(range(tries)):
        try:
            with _short_patience(limit):
                return Path(download(name, endpoint=endpoint, **options))
        except HubError:
            if not left:
                raise
            time.sleep(1)
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise HubError(_reason(error)) from None  # the chain of causes is pages long
    raise AssertionError("tries is at least 1")


def _patience() -> tuple[float, int]:
    """Seconds to wait and number of tries. Raises ValueError for variables that are no numbers."""
    try:
        limit = float(os.environ.get(TIMEOUT) or 10)
        tries = 1 + int(os.environ.get(RETRIES) or 0)
    except ValueError:
        limit = tries = 0
    if not 0 < limit < 1e6 or tries < 1:
        raise ValueError(f"the environment variables {TIMEOUT} (seconds, default 10) and {RETRIES} "
                         "(a count, default 0) must be numbers")
    return limit, tries


@contextmanager
def _short_patience(limit: float) -> Iterator[None]:
    """Give `huggingface_hub` a client that fails soon, and hide the lines it would log.

    Its statistics would be one more request to wait for, Xet downloads would go past the client.
    """
    made_by, level = _http._GLOBAL_CLIENT_FACTORY, logging.get_verbosity()
    huggingface_hub.set_client_factory(lambda: _impatient(made_by(), limit))
    logging.set_verbosity_error()
    try:
        with patch.multiple(constants, HF_HUB_DISABLE_TELEMETRY=True, HF_HUB_DISABLE_XET=True):
            yield
    finally:
        logging.set_verbosity(level)
        huggingface_hub.set_client_factory(made_by)


def _impatient(client: httpx.Client, limit: float) -> httpx.Client:
    """The client, whose requests wait no longer than the limit and whose failures are HubErrors.

    `huggingface_hub` repeats a request, with up to a minute's patience each, after the errors it
    knows; it does not know HubError.
    """
    send = client.send

    def bounded(request: httpx.Request, **options: Any) -> httpx.Response:
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), limit)
        with _told(request.url.host, limit):
            response = _within(limit, partial(send, request, **options))
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise HubError(f"the hub answered with HTTP {response.status_code}")
        all_chunks = response.iter_bytes

        def chunks(chunk_size: int | None = None) -> Iterator[bytes]:
            with _told(request.url.host, limit):
                yield from all_chunks(chunk_size)

        response.iter_bytes = chunks  # type: ignore[method-assign]
        return response

    client.send = bounded  # type: ignore[method-assign]  # of this one client, made for us
    return client


@contextmanager
def _told(host: str, limit: float) -> Iterator[None]:
    """A time-out or a broken connection becomes HubError."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError):
        raise HubError(f"{host} sent nothing for {limit:g} s ({TIMEOUT} sets another limit)"
                       ) from None
    except httpx.TransportError as error:
        raise HubError(f"no connection to {host}: {error or type(error).__name__}") from None


def _within(limit: float, call: Callable[[], httpx.Response]) -> httpx.Response:
    """What a call gives or raises, or TimeoutError after `limit` seconds.

    The call runs in a thread: looking up a host's address has no time-out of its own, and an
    answer that trickles in passes every other one.
    """
    answer: Future[httpx.Response] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # given to the thread that waits
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result(limit)


def _reason(error: BaseException) -> str:
    """Why the hub did not give a file, in a clause: what the first answer among the causes says."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "response"):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    status = cause.response.status_code
    if isinstance(cause, errors.GatedRepoError) or status == 403:
        return f"its terms must be accepted on its page, and `hf auth login` run (HTTP {status})"
    if status in (401, 404):
        return f"there is none, or it is private and needs `hf auth login` (HTTP {status})"
    return f"the hub answered with HTTP {status}"
