"""Texts made to exhaust us, each in a process of its own: decided within 2 s of CPU and 300 MB, never a crash."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from policy.parse import MAX_TEXT_BYTES

SECONDS, MEGABYTES = 2.0, 300
# Seconds that the work of `pace` takes where nothing else runs. CPU time too grows with what else is on the machine, so
# the bound is for a machine of that pace.
PACE = 0.022
_TRIES = 3

_CHILD = """
import json, re, sys, time
from policy.engine import decide
from tests.policy.corpus import policy_of
from tests.policy.sample import PRINCIPALS, facts
def pace():
    start = time.process_time()
    sum(len(entry["b"]) for entry in json.loads(document))
    return time.process_time() - start
document = json.dumps([{"a": i, "b": [str(i)]} for i in range(30000)])
before = min(pace() for _ in range(3))
policy, known, text = policy_of("examples/policy.yaml"), facts(), sys.stdin.buffer.read()
start = time.process_time()
verdict = decide(policy, PRINCIPALS["devin"], known, text).verdict
seconds = time.process_time() - start
# Not getrusage: what it counts includes the parent, as it was when it forked.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
codes = [r.code for r in verdict.reasons if r.effect is verdict.effect]
print(json.dumps([str(verdict.effect), codes, seconds, peak, max(before, min(pace() for _ in range(3)))]))
"""


def _numbered(pattern: bytes, count: int, between: bytes = b",") -> bytes:
    return between.join(pattern.replace(b"#", b"%d" % i) for i in range(count))


HARD: list[tuple[str, bytes, str]] = [
    ("a sum of 1 MiB", b"SELECT " + b"1+" * (MAX_TEXT_BYTES // 2 - 10) + b"1", "text.large"),
    ("a sum of 500 KB", b"SELECT " + b"1+" * 240_000 + b"1", "text.large"),
    ("a sum of 10 KB", b"SELECT " + b"1+" * 5_000 + b"1", "text.deep"),
    ("100,000 masked columns", b"SELECT " + b",".join([b"c.id"] * 100_000) + b" FROM customers c", "text.large"),
    ("50,000 masked columns", b"SELECT " + b",".join([b"c.id"] * 50_000) + b" FROM customers c", "rule.matched"),
    ("100,000 values", b"SELECT 1 FROM orders WHERE id IN (" + _numbered(b"#", 100_000) + b")", "rule.matched"),
    ("the same, masked", b"SELECT 1 FROM customers WHERE id IN (" + _numbered(b"#", 100_000) + b")", "rule.matched"),
    ("60,000 relations", b"SELECT 1 FROM " + _numbered(b"customers c#", 40_000), "text.large"),
    (
        "2,000 masked relations and many columns",
        b"INSERT INTO tickets (id) SELECT " + b",".join(b"c%d.id" % (i % 900) for i in range(30_000)) + b" FROM "
        + _numbered(b"customers c#", 900),
        "",
    ),
    ("an endless operator", b"SELECT 1 " + b"+-" * 500_000 + b"1", "text.operators"),
    ("comments without spaces", b"SELECT 1" + b"/**/" * 250_000, "text.operators"),
    ("comments with spaces", b"SELECT 1" + b"/**/ " * 200_000, ""),
    ("comments inside operators", b"SELECT 1 " + (b"/**/" * 60 + b" ") * 4_000, ""),
    ("operators of 250 characters", b"SELECT 1 " + (b"+-" * 125 + b" 1 ") * 4_000, "text.large"),
    ("nested comments", b"/* " * 65 + b"*/ " * 65 + b"SELECT 1", "text.comments"),
    ("parentheses", b"SELECT " + b"(" * 500_000 + b"1" + b")" * 500_000, ""),
    ("subqueries", b"SELECT * FROM " + b"(SELECT * FROM " * 4_000 + b"orders" + b") x" * 4_000, ""),
    ("unions", b"SELECT 1 " + b"UNION SELECT 1 " * 69_000, ""),
    ("110,000 conditions", b"SELECT 1 FROM orders WHERE " + b" OR ".join([b"id=1"] * 110_000), "text.large"),
    ("40,000 common table expressions", b"WITH " + _numbered(b"c# AS (SELECT 1)", 40_000) + b" SELECT 1", "text.large"),
    ("110,000 statements", b"SELECT 1;" * 110_000, ""),
    ("a literal of 1 MB", b"SELECT '" + b"=" * 1_000_000 + b"'", ""),
    ("a name of 1 MB", b'SELECT "' + b"x" * 1_000_000 + b'" FROM orders', ""),
]  # fmt: skip


@pytest.mark.parametrize(("note", "text", "code"), HARD, ids=[note for note, _, _ in HARD])
def test_a_text_that_would_exhaust_us_is_decided_in_time(note: str, text: bytes, code: str) -> None:
    for _ in range(_TRIES):  # what else runs on the machine comes and goes
        done = subprocess.run([sys.executable, "-c", _CHILD], input=text, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()[-500:]
        effect, codes, seconds, peak, pace = json.loads(done.stdout)
        if seconds <= SECONDS * max(1.0, pace / PACE):
            break
    else:
        pytest.fail(f"{note}: {effect} {codes} after {seconds:.2f} s, at a pace of {pace:.3f}")
    assert "internal" not in codes
    assert peak <= MEGABYTES, (note, effect, codes)
    if code:
        assert set(codes) == {code}
