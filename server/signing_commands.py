"""`countersign audit checkpoint`, `key` and `prove`: sign now, show who signs, hand over, prove one entry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from audit import keys
from audit.errors import AuditUnavailable
from audit.store import Store
from audit.witness import FileWitness
from gateway.errors import AuditUnavailableError, ConfigurationError
from server.config import Signing, key_beside, load_config

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="COUNTERSIGN_CONFIG",
    default=Path("countersign.yaml"),
    show_default=True,
    help="Where to look up the store, its key and its witnesses when no file is named.",
)
STORE = click.argument("store", required=False, type=click.Path(path_type=Path, dir_okay=False))


@contextlib.contextmanager
def _opened(store: Path | None, config_path: Path) -> Iterator[tuple[Store, Signing]]:
    """The store, and how it is signed: as the configuration says, or with the key beside the file that was named."""
    if store is not None:
        path, signing = store, Signing(key_beside(store.resolve()))
    else:
        config = load_config(config_path)
        path, signing = config.audit_path, config.signing
    if not path.is_file():
        raise ConfigurationError(f"there is no audit store at `{path}`", cure="Name the file, or `--config`.")
    try:
        with contextlib.closing(Store.open(path)) as opened:
            signing.prepare(opened.public_keys())
            yield opened, signing
    except AuditUnavailable as error:
        raise AuditUnavailableError(str(error)) from None


@click.command()
@STORE
@CONFIG
def checkpoint(store: Path | None, config_path: Path) -> None:
    """Sign all entries there are, hand it to the witnesses, and print the signed note.

    Keep the note elsewhere: `audit verify --checkpoint FILE` then finds any change to what it covers.
    """
    with _opened(store, config_path) as (opened, signing):
        opened.checkpoint(signing.key())
        notes = opened.notes()
        for witness in map(FileWitness, signing.witnesses):
            witness.add(notes)
        click.echo(notes[-1][1], nl=False)


@click.command()
@STORE
@CONFIG
@click.option("--rotate", is_flag=True, help="Hand over to a new key, in an entry that both sign.")
def key(store: Path | None, config_path: Path, rotate: bool) -> None:
    """Print the public keys that signed this audit, the present one last.

    Give the last to whoever verifies: `audit verify --public-key KEY`.
    """
    with _opened(store, config_path) as (opened, signing):
        if rotate:
            _rotate(opened, signing)
        elif not opened.public_keys():
            opened.checkpoint(signing.key())
        for public in opened.public_keys():
            click.echo(str(public))


@click.command()
@click.argument("seq", type=click.IntRange(min=1))
@STORE
@CONFIG
def prove(seq: int, store: Path | None, config_path: Path) -> None:
    """Print a proof (c2sp.org/tlog-proof) that one entry is in the audit, under the newest checkpoint.

    With the entry's line of `audit export` and the public key, nothing else is needed to check it.
    """
    with _opened(store, config_path) as (opened, _):
        proof = opened.prove(seq)
        if proof is None:
            raise ConfigurationError(
                f"entry {seq} is not signed yet, or not there", cure="Sign it with `countersign audit checkpoint`."
            )
        click.echo(proof.text, nl=False)


def _rotate(store: Store, signing: Signing) -> None:
    if signing.key_env is not None:
        raise ConfigurationError(
            f"the audit's key is in the environment variable `{signing.key_env}`, which cannot be rotated from here",
            cure="Move it into `audit.key_file`, and rotate it there.",
        )
    old = signing.key()
    waiting = keys.next_of(signing.key_file)
    keys.store(waiting, keys.generate(old.name))  # one that waits since a rotation that was cut off is taken
    store.rotate(old, keys.load(waiting))
    keys.adopt_next(signing.key_file)
