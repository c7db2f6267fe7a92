"""Pure: the script that takes a measured difference of schemas back, as far as one exists, and what it cannot do.

It is a proposal for people: whoever wants to run it proposes it as a migration of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gateway.inventory import Inventory, Thing

Line = Mapping[str, str | None]  # `sql`, or None where there is none, and a `note`

# Inside out: what hangs on others goes first, and comes back last.
_ORDER = (
    "trigger", "view", "materialized view", "foreign key", "constraint", "index", "column", "table", "foreign table",
    "sequence", "function", "type",
)  # fmt: skip
_RELATIONS = ("table", "view", "materialized view", "foreign table", "sequence")
_HOLDS_VALUES = ("column", "table", "materialized view")
_WRITES = ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "TruncateStmt")


def undo(before: Inventory, after: Inventory, kinds: Sequence[str] = ()) -> list[Line]:
    """What leads from `after` back to `before`, in order. `kinds` are the statements' own, by the parser's names."""
    return [*_rows(kinds), *_dropped(before, after), *_set_back(before, after), *_made_again(before, after)]


def as_script(lines: Sequence[Line]) -> list[str]:
    """The lines as SQL, the notes as comments."""
    script = []
    for line in lines:
        script += [f"-- {line['note']}"] if line["note"] else []
        script += [f"{line['sql']};"] if line["sql"] else []
    return script


def _rows(kinds: Sequence[str]) -> Iterator[Line]:
    for number, kind in enumerate(kinds, 1):
        if kind in _WRITES:
            yield _line(None, f"statement {number} changes rows, and nothing here brings back what they were")


def _dropped(before: Inventory, after: Inventory) -> Iterator[Line]:
    """What was created goes."""
    created = after.keys() - before.keys()
    for (kind, name), thing in _sorted(created, after):
        if thing.group != "foreign key" and any((relation, thing.of) in created for relation in _RELATIONS):
            continue  # goes with its relation
        if thing.drop == "":
            continue
        if kind == "grants":
            yield _line(None, f"the grants of {name} were its owner's alone")
        elif thing.drop is None:
            yield _line(None, f"there is no way back for the {kind} {name}")
        else:
            lost = f"what was written into the {kind} {name} since is lost" if kind in ("column", "table") else None
            yield _line(thing.drop, lost)


def _set_back(before: Inventory, after: Inventory) -> Iterator[Line]:
    """What was changed becomes what it was."""
    for (kind, name), old in _sorted(before.keys() & after.keys(), before):
        new = after[kind, name]
        if new == old or "" in (old.make, old.set, new.drop):
            continue
        if kind == "grants":
            yield _line(None, f"the grants of {name} were {old.said}")
        elif old.set is not None:
            yield _line(old.set, _caution(kind, name, old, new))
        elif kind == "type" or new.drop is None or old.make is None:
            yield _line(None, f"there is no way back for the {kind} {name}: it was {old.said}")
        else:
            yield _line(new.drop, None)
            yield _line(old.make, None)


def _made_again(before: Inventory, after: Inventory) -> Iterator[Line]:
    """What was dropped comes back, empty."""
    gone = before.keys() - after.keys()
    for (kind, name), thing in reversed(_sorted(gone, before)):
        if thing.make == "" or (kind == "column" and ("table", thing.of) in gone):
            continue
        if kind == "grants":
            yield _line(None, f"the grants of {name} were {thing.said}")
        elif thing.make is None:
            yield _line(None, f"there is no way back for the {kind} {name}: it was {thing.said}")
        else:
            lost = (
                f"the {kind} {name} comes back empty: its values are in a backup only"
                if kind in _HOLDS_VALUES
                else None
            )
            yield _line(thing.make, lost)


def _caution(kind: str, name: str, old: Thing, new: Thing) -> str | None:
    if kind == "column" and old.type != new.type:
        return (
            f"converts the values of {name} back from {new.type} to {old.type}: it fails on those that do not fit, and "
            "does not bring back what the first conversion cut off"
        )
    return None


def _sorted(keys: set[tuple[str, str]], things: Inventory) -> list[tuple[tuple[str, str], Thing]]:
    def place(key: tuple[str, str]) -> tuple[int, str, str]:
        group = things[key].group
        return (_ORDER.index(group) if group in _ORDER else len(_ORDER), *key)

    return [(key, things[key]) for key in sorted(keys, key=place)]


def _line(sql: str | None, note: str | None) -> Line:
    return {"sql": sql, "note": note}
