"""The policy's vocabulary: who asks, what a statement demands, what was decided. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import NamedTuple

from policy.catalog import Catalog
from policy.detection import Detection
from policy.pseudonyms import MaskKey


class PrincipalKind(StrEnum):
    """Whether a verified identity is a person or a program acting for one."""

    HUMAN = "human"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified identity.

    `subject` and `issuer` together name it (RFC 7519 `sub`, `iss`). `on_behalf_of` is the subject of the human for
    whom an agent's token was issued (RFC 8693 `act`), or None: at the same issuer, or at `human_issuer` where that is
    another one, as it is for a client certificate.
    """

    subject: str
    issuer: str
    kind: PrincipalKind
    groups: frozenset[str] = frozenset()
    email: str | None = None
    name: str | None = None
    on_behalf_of: str | None = None
    human_issuer: str | None = None
    _hash: int = field(init=False, repr=False, compare=False)  # what is known of somebody is looked up per statement

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.subject, self.issuer, self.kind.value, self.groups, self.email)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def human(self) -> tuple[str, str] | None:
        """The (issuer, subject) of the human behind this principal; None for an agent of nobody."""
        if self.kind is PrincipalKind.HUMAN:
            return (self.issuer, self.subject)
        return (self.human_issuer or self.issuer, self.on_behalf_of) if self.on_behalf_of else None


@dataclass(frozen=True, slots=True)
class Users:
    """People named one by one: subjects or e-mail addresses of any issuer, or (subject, issuer) pairs.

    A subject is what it is; an address is the same in capitals, or a rule that denies would be left by typing them.
    """

    names: frozenset[str] = frozenset()
    people: frozenset[tuple[str, str]] = frozenset()
    _addresses: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_addresses", frozenset(as_address(name) for name in self.names if "@" in name))

    def __bool__(self) -> bool:
        return bool(self.names or self.people)

    def __contains__(self, principal: Principal) -> bool:
        return (
            principal.subject in self.names
            or (principal.email is not None and as_address(principal.email) in self._addresses)
            or (principal.subject, principal.issuer) in self.people
        )

    def __le__(self, other: Users) -> bool:
        """Whether the other names everybody whom these name."""
        return self.names <= other.names and all(
            person in other.people or person[0] in other.names for person in self.people
        )


def as_address(email: str) -> str:
    """In small letters, Latin ones only: the Kelvin sign is no `k`."""
    return email.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


NOBODY = Users()


class Action(StrEnum):
    """What a demand does to its object."""

    SELECT = "select"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    CREATE = "create"
    ALTER = "alter"
    DROP = "drop"
    GRANT = "grant"
    MAINTAIN = "maintain"  # VACUUM, ANALYZE, REINDEX, CLUSTER, REFRESH
    LOCK = "lock"
    CALL = "call"
    EXPLAIN = "explain"
    LISTEN = "listen"
    NOTIFY = "notify"

    __hash__ = str.__hash__  # what Enum would do in Python, for every look into a set of actions


class ObjectKind(StrEnum):
    """What a demand is about."""

    RELATION = "relation"
    FUNCTION = "function"
    SCHEMA = "schema"
    TYPE = "type"
    ROLE = "role"
    CHANNEL = "channel"
    OTHER = "other"

    __hash__ = str.__hash__


class ObjectName(NamedTuple):
    """An object as the catalog names it: never as the client spelled it."""

    kind: ObjectKind
    schema: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a relation that a demand touches.

    `whole` is what stands for all of them, such as "`*`"; `generated` are those that stand for others, too.
    """

    names: frozenset[str]
    whole: str | None = None
    generated: tuple[str, ...] = ()


class Demand(NamedTuple):
    """One (action, object) pair that a statement needs.

    `oid` is the object's OID where it exists. `location` is a byte offset into the client's text.
    `builtin` marks a function that the curated lists call harmless: the default policy allows it.
    `bounded` is False for an UPDATE or DELETE that reaches every row. `via` says what makes the statement need
    it where the text does not name it, such as "the trigger `t` of `public.orders`". `functions` are, for a call of
    a user function, all overloads that it could mean, by OID. `columns` are told only where a policy has rules about
    columns; None means that any may be touched.
    """

    action: Action
    object: ObjectName
    oid: int | None = None
    location: int = 0
    builtin: bool = False
    bounded: bool = True
    via: str | None = None
    functions: tuple[int, ...] = ()
    columns: Columns | None = None

    def __str__(self) -> str:
        return f"{self.action.value} {self.object}"


class Transaction(StrEnum):
    """What a statement does to the transaction it runs in."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"


