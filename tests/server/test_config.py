"""The configuration's keys about recordings and witnesses, as values."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from audit.recording import Mode
from audit.retention import Limits
from gateway.errors import ConfigurationError
from gateway.transcript import RecordingBounds
from server.config import Config, load_config


def config(folder: Path, audit: str = "", connection: str = "") -> Config:
    path = folder / "countersign.yaml"
    (folder / "password").write_text("secret")
    path.write_text(
        f"audit:\n  path: audit.db\n{audit}"
        "policy: policy.yaml\n"
        "issuers: [{issuer: 'https://issuer.example', audience: x}]\n"
        f"connections:\n  shop: {{host: h, database: d, user: u, password_file: password{connection}}}\n",
        encoding="utf-8",
    )
    return load_config(path)


def test_by_default_metadata_is_recorded_and_kept_for_good(tmp_path: Path) -> None:
    loaded = config(tmp_path)
    assert loaded.connections[0].recording is Mode.METADATA
    assert (loaded.recordings, loaded.retention) == (RecordingBounds(), Limits())
    assert loaded.signing.witnesses == ()


@pytest.mark.parametrize("mode", Mode)
def test_each_mode_is_written_plainly(tmp_path: Path, mode: Mode) -> None:
    written = f"'{mode}'" if mode is Mode.OFF else str(mode)
    assert config(tmp_path, connection=f", recording: {written}").connections[0].recording is mode


def test_a_bare_off_is_off(tmp_path: Path) -> None:
    """YAML 1.1 reads it as `false`."""
    [connection] = config(tmp_path, connection=", recording: off, rehearse: off").connections
    assert (connection.recording, connection.rehearse) == (Mode.OFF, "off")


def test_a_mode_that_there_is_not_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"countersign.yaml:6:\d+: `everything`"):
        config(tmp_path, connection=", recording: everything")


def test_bounds_and_limits(tmp_path: Path) -> None:
    loaded = config(tmp_path, "  recordings: {statement_bytes: 10, session_bytes: 20, days: 0.5, megabytes: 3}\n")
    assert loaded.recordings == RecordingBounds(10, 20)
    assert loaded.retention == Limits(timedelta(hours=12), 3_000_000)


def test_witnesses_are_paths_or_say_that_they_are_required(tmp_path: Path) -> None:
    loaded = config(tmp_path, "  witnesses: [one, {path: two, required: true}, {path: three}]\n")
    told = [(witness.path, witness.required) for witness in loaded.signing.witnesses]
    assert told == [(tmp_path / "one", False), (tmp_path / "two", True), (tmp_path / "three", False)]
    with pytest.raises(ConfigurationError, match="unknown key `requird`"):
        config(tmp_path, "  witnesses: [{path: two, requird: true}]\n")


def test_a_shadow_is_made_with_the_connections_own_login_or_one_of_its_own(tmp_path: Path) -> None:
    [own] = config(tmp_path, connection=", rehearse: shadow, shadow: {}").connections
    assert own.shadow is not None
    assert (own.shadow.user, own.shadow.host, own.shadow.database) == ("u", "h", "postgres")
    (tmp_path / "maker").write_text("other\n")
    maker = "shadow: {host: elsewhere, port: 1, user: maker, password_file: maker}"
    [other] = config(tmp_path, connection=f", rehearse: shadow, {maker}").connections
    assert other.shadow is not None
    assert (other.shadow.user, other.shadow.password, other.shadow.host) == ("maker", "other", "elsewhere")
    for wrong in (", rehearse: shadow", ", shadow: {}", ", rehearse: shadow, shadow: {user: x}"):
        with pytest.raises(ConfigurationError, match="go together"):
            config(tmp_path, connection=wrong)
