"""From names as the parser returns them to objects of the catalog, under one search path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from policy.catalog import Catalog, Function, Relation, Type
from policy.functions import FIRST_USER_OID, SECRET_COLUMNS, SYSTEM_SCHEMAS, refusal_of_catalog
from policy.parse import Node, NotAnalysableError

# The schema of a session's own temporary relations, by the name that it has for every session.
TEMPORARY: Final = "pg_temp"

# Views of extensions that show the texts of statements, in whatever schema they were made.
_STATEMENT_TEXTS = ("pg_stat_statements", "pg_stat_monitor", "pg_qualstats")


def quote(name: str) -> str:
    """An identifier, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def parts(names: Iterable[Node]) -> list[str]:
    """The words of a list of String nodes."""
    return [node["String"]["sval"] for node in names if "String" in node]


def with_database(words: Sequence[str], location: int = 0) -> NotAnalysableError:
    """The error for a name that says its database: what it means here is looked up without one."""
    return NotAnalysableError(
        "name.database",
        f"a name may not say its database: `{'.'.join(words)}`",
        cure="Leave the database out.",
        location=location,
    )


def is_temporary(schema: str) -> bool:
    """Whether a schema holds some session's temporary relations."""
    return schema == TEMPORARY or schema.startswith(("pg_temp_", "pg_toast_temp_"))


def is_system(relation: Relation) -> bool:
    """Whether a relation comes with the server."""
    return relation.oid < FIRST_USER_OID and relation.schema in SYSTEM_SCHEMAS


def check_known(relation: Relation, location: int) -> None:
    """Raise NotAnalysableError for a temporary relation of which nobody can say what happens to it."""
    if relation.opaque is not None:
        raise NotAnalysableError(
            "temporary.refused",
            f"the temporary relation `{relation.name}` cannot be analysed: {relation.opaque}",
            cure="DISCARD TEMP, and make a plain temporary table.",
            location=location,
        )


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The likeliest meant of `words`, or None."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.75)
    return found[0] if found else None


@lru_cache(maxsize=256)
def _as_told(path: tuple[str, ...], temporary: str) -> tuple[tuple[str, ...], bool]:
    """A search path with the session's own temporary schema as `pg_temp`; and whether one in it is not known."""
    own = {TEMPORARY, temporary} if temporary else set()
    told = tuple(TEMPORARY if schema in own else schema for schema in path)
    return told, any(is_temporary(s) and s != TEMPORARY for s in told) or (TEMPORARY in told and not own)


