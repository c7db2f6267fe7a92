"""The configuration's keys about recordings, witnesses and the wire door's logins, as values."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from audit import rolling
from audit.recording import Mode
from audit.retention import Limits
from audit.witness import FileWitness
from gateway.errors import ConfigurationError
from gateway.model import Connection, UpstreamRole
from gateway.transcript import RecordingBounds
from policy.model import Principal, PrincipalKind
from server.app import oauth_offer
from server.config import Config, load_config


def config(folder: Path, audit: str = "", connection: str = "", wire: str = "") -> Config:
    path = folder / "countersign.yaml"
    (folder / "password").write_text("secret")
    path.write_text(
        f"audit:\n  path: audit.db\n{audit}"
        "policy: policy.yaml\n"
        "issuers: [{issuer: 'https://issuer.example', audience: x}]\n"
        f"connections:\n  shop: {{host: h, database: d, user: u, password_file: password{connection}}}\n"
        f"{wire}",
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
    files = [witness for witness in loaded.signing.witnesses if isinstance(witness, FileWitness)]
    assert [(witness.path, witness.required) for witness in files] == [
        (tmp_path / "one", False),
        (tmp_path / "two", True),
        (tmp_path / "three", False),
    ]
    with pytest.raises(ConfigurationError, match="unknown key `requird`"):
        config(tmp_path, "  witnesses: [{path: two, requird: true}]\n")


@pytest.mark.parametrize(
    ("oauth", "says"),
    [
        ("{users: [oauth], issuer: 'https://elsewhere.example'}", "is none of the `issuers`"),
        ("{users: []}", "this must not be empty"),
        ("{}", "users"),
    ],
)
def test_oauth_names_users_and_an_issuer_that_is_trusted(tmp_path: Path, oauth: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        config(tmp_path, wire=f"wire: {{oauth: {oauth}}}\n")


def test_the_only_issuer_is_told_to_clients_without_a_token(tmp_path: Path) -> None:
    loaded = config(tmp_path, wire="wire: {oauth: {users: [oauth]}}\n")
    assert loaded.wire is not None
    offer = oauth_offer(loaded, loaded.wire.oauth)
    assert offer is not None
    assert offer.discovery_url == "https://issuer.example/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("client_principals: [{dns: x, subject: etl}]", "need a `client_ca`"),
        ("client_certificates: optional", "need a `client_ca`"),
        ("client_ca: ca.pem, client_principals: [{dns: x, subject: etl}]", "no certificate stands for anybody"),
        ("client_ca: ca.pem, client_certificates: optional, client_principals: [{subject: etl}]", "exactly one of"),
        ("client_ca: ca.pem, client_certificates: optional, client_principals: [{dns: x}]", "subject"),
        (
            "client_ca: ca.pem, client_certificates: optional, client_principals: "
            "[{dns: x, subject: etl, on_behalf_of: ada, on_behalf_of_issuer: 'https://elsewhere.example'}]",
            "is none of the `issuers`",
        ),
    ],
)
def test_client_certificates_say_whole_what_they_are_good_for(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        config(tmp_path, wire=f"wire: {{tls: {{certificate: c.pem, key: k.pem, {more}}}}}\n")


def test_segments_are_rolled_as_configured_and_not_at_all_by_default(tmp_path: Path) -> None:
    assert config(tmp_path).segments == rolling.Limits()
    assert config(tmp_path, "  segments: {}\n").segments == rolling.Limits(1_024_000_000, timedelta(days=30))
    assert config(tmp_path, "  segments: {megabytes: 1, days: null}\n").segments == rolling.Limits(1_000_000, None)


def test_a_key_comes_from_one_place(tmp_path: Path) -> None:
    assert config(tmp_path, "  key_command: [vault, read]\n").signing.key_command == ("vault", "read")
    with pytest.raises(ConfigurationError, match="at most one of `key_file`, `key_env` and `key_command`"):
        config(tmp_path, "  key_command: [vault]\n  key_env: KEY\n")


def upstream(folder: Path, text: str) -> Connection:
    (folder / "other").write_text("for the dbas")
    path = folder / "countersign.yaml"
    config(folder)
    path.write_text(re.sub(r"shop: \{host: h, (.*)\}\n", rf"shop: {{\1, {text}}}\n", path.read_text()))
    return load_config(path).connections[0]


def test_an_upstream_may_have_several_hosts_and_a_user_for_each_group(tmp_path: Path) -> None:
    loaded = upstream(
        tmp_path,
        "hosts: [{host: a}, {host: b, port: 5433}], target_session_attrs: read-write, connect_timeout: 2, warm: 3, "
        "sslmode: verify-ca, channel_binding: require, roles: [{groups: [dba], user: gw_dba, password_file: other}]",
    )
    assert (loaded.host, loaded.port, loaded.fallbacks) == ("a", 5432, (("b", 5433),))
    assert (loaded.target, loaded.connect_timeout, loaded.warm) == ("read-write", 2, 3)
    assert (loaded.sslmode, loaded.channel_binding) == ("verify-ca", "require")
    assert loaded.roles == (UpstreamRole(frozenset({"dba"}), "gw_dba", "for the dbas"),)
    dba = Principal("grace", "i", PrincipalKind.HUMAN, frozenset({"dba", "developers"}))
    ada = Principal("ada", "i", PrincipalKind.HUMAN, frozenset({"developers"}))
    used = [(c.user, c.read_only) for c in (loaded.for_principal(p, writes=p is dba) for p in (dba, ada))]
    assert used == [("gw_dba", False), ("u", True)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("description: none", "exactly one of `host` and `hosts`"),
        ("host: a, hosts: [{host: b}]", "exactly one of `host` and `hosts`"),
        ("host: a, channel_binding: require", "needs TLS"),
        ("host: a, roles: [{groups: [dba], user: gw_dba}]", "exactly one of `password_file` and `password_env`"),
        ("host: a, roles: [{groups: [dba], user: gw_dba, password_file: nowhere}]", "cannot be read"),
        ("host: a, sslmode: allow", "allow"),
    ],
)
def test_an_upstream_that_cannot_be_is_told_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        upstream(tmp_path, text)


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
