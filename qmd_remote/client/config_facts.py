"""The facts that a check of QMD's configuration file needs: from the disk, and from the services it names."""

from __future__ import annotations

import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import httpx

from qmd_remote.client import qmd_config
from qmd_remote.client.causes import Cause, classify
from qmd_remote.client.config_check import Answers, Checked, Facts
from qmd_remote.client.discovery import ANSWER_S, fetch_models
from qmd_remote.client.http import exchange, make_client
from qmd_remote.errors import ConfigError

# More would no longer be cheap.
MAX_INDEXES = 20
MAX_INDEX_BYTES = 2**20
PROJECT_FILES = (".qmd/index.yaml", ".qmd/index.yml")

_HAS_BLOCK = re.compile(rb"""^\s*["']?remote["']?\s*:""", re.MULTILINE)


def gather(path: Path, env: Mapping[str, str], *, folder: Path | None = None, beside: bool = False) -> Facts:
    """Read what is on disk. `folder` is where QMD would run, `beside` asks for the other index files."""
    text, unreadable, mode = None, "", None
    try:
        text = qmd_config.read_text(path)
        mode = None if text is None else stat.S_IMODE(path.stat().st_mode)
    except ConfigError as error:
        unreadable = error.message
    except FileNotFoundError:  # it went meanwhile
        text = None
    return Facts(
        path=path,
        text=text,
        unreadable=unreadable,
        mode=mode,
        env=env,
        project_file=project_file(folder, path) if folder else None,
        without_block=indexes_without_block(path) if beside else (),
    )


def project_file(folder: Path, path: Path) -> Path | None:
    """A project's own configuration in `folder` or above, which QMD prefers to `path`."""
    here = folder.absolute()
    candidates = (above / name for above in (here, *here.parents) for name in PROJECT_FILES)
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    return found if found and found.resolve() != path.resolve() else None


def indexes_without_block(path: Path) -> tuple[str, ...]:
    """The names of the other index files in the folder of `path` that have no `remote:` block."""
    others = [other for other in sorted(path.parent.glob("*.yml"))[:MAX_INDEXES] if other.name != path.name]
    return tuple(other.stem for other in others if _lacks_block(other))


def _lacks_block(path: Path) -> bool:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_INDEX_BYTES:
            return False
        return not _HAS_BLOCK.search(path.read_bytes())
    except OSError:
        return False


def ask(checked: Checked) -> Answers:
    """Ask both services at once whether they take the key and which models they have, for at most about 2 s."""
    urls = list(dict.fromkeys(url for url in (checked.embed_url, checked.generation_url) if url))
    found: dict[str, Cause | None] = {}

    def job(url: str) -> None:
        found[url] = _why_not(url, checked.key)

    # Threads, since nothing bounds the time in which a name is resolved.
    threads = [threading.Thread(target=job, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    models = fetch_models(checked.embed_url, checked.generation_url, checked.key).models
    for thread in threads:
        thread.join(ANSWER_S)
    causes = {url: found.get(url, _late(url)) for url in urls}
    return Answers({url: cause for url, cause in causes.items() if cause}, models)


def _late(url: str) -> Cause:
    return classify(httpx.ReadTimeout("no answer"), url, limit_s=ANSWER_S)


def _why_not(url: str, key: str) -> Cause | None:
    """Why no request to this service can succeed, or None."""
    try:
        with make_client(url.rstrip("/"), key, limit_s=ANSWER_S) as client:
            answer = exchange(client, "/v1/models", limit_s=ANSWER_S)
    except ConfigError as error:
        return Cause(error.code, error.message, error.hint)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return classify(error, url, with_key=bool(key), limit_s=ANSWER_S)
    # a service without a list of its models may serve all the same: `qmd-remote test` tells
    hopeless = answer.status in {401, 403} or answer.status >= 500 or answer.is_html
    return classify(answer, url, with_key=bool(key)) if hopeless else None