@dataclass(frozen=True, slots=True)
class Effects:
    """What a statement changes besides the rows it names; the gateway keeps its books by this."""

    writes: bool = False  # anything but reading
    transaction: Transaction | None = None
    search_path: bool = False  # may change what an unqualified name means: ask the upstream again
    catalog: bool = False  # may change the schema: take a new snapshot
    session: bool = False  # leaves something behind in the session: SET, PREPARE, DECLARE, LISTEN …
    prepares: str | None = None  # PREPARE name
    executes: str | None = None  # EXECUTE name
    deallocates: str | None = None  # DEALLOCATE name; "" for ALL
    declares: str | None = None  # DECLARE name: a portal that a client may describe
    closes: str | None = None  # CLOSE name; "" for ALL
    copy_in: bool = False
    copy_out: bool = False
    moves_names: bool = False  # may change the search path while it runs
    late_names: bool = False  # reads names while it runs: a function's body that is text


class Analysis(NamedTuple):
    """Facts about exactly one statement, from the parse tree and the catalog.

    `text` is the client's statement with its comments blanked (same length, UTF-8): the base of every
    rewrite. `kind` is the parser's node tag in PostgreSQL's spelling, such as `SelectStmt`.
    `relations` holds the OIDs of every relation reached, views opened up.
    """

    text: bytes
    kind: str
    demands: tuple[Demand, ...]
    effects: Effects = Effects()
    relations: frozenset[int] = frozenset()
    parameters: int = 0  # the highest $n

    def means_other(self, before: Analysis, catalog: Catalog) -> bool:
        """Whether a name that meant a relation `before` means another one now, although the first is still there.

        PostgreSQL reads the names of a prepared statement anew where the search path or what they meant has changed,
        not where something was made that hides it.
        """
        now = {d.oid for d in self.demands if d.object.kind is ObjectKind.RELATION}
        then = {d.oid for d in before.demands if d.object.kind is ObjectKind.RELATION and d.via is None}
        return any(oid in catalog.relations for oid in then - now if oid is not None)


class Effect(IntEnum):
    """What a verdict says; a larger one is stricter and wins."""

    ALLOW = 0
    APPROVE = 1
    DENY = 2

    def __str__(self) -> str:
        return self.name.lower()


class Reason(NamedTuple):
    """Why: one sentence (lower case, no full stop, the client's words in back-ticks), and its cure.

    `code` is stable and greppable, such as `rule.matched`, `rule.none`, `syntax`, `node.unknown`,
    `mask.write`. `rule` names the deciding rule with its place in the file, where one decided.
    """

    effect: Effect
    code: str
    text: str
    rule: str | None = None
    demand: Demand | None = None
    cure: str | None = None
    location: int | None = None  # byte offset into the client's text


@dataclass(frozen=True, slots=True)
class Approver:
    """One person by name. Without an issuer it is a subject at the issuer of whoever asks."""

    subject: str
    issuer: str | None = None

    def __str__(self) -> str:
        return f"{self.subject} of {self.issuer}" if self.issuer else self.subject


@dataclass(frozen=True, slots=True)
class ApprovalTerms:
    """What an `approve` rule asks for: any of these groups, this many distinct humans, within this time.

    One human of `break_glass` or `break_glass_users` may decide alone, in an emergency. A yes needs a login that is
    no older than `fresh`, and of one of the classes `acr`; where they say nothing, any login does.
    """

    groups: frozenset[str]
    quorum: int
    expires: timedelta
    rule: str
    users: frozenset[Approver] = frozenset()
    owner_may_approve: bool = False
    break_glass: frozenset[str] = frozenset()
    break_glass_users: frozenset[Approver] = frozenset()
    fresh: timedelta | None = None
    acr: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """The approvers, groups first."""
        return [*sorted(self.groups), *sorted(map(str, self.users))]


@dataclass(frozen=True, slots=True)
class Splice:
    """`text[start:end]` of the original was replaced by `replacement` (byte offsets)."""

    start: int
    end: int
    replacement: bytes


