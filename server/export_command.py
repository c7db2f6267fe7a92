"""`countersign audit export`: the entries for other systems, as lines or to a collector, from where it left off."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from audit import export as exporter
from audit import ocsf, otlp
from audit.errors import AuditUnavailable
from audit.export import Exported, Place
from audit.witness import shown
from gateway.errors import AuditUnavailableError, ConfigurationError
from server.arguments import CONFIG, STORE
from server.collector import Collector, headers_from
from server.reading import record_reading, store_path

# How often a followed export looks for what is new.
_FOLLOW_SECONDS = 0.5
# Records in one request to a collector, and entries after which the state is kept.
_BATCH = 512

Deliver = Callable[[Sequence[Exported]], None]


@click.command()
@STORE
@CONFIG
@click.option(
    "--format",
    "how",
    type=click.Choice(["jsonl", "ocsf", "otlp"]),
    default="jsonl",
    show_default=True,
    help="The entries as they are, OCSF 1.8 events, or OpenTelemetry log records.",
)
@click.option("--after", type=click.IntRange(min=0), default=0, help="Go on after this seq.")
@click.option("--follow", is_flag=True, help="Stay, and export what is written, until interrupted.")
@click.option(
    "--state",
    "state_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file that keeps how far it came: the next export with it goes on there, at least once each.",
)
@click.option("--without-texts", is_flag=True, help="Leave out statements, parameters, reasons, comments and messages.")
@click.option(
    "--push", metavar="URL", help="Post to this OTLP/HTTP collector; headers from OTEL_EXPORTER_OTLP_HEADERS."
)
def export(
    store: Path | None,
    config_path: Path,
    how: str,
    after: int,
    follow: bool,
    state_path: Path | None,
    without_texts: bool,
    push: str | None,
) -> None:
    """Hand over the entries in order, one a line on stdout or in batches to a collector.

    The export is itself an entry, written before anything leaves.
    """
    if push is not None and how != "otlp":
        raise ConfigurationError("a collector takes OpenTelemetry only", cure="Give `--format otlp` with `--push`.")
    path = store_path(store, config_path)
    with contextlib.ExitStack() as stack:
        deliver = _lines(how)
        if push is not None:
            headers = headers_from(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
            collector = stack.enter_context(contextlib.closing(Collector(push, headers, patient=follow)))
            deliver = _to(collector)
        try:
            after = _resumed(path, state_path, after)
            _check_writable(state_path)
            to = None if push is None else shown(push)
            reader = getpass.getuser()
            record_reading(
                path,
                exporter.reading(reader, after, follow=follow, how=how, without_texts=without_texts, to=to),
            )
            _run(path, after, deliver, follow=follow, without_texts=without_texts, state_path=state_path)
        except AuditUnavailable as error:
            raise AuditUnavailableError(str(error)) from None


def _run(
    path: Path, after: int, deliver: Deliver, *, follow: bool, without_texts: bool, state_path: Path | None
) -> None:
    stopped = threading.Event()  # set by nobody: an interrupt ends the wait
    batch: list[Exported] = []

    def hand_over() -> None:
        deliver(batch)
        if state_path is not None and batch:
            _keep(state_path, Place(batch[-1].seq, batch[-1].hash))
        batch.clear()

    def gap(first: int, last: int) -> None:
        what = f"the entries {first} to {last} are in a segment that is elsewhere"
        if state_path is not None:  # it promises each entry at least once
            hand_over()
            raise AuditUnavailableError(
                f"{what}: they were not exported",
                cure=f"Bring it back; or leave them out with another state file and `--after {last}`.",
            )
        click.echo(f"{what}: they are left out", err=True)

    wait = lambda: follow and not stopped.wait(_FOLLOW_SECONDS)  # noqa: E731
    for entry in exporter.follow(path, after, wait, gap):
        if entry is not None:
            batch.append(entry.without_texts() if without_texts else entry)
        if batch and (entry is None or len(batch) == _BATCH):
            hand_over()


def _lines(how: str) -> Deliver:
    def deliver(batch: Sequence[Exported]) -> None:
        for entry in batch:
            if (text := _line(how, entry)) is not None:
                click.echo(text)
        sys.stdout.flush()

    return deliver


def _line(how: str, entry: Exported) -> str | None:
    match how:
        case "ocsf":
            told = ocsf.event(entry)
            return None if told is None else json.dumps(told, ensure_ascii=False)
        case "otlp":
            return json.dumps(otlp.request([entry]), ensure_ascii=False)
    return exporter.line(entry)


def _to(collector: Collector) -> Deliver:
    return lambda batch: collector.send(otlp.request(batch))


def _resumed(path: Path, state_path: Path | None, after: int) -> int:
    """After which entry to go on: the state's, where there is one, held to the store. Raises AuditUnavailable too."""
    if state_path is None or not state_path.exists():
        return after
    try:
        place = Place.parse(state_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the state `{state_path}` cannot be read: {error}", cure="Name another.") from None
    exporter.check_place(path, place)
    return place.seq


def _check_writable(state_path: Path | None) -> None:
    """Before anything leaves: each run would hand over the same again."""
    if state_path is not None:
        with _told(state_path):
            (new := _beside(state_path)).touch()
            new.unlink()


def _keep(state_path: Path, place: Place) -> None:
    """Replace the state as one: a crash leaves the old or the new."""
    with _told(state_path):
        (new := _beside(state_path)).write_text(place.text, encoding="utf-8")
        new.replace(state_path)


def _beside(state_path: Path) -> Path:
    return state_path.with_name(f"{state_path.name}.new")


@contextlib.contextmanager
def _told(state_path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the state `{state_path}` cannot be written: {error.strerror}", cure="Name another file."
        ) from None