class Names:
    """Name resolution in one catalog under one search path (`current_schemas(true)`).

    The session's own temporary schema is `pg_temp` here; those of others cannot be named.
    """

    __slots__ = ("_unsure", "catalog", "path")

    def __init__(self, catalog: Catalog, path: Sequence[str]) -> None:
        self.catalog = catalog
        self.path, unsure = _as_told(tuple(path), catalog.temporary)
        # Where what is temporary cannot be told for sure, no unqualified name can.
        self._unsure = unsure or catalog.stray is not None

    def find(self, var: Node) -> Relation | None:
        """The relation a RangeVar means, or None. Raises NotAnalysableError for names that cannot be checked."""
        location = var.get("location", 0)
        if "catalogname" in var:
            raise with_database((var["catalogname"], str(var.get("schemaname")), var["relname"]), location)
        schema = var.get("schemaname")
        if schema is not None:
            found = self.catalog.relation(self.own(schema, var["relname"], location), var["relname"])
        elif self._unsure:
            raise self._unsure_name(var["relname"], location)
        else:
            found = self.catalog.resolve(var["relname"], self.path)
            self._check_one_meaning(found, location)
        if found is not None:
            check_known(found, location)
        return found

    def _check_one_meaning(self, found: Relation | None, location: int) -> None:
        """Refuse a name that would mean another relation as soon as somebody else drops the one that it means.

        PostgreSQL reads the name when the statement runs, and again after it has waited for a lock on what is being
        dropped: then it is too late to decide. What is temporary only the session itself drops, and it is its own.
        """
        if found is None or found.schema == self.path[-1] or found.schema == TEMPORARY or is_system(found):
            return
        further = [s for s in self.path[self.path.index(found.schema) + 1 :] if s != TEMPORARY]
        if (other := self.catalog.resolve(found.name, further)) is not None:
            raise NotAnalysableError(
                "name.ambiguous",
                f"`{found.name}` could mean more than one relation: `{found.qualified}`, and once that is dropped"
                f" `{other.qualified}`",
                cure=f"Write `{found.qualified}`.",
                location=location,
            )

    def own(self, schema: str, name: str, location: int = 0) -> str:
        """The schema as it is called here. Raises NotAnalysableError for other sessions' temporary schemas."""
        if not is_temporary(schema):
            return schema
        if schema == TEMPORARY or schema == self.catalog.temporary:
            if self.catalog.stray is not None:
                raise self._unsure_name(name, location)
            return TEMPORARY
        raise NotAnalysableError(
            "name.temporary",
            f"`{schema}.{name}` lies in the temporary schema of another session, which is nobody else's",
            cure=f"Write `{TEMPORARY}` for your own.",
            location=location,
        )

    def relation(self, var: Node) -> Relation:
        """The relation a RangeVar means. Raises NotAnalysableError `relation.unknown` in PostgreSQL's words."""
        found = self.find(var)
        if found is None:
            raise self.unknown(var)
        return found

    def unknown(self, var: Node) -> NotAnalysableError:
        """The error for a relation that does not exist."""
        schema, name = var.get("schemaname"), var["relname"]
        full = f"{schema}.{name}" if schema else name
        known = [r for r in self.catalog.relations.values() if not is_system(r)]
        if schema:
            near = nearest(full, (r.qualified for r in known))
        else:
            near = nearest(name, (r.name for r in known if r.schema in self.path))
        if near is None and not schema:
            near = next((r.qualified for r in known if r.name == name), None)
        return NotAnalysableError(
            "relation.unknown",
            f'relation "{full}" does not exist',
            cure=f"Did you mean `{near}`?" if near else None,
            location=var.get("location", 0),
        )

    def check_readable(self, relation: Relation, location: int) -> None:
        """Raise NotAnalysableError for catalogs that no client reads, also behind views of users."""
        if not relation.reads and not is_system(relation) and not relation.name.startswith(_STATEMENT_TEXTS):
            return
        todo, seen = [relation], {relation.oid}
        while todo:
            one = todo.pop()
            if one.name.startswith(_STATEMENT_TEXTS):
                raise NotAnalysableError(
                    "catalog.refused",
                    f"`{one.qualified}` is never readable here: it shows the texts of others' statements",
                    location=location,
                )
            if is_system(one):
                reason = refusal_of_catalog(one.name)
                if one is not relation and one.name in SECRET_COLUMNS:
                    _, reason = SECRET_COLUMNS[one.name]
                if reason:
                    behind = "" if one is relation else f", which `{relation.qualified}` reads,"
                    raise NotAnalysableError(
                        "catalog.refused",
                        f"`{one.qualified}`{behind} is never readable here: {reason}",
                        location=location,
                    )
                continue  # what the server's own views read is the server's business
            for oid in one.reads - seen:
                seen.add(oid)
                if read := self.catalog.relations.get(oid):
                    todo.append(read)

    def overloads(self, words: Sequence[str]) -> list[Function]:
        """Every function that a name could mean: PostgreSQL picks by argument types, we consider all.

        It searches no temporary schema for functions; those there could only be named with it.
        """
        if len(words) > 2:
            raise with_database(words)
        if len(words) > 1 and is_temporary(words[0]):
            raise NotAnalysableError("name.temporary", f"temporary functions such as `{words[-1]}` cannot be analysed")
        if len(words) == 1:
            functions = self.catalog.functions
            return [f for schema in self.path for f in functions.get((schema, words[0]), ())]
        return list(self.catalog.overloads(words[0], words[1]))

    def user_operators(self, words: Sequence[str]) -> list[int]:
        """The functions behind the user-defined operators that an operator name could mean."""
        operators = self.catalog.operators
        if not operators:
            return []
        if len(words) > 2:
            raise with_database(words)
        schemas = self.path if len(words) == 1 else (words[0],)
        return [oid for schema in schemas for oid in operators.get((schema, words[-1]), ())]

    def types(self, words: Sequence[str]) -> list[Type]:
        """The user-defined types with code or casts that a type's name could mean."""
        types = self.catalog.types
        schemas = self.path if len(words) == 1 else (self.own(words[-2], words[-1]) if len(words) > 1 else "",)
        if self._unsure and len(words) == 1 and self.catalog.stray is not None:
            raise self._unsure_name(words[-1], 0)
        if not types:
            return []
        return [types[key] for key in ((schema, words[-1]) for schema in schemas) if key in types]

    def creation_schema(self, schema: str | None, location: int = 0) -> str:
        """The schema in which a CREATE with this (maybe missing) schema name makes its object."""
        if schema is not None:
            return self.own(schema, "…", location)
        for candidate in self.path:
            if not candidate.startswith("pg_"):
                return candidate
        raise NotAnalysableError(
            "schema.none", "no schema has been selected to create in", cure="Qualify the name.", location=location
        )

    def lookup_schemas(self, schema: str | None) -> tuple[str, ...]:
        """Every schema in which an object outside the snapshot (an index, a type …) could be found."""
        if schema is not None:
            return (self.own(schema, "…"),)
        return tuple(s for s in self.path if s == TEMPORARY or not s.startswith("pg_")) or ("pg_catalog",)

    def _unsure_name(self, name: str, location: int) -> NotAnalysableError:
        made = f"the type `{self.catalog.stray}`" if self.catalog.stray is not None else "an object"
        return NotAnalysableError(
            "name.temporary",
            f"`{name}` cannot be told for sure: {made} in a temporary schema on the search path cannot be analysed",
            cure="DISCARD TEMP, or start a new session.",
            location=location,
        )
