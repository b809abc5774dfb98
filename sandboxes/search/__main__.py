"""Search from the command line: index a corpus, serve an index to others, ask one.

    python -m sandboxes.search index --corpus corpus.jsonl --to wiki
    python -m sandboxes.search index --corpus corpus.jsonl --to elasticsearch://localhost:9200/wiki --user elastic
    python -m sandboxes.search query wiki "who wrote the hymn of Talido?"
    python -m sandboxes.search serve --index wiki --port 8000

What logs in to Elasticsearch may stand in ELASTICSEARCH_USER, ELASTICSEARCH_PASSWORD and ELASTICSEARCH_API_KEY, where other
users of the machine cannot read it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from typing import Self, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sandboxes.faults import SandboxFault
from sandboxes.search.bm25 import Bm25Index
from sandboxes.search.corpora import CorpusFormat, read_corpus
from sandboxes.search.elasticsearch import Connection, load
from sandboxes.search.index import Index
from sandboxes.search.opening import open_index
from sandboxes.search.serve import serving

_LINE_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
_EXCERPT = 300


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line, without the program; this process's own by default.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options.command(options)
    except (SandboxFault, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - a command line talks
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandboxes.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    index = commands.add_parser("index", help="index a corpus, in a folder or in Elasticsearch")
    index.add_argument("--corpus", required=True, metavar="FILE", help="a file, or a folder of files; .bz2 and .gz too")
    index.add_argument(
        "--to", required=True, metavar="FOLDER|URL", help="a new folder, or one that holds an index, which is replaced; or "
        "elasticsearch://host:9200/name"
    )  # fmt: skip
    index.add_argument("--format", choices=get_args(CorpusFormat), default="auto", help="of the corpus (%(default)s)")
    index.add_argument("--k1", type=float, help="of BM25, for a folder (0.9)")
    index.add_argument("--b", type=float, help="of BM25, for a folder (0.4)")
    index.add_argument("--no-resume", action="store_true", help="don't go on with an index that is there in Elasticsearch")
    _add_connection(index)
    index.set_defaults(command=_index)

    serve = commands.add_parser("serve", help="serve an index over HTTP, in the format of Search-R1's /retrieve")
    serve.add_argument("--index", required=True, metavar="WHERE", help="a folder, or the address of an index")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="0 for any that is free (%(default)s)")
    _add_connection(serve)
    serve.set_defaults(command=_serve)

    query = commands.add_parser("query", help="ask an index")
    query.add_argument("index", metavar="WHERE", help="a folder, or the address of an index")
    query.add_argument("text", nargs="+", help="one query")
    query.add_argument("-k", type=int, default=3, help="how many passages (%(default)s)")
    _add_connection(query)
    query.set_defaults(command=_query)
    return parser


def _add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Elasticsearch")
    group.add_argument("--user", default=os.environ.get("ELASTICSEARCH_USER", ""))
    group.add_argument("--password", default=os.environ.get("ELASTICSEARCH_PASSWORD", ""))
    group.add_argument("--api-key", default=os.environ.get("ELASTICSEARCH_API_KEY", ""))
    group.add_argument("--ca-certs", metavar="FILE", help="certificate authorities to trust for TLS")
    group.add_argument("--no-verify-certs", action="store_true", help="trust any certificate")
    group.add_argument("--timeout", type=float, help="seconds that a call may take (10; an http server's: 30)")


def _connection(options: argparse.Namespace) -> Connection:
    timeout = Connection.timeout if options.timeout is None else options.timeout
    return Connection(
        options.user, options.password, options.api_key, options.ca_certs, not options.no_verify_certs, timeout
    )


def _index(options: argparse.Namespace) -> None:
    elsewhere = "://" in options.to
    if elsewhere and (options.k1 is not None or options.b is not None):
        raise ValueError("--k1 and --b are of an index in a folder; in Elasticsearch they are always 0.9 and 0.4")
    if not elsewhere:
        Bm25Index.check_target(options.to)  # now, and not after hours of work
    with _Reporter() as reporter:
        corpus = read_corpus(options.corpus, options.format, progress=reporter.show)
        if elsewhere:
            outcome = load(options.to, corpus, connection=_connection(options), resume=not options.no_resume)
            failed = len(outcome.failed)
            done = str(outcome)
        else:
            parameters = {name: value for name in ("k1", "b") if (value := getattr(options, name)) is not None}
            with Bm25Index.build(corpus, **parameters) as index:
                index.save(options.to)
            failed = 0
            with Bm25Index.load(options.to) as index:
                done = index.describe()
    if corpus.report.broken or corpus.report.cut:
        print(f"warning: {corpus.report}", file=sys.stderr)  # noqa: T201 - a command line talks
    _say(done)
    if failed:
        raise SandboxFault(f"{failed:,} of the passages could not be loaded")


def _serve(options: argparse.Namespace) -> None:
    with _open(options.index, options) as index:
        asyncio.run(_serve_until_stopped(index, options.host, options.port))


async def _serve_until_stopped(index: Index, host: str, port: int) -> None:
    stopped = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stopped.set)
    async with serving(index, host, port) as found:
        shown = f"[{host}]" if ":" in host else host
        _say(f"serving {index.describe()} at http://{shown}:{found}/retrieve")
        await stopped.wait()


def _query(options: argparse.Namespace) -> None:
    with _open(options.index, options) as index:
        hits = index.search([" ".join(options.text)], options.k)[0]
    if not hits:
        _say("nothing was found")
    for rank, hit in enumerate(hits, 1):
        text = " ".join(hit.text.split())
        _say(f"{rank}. {hit.title or '(no title)'}   [{hit.id}]   {hit.score:.3f}")
        _say(f"   {text if len(text) <= _EXCERPT else text[: _EXCERPT - 3] + '...'}")


def _open(where: str, options: argparse.Namespace) -> Index:
    if where.startswith("elasticsearch"):
        return open_index(where, connection=_connection(options))
    return open_index(where, timeout=options.timeout)


class _Reporter:
    """Shows how far reading a corpus is: a bar in a terminal, else a line now and then."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("reading", total=1.0)

    def show(self, read: int, part: float) -> None:
        """Takes what a corpus tells of itself."""
        line = f"{read:,} passages read" + ("; finishing the index" if part == 1.0 else "")
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=part, description=line)
        elif now - self._said >= _LINE_EVERY or (part == 1.0 and now - self._started >= _LINE_EVERY):
            self._said = now
            print(f"{line} ({part:.0%}, {now - self._started:.0f} s)", file=sys.stderr, flush=True)  # noqa: T201 - likewise

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _say(line: str) -> None:
    print(line.encode("utf-8", "replace").decode(), flush=True)  # noqa: T201 - a command line talks


if __name__ == "__main__":
    sys.exit(main())
