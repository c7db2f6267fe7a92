"""YAML text to plain data with a place for every value, so that each complaint names file, line and column."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]

# Aliases can make a small file a huge document ("billion laughs"); no honest one comes near this.
_MAX_NODES: Final = 100_000
_MAX_DEPTH: Final = 100


class DocumentError(Exception):
    """A file is wrong at one place. `str()` is `file:line:column: message; cure`; lines and columns count from 1."""

    def __init__(self, source: str, line: int, column: int, message: str, cure: str | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line
        self.column = column
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}: {self.message}"
        return f"{place}; {self.cure}" if self.cure else place


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, and where each part of it stands in `source`."""

    source: str
    data: Any
    places: Mapping[Path, tuple[int, int]]
    keys: Mapping[Path, tuple[int, int]]

    def locate(self, path: Sequence[str | int]) -> tuple[int, int]:
        """(line, column) of the value at this path, or of the nearest value that holds it."""
        whole = tuple(path)
        for length in range(len(whole), -1, -1):
            if place := self.places.get(whole[:length]):
                return place
        return (1, 1)

    def locate_key(self, path: Sequence[str | int]) -> tuple[int, int]:
        """(line, column) of the key at the end of this path, or of its value."""
        return self.keys.get(tuple(path)) or self.locate(path)

    def error(self, path: Sequence[str | int], message: str, cure: str | None = None) -> DocumentError:
        """An error at the value of this path."""
        return DocumentError(self.source, *self.locate(path), message, cure)


def parse_document(text: str, source: str) -> Document:
    """Read one YAML document. Raises DocumentError: syntax, duplicate or non-text keys, tags, alias bombs."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = error.problem or error.context or "the file is not YAML"
        raise DocumentError(source, line, column, problem, "check indentation, quotes and colons") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise DocumentError(source, line, column, "a character that YAML does not allow", "remove it") from None
    except RecursionError:
        raise DocumentError(source, 1, 1, "the file nests too deep", "flatten it") from None
    builder = _Builder(source)
    data = None if root is None else builder.build(root, ())
    return Document(source, data, builder.places, builder.keys)


class _Builder:
    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Path, tuple[int, int]] = {}
        self.keys: dict[Path, tuple[int, int]] = {}
        self._scalars = yaml.SafeLoader("")
        self._count = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._count += 1
        if self._count > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise self._error(node, "the document is too large once its aliases are written out")
        self.places[path] = _place(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._error(node, f"the tag `{node.tag}` has no meaning here", "remove it")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a word")
            key = str(key_node.value)
            if key in data:
                raise self._error(key_node, f"the key `{key}` stands here twice", "keep one of them")
            self.keys[(*path, key)] = _place(key_node)
            data[key] = self.build(value_node, (*path, key))
        return data

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise self._error(node, f"the tag `{node.tag}` has no meaning here", "remove it")
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError):
            raise self._error(node, f"`{node.value}` cannot be read as a value", "put it in quotes") from None

    def _error(self, node: yaml.Node, message: str, cure: str | None = None) -> DocumentError:
        return DocumentError(self.source, *_place(node), message, cure)


def _place(node: yaml.Node) -> tuple[int, int]:
    return (node.start_mark.line + 1, node.start_mark.column + 1)


def validate(model: type[M], document: Document) -> M:
    """The document as this model. Raises DocumentError for the first complaint, by place in the file."""
    data = {} if document.data is None else document.data
    try:
        return model.model_validate(data)
    except ValidationError as error:
        items = [dict(item) for item in error.errors(include_url=False)]
        # Of several complaints about one place, ours knows best.
        items.sort(key=lambda item: item["type"] != "value_error")
        raise min((_complaint(document, model, i) for i in _deepest(document, items)), key=_by_place) from None


def _by_place(error: DocumentError) -> tuple[int, int]:
    return (error.line, error.column)


def _deepest(document: Document, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without complaints about a value as a whole where another one is about something inside it.

    Where alternatives are allowed, pydantic complains of each: the one that got furthest was meant.
    """
    paths = [_data_path(document.data, item["loc"]) for item in items]
    # A key that is missing lies inside what it is missing from.
    reached = [
        (*path, *item["loc"][-1:]) if item["type"] == "missing" else path
        for item, path in zip(items, paths, strict=True)
    ]
    return [
        item
        for item, path in zip(items, paths, strict=True)
        if len(item["loc"]) == 1 or not _goes_on(path, paths if item["type"] == "missing" else reached)
    ]


def _goes_on(path: Path, others: Sequence[Path]) -> bool:
    """Whether one of the others leads further inside."""
    return any(other[: len(path)] == path and len(other) > len(path) for other in others)


_IN_OUR_WORDS: Mapping[str, tuple[str, str]] = {
    "model_type": ("a mapping is wanted here", "write `key: value` lines"),
    "dict_type": ("a mapping is wanted here", "write `key: value` lines"),
    "list_type": ("a list is wanted here", "write `[one, two]`, or lines that begin with `-`"),
    "too_short": ("this must not be empty", "give at least one"),
}


def _complaint(document: Document, model: type[BaseModel], item: Mapping[str, Any]) -> DocumentError:
    path, kind = _data_path(document.data, item["loc"]), item["type"]
    message, cure = str(item["msg"]), None
    place = document.locate(path)
    if kind == "extra_forbidden":
        key = str(item["loc"][-1])
        place = document.locate_key(path)
        message = f"unknown key `{key}`"
        known = sorted(_known_keys(model, item["loc"][:-1]))
        near = difflib.get_close_matches(key, known, n=1)
        cure = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}" if known else None
    elif kind == "missing":
        message = f"the key `{item['loc'][-1]}` is missing"
        cure = "add it"
    elif kind in ("value_error", "assertion_error"):
        message, _, hint = str(item["ctx"]["error"]).partition("; ")
        cure = hint or None
    elif kind in _IN_OUR_WORDS:
        message, cure = _IN_OUR_WORDS[kind]
    else:
        message = message[:1].lower() + message[1:]
        if not isinstance(item.get("input"), dict | list):
            message = f"`{item.get('input')}`: {message}"
    return DocumentError(document.source, *place, message, cure)


def _data_path(data: Any, location: Sequence[str | int]) -> Path:
    """pydantic's `loc` without the names of union members, which stand for no step in the data."""
    path: list[str | int] = []
    for step in location:
        known = step in data if isinstance(data, dict) else isinstance(data, list) and step in range(len(data))
        if known:
            data = data[step]
            path.append(step)
    return tuple(path)


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> set[str]:
    """The keys of the model that stands at this location."""
    current: list[type[BaseModel]] = [model]
    for step in location:
        if isinstance(step, int):
            continue
        following = [
            inner
            for one in current
            for name, field in one.model_fields.items()
            if (field.alias or name) == step
            for inner in _models_in(field.annotation)
        ]
        current = following or current
    return {field.alias or name for one in current for name, field in one.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
