"""What `doctor --index` looks at: QMD's index, and whether the running server makes its vectors again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qmd_remote import local
from qmd_remote.client import config_facts, family_choice, index_findings, qmd_index
from qmd_remote.client.checks_embed import EmbedChecks, Vector
from qmd_remote.client.index_findings import IndexFinding
from qmd_remote.client.qmd_index import IndexFacts
from qmd_remote.client.service import CheckFailed, Service
from qmd_remote.doctor import Check, Finding, once, skipped
from qmd_remote.errors import QmdRemoteError

ANSWER_S = 10.0
PROBE = "How long is a vector?"

Judge = Callable[[IndexFacts], IndexFinding]


@dataclass(frozen=True)
class Server:
    """Where to embed; `url` is empty where `reason` says why nothing can be asked."""

    url: str = ""
    key: str = field(default="", repr=False)
    model: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Served:
    """The vectors of each sample's texts as the server makes them today, or why there are none."""

    dimension: int = 0
    vectors: tuple[tuple[Vector, ...], ...] = field(default=(), repr=False)
    reason: str = ""


def index_checks(index: str, qmd_file: Path, env: Mapping[str, str] = os.environ) -> list[Check]:
    """The checks of one index; it is read once, and the server asked once. Raises UsageError for a wrong name."""
    path = qmd_index.index_file(index, env)
    facts = once(lambda: qmd_index.read(path))
    served = once(lambda: embed(facts(), find_server(qmd_file, env)))
    name = _named(index, qmd_file)

    def told(found: IndexFinding) -> Finding:
        remark = f"   ({found.remark})" if found.remark else ""
        return Finding(found.state, found.detail, f"{found.cure}{name}{remark}" if found.cure else "")

    def check(title: str, judge: Judge) -> Check:
        """A check that has nothing to look at where the index cannot be read, which the first one tells."""

        def look() -> Finding:
            try:
                known = facts()
            except QmdRemoteError:
                return skipped("the index could not be read")
            return told(judge(known))

        return Check(title, look)

    def asking(title: str, judge: Callable[[IndexFacts, Served], IndexFinding]) -> Check:
        """A check that needs the server's vectors, too."""

        def judged(known: IndexFacts) -> IndexFinding:
            if known.dimension is None:
                return IndexFinding("skipped", "there are no vectors yet")
            answer = served()
            return IndexFinding("skipped", answer.reason) if answer.reason else judge(known, answer)

        return check(title, judged)

    return [
        Check("QMD's index", lambda: told(index_findings.summary(facts()))),
        check("documents without vectors", index_findings.without_vectors),
        check("documents embedded in part", index_findings.half_embedded),
        check("models of the vectors", index_findings.models),
        asking("dimension", lambda known, answer: index_findings.dimension(known, answer.dimension)),
        asking("stored vectors", _stored),
        check("cached scores", index_findings.rerank_cache),
        check("cached expansions", index_findings.expansion_cache),
    ]


def find_server(qmd_file: Path, env: Mapping[str, str] = os.environ) -> Server:
    """The embed server that QMD's config names, else the one that runs here. Raises ConfigError for wrong settings."""
    if qmd_file.exists():
        checked = family_choice.check_for(config_facts.gather(qmd_file, env), None)
        if checked.embed_url:
            if not checked.sound:
                return Server(reason="QMD's config is to be mended before its server can be asked")
            return Server(checked.embed_url, checked.key, checked.models.embed or "")
    here = local.find()
    if here.embed is None:
        return Server(reason="no server to ask: QMD's config names none, and none runs here")
    return Server(here.embed_url, here.key)


def embed(facts: IndexFacts, server: Server) -> Served:
    """Ask the server for the vectors of the samples, in one request as QMD sends it."""
    if server.reason:
        return Served(reason=server.reason)
    forms = [index_findings.texts(sample) for sample in facts.samples]
    wanted = [text for texts in forms for text in texts] or [PROBE]
    name = server.model or (facts.vectors[0].model if facts.vectors else "")
    service = Service(server.url, "", server.key, ANSWER_S, lambda _: None, names=False)
    try:
        vectors, _ = EmbedChecks(service, name, "").embed(wanted)
    except CheckFailed as failure:
        return Served(reason=f"the embed server could not be asked: {failure.cause.message}")
    finally:
        service.close()
    rest = iter(vectors)
    return Served(len(vectors[0]), tuple(tuple(next(rest) for _ in texts) for texts in forms))


def _stored(facts: IndexFacts, answer: Served) -> IndexFinding:
    if answer.dimension != facts.dimension:
        return IndexFinding("skipped", "vectors of another dimension cannot be compared")
    return index_findings.stored(facts.samples, answer.vectors)


def _named(index: str, qmd_file: Path) -> str:
    """The option with which QMD means this index: without it, a project's own index would win where there is one."""
    if index != "index":
        return f" --index {index}"
    return " --index index" if config_facts.project_file(Path.cwd(), qmd_file) else ""
