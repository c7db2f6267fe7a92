"""`countersign audit checkpoint`, `key` and `prove`: sign now, show who signs, hand over, prove one entry."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from audit import keys, rolling, testimony
from audit.checkpoint import Checkpoint
from audit.errors import AuditUnavailable
from audit.merkle import ProofError
from audit.note import NoteError, PublicKey, open_note, split_notes
from audit.proof import Extension
from audit.segments import elsewhere
from audit.signed import Signed
from audit.store import Item, Store
from audit.testimony import Witnessed
from audit.witness import statement_of
from gateway.errors import AuditUnavailableError, ConfigurationError
from server.arguments import CONFIG, STORE
from server.config import Signing, key_beside, load_config
from server.reading import existing, record_reading, store_path, unread
from server.visible import visible


@contextlib.contextmanager
def _opened(store: Path | None, config_path: Path) -> Iterator[tuple[Store, Signing]]:
    """The store, and how it is signed: as the configuration says, or with the key beside the file that was named."""
    if store is not None:
        path, signing = store, Signing(key_beside(store.resolve()))
    else:
        config = load_config(config_path)
        path, signing = config.audit_path, config.signing
    try:
        with contextlib.closing(Store.open(existing(path))) as opened:
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
        signed = Signed(opened.path)
        for witness in signing.witnesses:
            if (said := witness.take(signed)) is not None:
                opened.append([[Item(statement_of(witness, said))]])
        for _, note in opened.notes()[-1:]:
            click.echo(note, nl=False)


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
@STORE
@CONFIG
def roll(store: Path | None, config_path: Path) -> None:
    """Seal what the store holds as a segment now, and move it into the folder beside the store.

    A gateway may run meanwhile. A roll that was cut off is finished first.
    """
    with _opened(store, config_path) as (opened, signing):
        segment = rolling.roll(opened.path, signing.key)
    if segment is None:
        raise ConfigurationError(
            "there is nothing to seal, or another process rolls just now", cure="`countersign audit segments` shows it."
        )
    click.echo(f"sealed: the entries {segment.first} to {segment.last}, in {segment.path}")


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
            for one in elsewhere(opened.path):
                if one.first <= seq <= one.last:
                    raise ConfigurationError(
                        f"entry {seq} is in a segment that is elsewhere", cure=f"Bring `{one.path}` back."
                    )
            raise ConfigurationError(
                f"entry {seq} is not signed yet, or not there", cure="Sign it with `countersign audit checkpoint`."
            )
        click.echo(proof.text, nl=False)


@click.command()
@STORE
@CONFIG
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for each as files: SIZE-SEQ.note, and SIZE-SEQ.tsr of a time-stamp (for `openssl ts -verify`).",
)
def witnessed(store: Path | None, config_path: Path, output: Path | None) -> None:
    """Show what witnesses said of checkpoints: cosignatures, time-stamps, locked objects, the oldest first."""
    path = store_path(store, config_path)
    record_reading(path, testimony.reading(getpass.getuser()))
    try:
        said = list(testimony.witnessed(path))
        if not said:
            click.echo("no witness has said anything yet", err=True)
        for one in said:
            click.echo(visible(f"{one.seq}  {one.time[:19]}  {one.size} entries  {one.what}  {one.witness}"))
            if output is not None:
                _keep(output, one)
    except AuditUnavailable as error:
        raise AuditUnavailableError(str(error)) from None


def _keep(folder: Path, one: Witnessed) -> None:
    name = f"{one.size}-{one.seq}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.note").write_text(one.note, encoding="utf-8")
        if one.timestamp is not None:
            (folder / f"{name}.tsr").write_bytes(one.timestamp)
    except OSError as error:
        raise ConfigurationError(f"`{folder}` cannot be written: {error.strerror}", cure="Name another.") from None


@click.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@STORE
@CONFIG
@click.option("--public-key", "public_keys", multiple=True, help="A key that you know from elsewhere (a vkey).")
@click.option(
    "--proof", "proof_path", type=click.Path(path_type=Path, dir_okay=False), help="Check this, without store."
)
@click.pass_context
def consistency(
    context: click.Context,
    old: Path,
    new: Path,
    store: Path | None,
    config_path: Path,
    public_keys: Sequence[str],
    proof_path: Path | None,
) -> None:
    """Prove that a checkpoint carries on an older one: nothing that was signed then has changed since.

    OLD and NEW are files of signed notes, such as a witness's; the last note of each counts. Prints the proof
    (c2sp.org/tlog-witness); with --proof and --public-key it is checked alone. Exit status 1: history was rewritten.
    """
    try:
        older, newer = _last_note(old), _last_note(new)
        keys_given = [PublicKey.parse(text) for text in public_keys]
        if proof_path is not None:
            if not keys_given:
                raise ConfigurationError("a proof without the store needs a key", cure="Give --public-key.")
            proof = Extension.parse(_text_of(proof_path))
            if proof.note != newer:
                raise ProofError(f"the proof is about another checkpoint than that of `{new}`")
            before, after = proof.check(older, keys_given)
            click.echo(
                f"consistent: the {before.size} entries signed then are the first of the {after.size} signed now"
            )
            return
        with _opened(store, config_path) as (opened, _):
            known = keys_given or opened.public_keys()
            before, after = (Checkpoint.parse(open_note(note, known)) for note in (older, newer))
            extension = opened.extension(before.size, after.size, newer)
            if extension is None:
                raise _not_carried_on(opened, before.size, after.size)
            extension.check(older, known)
        click.echo(extension.text, nl=False)
    except NoteError as error:
        raise ConfigurationError(str(error)) from None
    except ProofError as error:
        click.echo(f"NOT CONSISTENT  {error}")
        context.exit(1)


def _not_carried_on(store: Store, old: int, new: int) -> ProofError | ConfigurationError:
    """Why there is no proof: a history that was rolled back, or files that are only not here."""
    if old > new:
        return ProofError(
            f"the first checkpoint is over {old} entries, the second over {new}: if they were not given the wrong way"
            " round, the newest entries were taken away"
        )
    if new <= store.head()[0] and (away := unread(store.path)):
        return ConfigurationError(
            f"{old} entries cannot be carried on to {new} here: {away}", cure="`countersign audit segments` lists them."
        )
    return ProofError(f"the store cannot carry {old} entries on to {new}: it has not so many")


def _last_note(path: Path) -> str:
    notes = split_notes(_text_of(path))
    if not notes:
        raise ConfigurationError(f"there is no signed note in `{path}`", cure="Name a checkpoint or a witness's file.")
    return notes[-1]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"`{path}` cannot be read: {error}", cure="Name another file.") from None


def _rotate(store: Store, signing: Signing) -> None:
    if signing.elsewhere is not None:
        raise ConfigurationError(
            f"the audit's key is {signing.elsewhere}, and cannot be rotated from here",
            cure="Move it into `audit.key_file`, and rotate it there.",
        )
    old = signing.key()
    waiting = keys.next_of(signing.key_file)
    keys.store(waiting, keys.generate(old.name))  # one that waits since a rotation that was cut off is taken
    store.rotate(old, keys.load(waiting))
    keys.adopt_next(signing.key_file)