@dataclass(frozen=True, slots=True)
class MaskedColumn:
    """A column that the rewrite masked: which one, by which kind, by which rule of the policy."""

    relation: str
    column: str
    kind: str
    rule: str
    path: tuple[str, ...] = ()  # of the value inside the column, where not all of it is masked

    def __str__(self) -> str:
        return ".".join((self.relation, self.column, *self.path))

    @property
    def how(self) -> str:
        """The kind, and where in the column: `redact`, `redact of phone.home`."""
        return f"{self.kind} of {'.'.join(self.path)}" if self.path else self.kind


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The text that runs, and how it came from the client's.

    `origins` are the (relation OID, attribute number) pairs whose raw values the rewrite hides; one of
    them, or a whole row (attribute 0) of their relations, in a RowDescription means that it failed.
    `filtered` names the relations of which only some rows are read, with the policy's entry.
    `secrets` are the bytes of `sql` that only the server may see: whoever shows the text shows `shown`.
    `detection` is what is looked for in what the text delivers; None for nothing.
    """

    sql: bytes
    splices: tuple[Splice, ...] = ()
    masked: tuple[MaskedColumn, ...] = ()
    origins: frozenset[tuple[int, int]] = frozenset()
    filtered: tuple[str, ...] = ()
    secrets: frozenset[bytes] = field(default=frozenset(), repr=False)
    detection: Detection | None = None
    withheld: bool = False  # rules about columns withhold some of a relation: errors must not show its rows either

    @property
    def hides(self) -> bool:
        """Whether something is hidden: then texts of errors must not show values."""
        return bool(self.masked or self.origins or self.filtered or self.withheld)

    @property
    def shown(self) -> str:
        """The text that runs, without its secrets: for the audit and for people."""
        return self.without_secrets(self.sql.decode("utf-8"))

    def without_secrets(self, text: str) -> str:
        """Any text, with the secrets in it blacked out."""
        for secret in self.secrets:
            text = text.replace(secret.decode("ascii"), "…key…")
        return text

    def original_offset(self, offset: int) -> int | None:
        """The client's byte offset of a byte of `sql`; None inside generated text."""
        shift = 0
        for splice in self.splices:
            start = splice.start + shift
            if offset < start:
                break
            if offset < start + len(splice.replacement):
                return None
            shift += len(splice.replacement) - (splice.end - splice.start)
        return offset - shift


class Verdict(NamedTuple):
    """Allow, approve or deny, with every reason; `rewrite` is None exactly when the effect is deny."""

    effect: Effect
    reasons: tuple[Reason, ...]
    rewrite: Rewrite | None = None
    terms: tuple[ApprovalTerms, ...] = ()  # all must be met


class Decision(NamedTuple):
    """What the engine returns for one statement. `analysis` is None where the text has none.

    `counts` says that the verdict depends on how many rows the statement changes, and that its command tag
    will tell: whoever runs it decides again with an estimate before and with the count after. `streams` says the
    same of a read, whose rows are counted as they come: beyond `at_most` the verdict would be a stricter one. It was
    decided by the `expects` rows that the planner, or an earlier run, tells.

    `conceals` says that its parameters may be values that are masked for somebody: then they are recorded as
    digests, whoever runs it.

    `standing` is what the policy was told of time and session (`Policy.standing`).
    """

    verdict: Verdict
    analysis: Analysis | None
    policy: str  # the policy's hash
    catalog: str  # the catalog's epoch
    counts: bool = False
    streams: bool = False
    expects: int | None = None
    at_most: int | None = None
    conceals: bool = False
    standing: tuple[bool | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What conditions are asked about besides the demand; None where it is not known.

    `rows` is how many rows the statement changes, or a read returns: the planner's estimate before it runs, the
    count after. `address` is the client's as the door sees it, `client` what it calls itself, `age` how long the
    session has been open.
    """

    rows: int | None = None
    now: datetime | None = None
    door: str | None = None
    address: str | None = None
    client: str | None = None
    age: timedelta | None = None


NOTHING_KNOWN = Circumstances()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision depends on besides policy, principal and text.

    `search_path` is the upstream's own `current_schemas(true)`. `prepared` maps the names of the
    session's SQL-level prepared statements to what they were decided as. `mask_key` is the configured
    secret of `hash` masks, None where there is none: such masks then refuse.
    """

    connection: str
    catalog: Catalog
    search_path: tuple[str, ...]
    prepared: Mapping[str, Decision] = field(default_factory=dict)
    mask_key: MaskKey | None = None
    circumstances: Circumstances = NOTHING_KNOWN
