"""`countersign audit export`: lines and pushes that go on where they stopped, and say in the audit that they were."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audit import export, otlp, segments
from audit.entry import Draft, Kind
from audit.note import Signer
from audit.rolling import roll
from audit.store import Item, Store
from server.cli import main
from server.collector import Collector, CollectorError, headers_from
from tests.answering import Answer, Receiver, Sent, answering
from tests.audit.otlp_logs import decoded
from tests.server.test_audit_commands import path, readings

__all__ = ["path"]


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, ["audit", "export", *map(str, arguments)], env=environment)


def seqs(receiver: Receiver) -> list[int]:
    return [
        next(attribute.value.int_value for attribute in record.attributes if attribute.key == "countersign.seq")
        for sent in receiver.got
        for record in decoded(sent.body.decode()).resource_logs[0].scope_logs[0].log_records
    ]


def test_each_export_with_a_state_goes_on_after_the_last(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "exported"
    first = run(path, "--state", state)
    assert [json.loads(line)["seq"] for line in first.stdout.splitlines()] == list(range(1, 14))
    again = run(path, "--state", state, "--format", "ocsf", "--without-texts")
    assert [json.loads(line)["metadata"]["sequence"] for line in again.stdout.splitlines()] == [14]
    assert [body["query"]["after"] for _, body in readings(path)] == [0, 13]  # type: ignore[index]
    assert [body["query"].get("without_texts") for _, body in readings(path)] == [None, True]  # type: ignore[attr-defined]
    state.write_text(json.dumps({"seq": 14, "hash": "00" * 32}))
    refused = run(path, "--state", state)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "rolled back" in refused.stderr
    state.write_text("14")
    assert "cannot be read" in run(path, "--state", state).stderr


def test_a_state_that_cannot_be_kept_is_said_before_anything_leaves(path: Path, tmp_path: Path) -> None:
    done = run(path, "--state", tmp_path / "no" / "where")
    assert (done.exit_code, done.stdout, "cannot be written" in done.stderr) == (2, "", True)
    assert readings(path) == []


def test_a_followed_export_ends_with_ctrl_c_and_without_a_word(path: Path) -> None:
    command = [sys.executable, "-m", "server", "audit", "export", str(path), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(13):
            assert process.stdout.readline().startswith(b'{"seq":')
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest, said) == (130, b"", b"")


def test_an_export_with_a_state_leaves_nothing_out_that_is_elsewhere(tmp_path: Path) -> None:
    path, state = tmp_path / "audit.db", tmp_path / "exported"
    key = Signer("example.com/audit", bytes(32))
    with contextlib.closing(Store.open(path)) as store:
        for number in range(3):
            store.append([[Item(Draft(Kind.PROCESS_STARTED, None, None, None, {"number": number}))]])
            roll(path, lambda: key)
    second = segments.here(path)[1].path
    aside = second.rename(tmp_path / "aside.db")
    span = "entries 3 to 4"
    cut = run(path, "--state", state)
    assert (cut.exit_code, [json.loads(line)["seq"] for line in cut.stdout.splitlines()]) == (2, [1, 2])
    assert span in cut.stderr
    assert span in (plain := run(path)).stderr
    assert [json.loads(line)["seq"] for line in plain.stdout.splitlines()][:3] == [1, 2, 5]
    aside.rename(second)
    whole = run(path, "--state", state)
    assert [json.loads(line)["seq"] for line in whole.stdout.splitlines()][:3] == [3, 4, 5]


def test_a_push_hands_over_everything_once_and_is_recorded_without_its_secrets(path: Path, tmp_path: Path) -> None:
    state = tmp_path / "exported"
    with answering(lambda _: Answer()) as collector:
        address = f"{collector.url.replace('//', '//user:secret@')}/otlp?token=secret"
        arguments = ("--format", "otlp", "--push", address.split("?")[0], "--state", state)
        done = run(path, *arguments, OTEL_EXPORTER_OTLP_HEADERS="x-key=s%3Decret")
        assert (done.exit_code, done.stdout) == (0, ""), done.output
        run(path, *arguments)
    assert seqs(collector) == list(range(1, 15))
    assert {(sent.path, sent.headers["content-type"]) for sent in collector.got} == {
        ("/otlp/v1/logs", "application/json")
    }
    assert collector.got[0].headers["x-key"] == "s=ecret"
    assert "secret" not in json.dumps(readings(path))
    assert readings(path)[0][1]["query"]["to"] == f"{collector.url}/otlp"  # type: ignore[index]


def test_what_a_collector_cannot_take_now_is_sent_again_and_nothing_is_lost(path: Path) -> None:
    answers = [Answer(503), Answer(429, headers={"Retry-After": "7"}), Answer()]
    waits: list[float] = []
    request = otlp.request(list(export.entries(path)))
    with answering(lambda _: answers.pop(0)) as receiver:
        collector = Collector(receiver.url, {}, patient=False, pauses=(1, 2), wait=waits.append)
        collector.send(request)
        collector.close()
    assert waits == [1, 7]
    assert len({sent.body for sent in receiver.got}) == 1


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (302, 1), (503, 3)])
def test_a_push_that_is_refused_ends_and_keeps_its_place(path: Path, status: int, attempts: int) -> None:
    with answering(lambda _: Answer(status)) as receiver:
        collector = Collector(receiver.url, {}, patient=False, pauses=(0, 0), wait=lambda _: None)
        with pytest.raises(CollectorError, match=f"it answered {status}"):
            collector.send({})
        collector.close()
    assert len(receiver.got) == attempts


def test_what_a_collector_rejects_for_good_is_told_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    said = json.dumps({"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "too old"}}).encode()

    def answer(sent: Sent) -> Answer:
        return Answer(body=said)

    with answering(answer) as receiver:
        collector = Collector(receiver.url, {}, patient=True)
        collector.send({})
        collector.close()
    assert "3 rejected: too old" in caplog.text
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--push", "https://collector.example"), "takes OpenTelemetry only"),
        (("--format", "otlp", "--push", "http://collector.example"), "in the clear"),
    ],
)
def test_a_push_that_makes_no_sense_is_a_sentence_and_no_entry(
    path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = run(path, *arguments)
    assert (done.exit_code, sentence in done.stderr) == (2, True)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM entries WHERE kind = 'audit.read'").fetchone() == (0,)
    db.close()


def test_headers_are_read_as_opentelemetry_writes_them() -> None:
    assert headers_from(" a=b, c = d%2Ce ,") == {"a": "b", "c": "d,e"}
    with pytest.raises(Exception, match="cannot be read"):
        headers_from("Bearer")
