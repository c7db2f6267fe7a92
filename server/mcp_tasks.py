"""The Tasks extension of MCP (SEP-2663): for clients that declare it, a wait for people is a task.

A task is an approval: its id is the approval's, its state lies in the audit and outlives this process. The first
`tasks/get` after people have approved runs the statement; its result is kept until it is fetched, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS, CallToolRequestParams, CallToolResult, InputRequiredResult
from mcp_types import MISSING_REQUIRED_CLIENT_CAPABILITY, RequestParams
from pydantic import Field

from audit.approvals import ApprovalRecord, State
from gateway.admission import Gateway
from gateway.errors import ApprovalRejectedError, CountersignError
from gateway.voting import asked
from server.mcp_sessions import Identify, client_of
from server.mcp_settings import McpSettings

IDENTIFIER = "io.modelcontextprotocol/tasks"
# An answer to `tasks/get` waits so long for a statement that runs; then it is still `working`.
_RUN_SECONDS = 5.0
# Results that wait to be fetched, the oldest of which make room.
_RESULTS = 100

RequestContext = ServerRequestContext[Any, Any]
CallTool = Callable[[str, dict[str, Any], Context[Any, Any]], Awaitable[CallToolResult | InputRequiredResult]]


class TaskParams(RequestParams):
    """Names a task."""

    task_id: Annotated[str, Field(alias="taskId", min_length=1, max_length=100)]


class UpdateParams(TaskParams):
    """Answers to what a task has asked; ours ask nothing."""

    input_responses: Annotated[dict[str, Any], Field(alias="inputResponses")]


@dataclass(frozen=True, slots=True)
class _Run:
    """A statement that runs, or has run. Its result is for the place that asked: the rules were asked about that."""

    task: asyncio.Task[CallToolResult | InputRequiredResult]
    host: str | None


class Tasks(Extension):
    """Turns pending answers into tasks, and serves them. `bind` gives it the server's tools."""

    identifier = IDENTIFIER

    def __init__(self, gateway: Gateway, identify: Identify, settings: McpSettings) -> None:
        self._gateway = gateway
        self._identify = identify
        self._settings = settings
        self._call: CallTool | None = None
        self._running: dict[str, _Run] = {}

    def bind(self, call: CallTool) -> None:
        """The tools, by which everything is done: a task is another face of them."""
        self._call = call

    def methods(self) -> Sequence[MethodBinding]:
        """The extension's three methods."""
        return (
            MethodBinding("tasks/get", TaskParams, self._get),
            MethodBinding("tasks/update", UpdateParams, self._update),
            MethodBinding("tasks/cancel", TaskParams, self._cancel),
        )

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """The tool's answer; where it is a wait for people and the client knows tasks, a task."""
        result = await call_next(ctx)
        if params.name == "await_approval" or not _declared(ctx) or not isinstance(result, CallToolResult):
            return result
        pending = (result.structured_content or {}).get("pending")
        if not pending:
            return result
        record = await self._gateway.approvals.get(pending["id"])
        return {"resultType": "task", **self._task(record, "working", f"waits for {pending['who']}: {pending['why']}")}

    async def close(self) -> None:
        """Cancel what runs."""
        for run in self._running.values():
            run.task.cancel()
        await asyncio.gather(*(run.task for run in self._running.values()), return_exceptions=True)

    # -- the methods ----------------------------------------------------------------------------------

    async def _get(self, ctx: RequestContext, params: TaskParams) -> HandlerResult:
        record = await self._seen(ctx, params.task_id)
        if record.state is State.REQUESTED:
            return self._answer(record, "working", "waits for people")
        if record.state is State.CANCELLED:
            return self._answer(record, "cancelled", "the request was withdrawn")
        run, host = self._running.get(record.id), client_of(_context(ctx)).host
        if run is not None and run.host != host:
            raise _unknown(record.id)
        task = run.task if run is not None else self._begin(ctx, record.id, host)
        done, _ = await asyncio.wait([task], timeout=_RUN_SECONDS)
        if not done:
            return self._answer(record, "working", "is approved, and runs")
        self._running.pop(record.id, None)
        if task.cancelled():
            return self._answer(record, "cancelled", "the run was cancelled")
        result = task.result().model_dump(mode="json", by_alias=True, exclude_none=True)
        return self._answer(record, "completed", None) | {"result": result}

    async def _update(self, ctx: RequestContext, params: UpdateParams) -> HandlerResult:
        await self._seen(ctx, params.task_id)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: RequestContext, params: TaskParams) -> HandlerResult:
        record = await self._seen(ctx, params.task_id)
        if record.state is State.REQUESTED:
            await self._tool(ctx, "withdraw", record.id)
        elif (run := self._running.get(record.id)) is not None:
            run.task.cancel()
        return {"resultType": "complete"}

    # -- inside ---------------------------------------------------------------------------------------

    def _begin(
        self, ctx: RequestContext, approval: str, host: str | None
    ) -> asyncio.Task[CallToolResult | InputRequiredResult]:
        finished = [name for name, run in self._running.items() if run.task.done()]
        for name in finished[: max(0, len(self._running) + 1 - _RESULTS)]:
            del self._running[name]
        task = asyncio.create_task(self._tool(ctx, "await_approval", approval), name="mcp task")
        self._running[approval] = _Run(task, host)
        return task

    async def _tool(self, ctx: RequestContext, name: str, approval: str) -> CallToolResult | InputRequiredResult:
        assert self._call is not None, "the door binds its tools before it opens"
        return await self._call(name, {"id": approval}, _context(ctx))

    async def _seen(self, ctx: RequestContext, task: str) -> ApprovalRecord:
        """The approval, for the principal who asked: to all others the task does not exist."""
        if not _declared(ctx):
            needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {IDENTIFIER: {}}}}
            raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "Missing required client capability", needed)
        unknown = _unknown(task)
        try:
            record, caller = await self._gateway.approvals.get(task), await self._identify()
        except ApprovalRejectedError:
            raise unknown from None
        except CountersignError as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from None
        if not asked(record, caller.principal):
            raise unknown
        return record

    def _answer(self, record: ApprovalRecord, status: str, message: str | None) -> dict[str, Any]:
        return {"resultType": "complete", **self._task(record, status, message)}

    def _task(self, record: ApprovalRecord, status: str, message: str | None) -> dict[str, Any]:
        life = record.expires - record.created
        said = {
            "taskId": record.id,
            "status": status,
            "createdAt": _time(record.created),
            "lastUpdatedAt": _time(max([record.created, *(vote.time for vote in record.votes)])),
            "ttlMs": int(life.total_seconds() * 1000),
            "pollIntervalMs": self._settings.poll_seconds * 1000,
        }
        return said | ({"statusMessage": message} if message else {})


def _context(ctx: RequestContext) -> Context[Any, Any]:
    return Context(request_context=ctx)


def _unknown(task: str) -> MCPError:
    return MCPError(INVALID_PARAMS, f"there is no task `{task}`")


def _declared(ctx: RequestContext) -> bool:
    capabilities = ctx.session.client_capabilities
    return capabilities is not None and IDENTIFIER in (capabilities.extensions or {})


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
