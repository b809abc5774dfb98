"""A tool behind HTTP: arguments go out as JSON or in the address, and what comes back is what the policy reads.

Whose doing a failure is, is decided here once. The service understood the call and says no (status 400, 404, 409 or 422), or
it took the call and did not finish in time: the agent's own doing. The service cannot be reached, breaks, refuses whoever
asks, or answers what is no text: the environment's fault.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from agent_envs.exchange import Exchange, Reply, TooSlow, bare
from agent_envs.faults import EnvironmentFault, ForkError
from agent_envs.tool import Tool, ToolResult

_BODY = ("PATCH", "POST", "PUT")
_METHODS = (*_BODY, "GET", "DELETE")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class HttpTool(Tool):
    """Calls a service: one request a call.

    The arguments of a POST, PUT or PATCH are its JSON body, those of a GET or DELETE stand in the query. A ``{name}`` in the
    address is filled with that argument, which is quoted and then stands nowhere else. A reply in JSON is given to the
    policy in compact form (a sole string as it is), any other text as it came.

    A time limit counts against the agent once the service has been reached, for a call may well be one that takes for ever;
    a service that cannot be reached in that time is an environment fault. Requests are repeated while there is time, with
    growing pauses, where that cannot do a thing twice: where the service was never reached or says that there were too many
    requests (429); and, for methods that are idempotent (GET, PUT, DELETE) or a service without state, also after it broke
    (500 and above) or the connection was lost. Redirects are followed on the same host only.

    Args:
        name: What the policy calls it by.
        description: One or two sentences for the policy.
        parameters: JSON schema of the arguments, ``{"type": "object", "properties": ..., "required": [...]}``.
        url: Address of the service, such as ``"http://localhost:8000/items/{id}"``.
        method: ``"GET"``, ``"POST"``, ``"PUT"``, ``"PATCH"`` or ``"DELETE"``.
        headers: Sent with each request, such as ``{"Authorization": "Bearer ..."}``; never shown.
        timeout: Seconds that a call may take, repeated requests and the pauses between included.
        policy_statuses: Statuses that are the agent's own doing; the policy reads the reply's text, with fault ``error``.
        retries: How often a request is repeated at most.
        max_bytes: Of a reply; a longer one is cut while it is read, and marked.
        fidelity: ``"exact"`` says that the service keeps nothing from call to call, so that a copy of an episode can go on
            calling it; ``"none"``, that an episode with this tool cannot be copied.
        examples: Arguments of calls that can be made at any time of an episode; checks make these calls.

    Raises:
        ValueError: An argument is none of those it may be.

    Example:
        >>> tool = HttpTool(
        ...     "weather",
        ...     "The weather of a city.",
        ...     {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        ...     "http://localhost:8000/weather/{city}",
        ...     method="GET",
        ... )
        >>> tool
        HttpTool('weather', 'GET http://localhost:8000/weather/{city}')
    """

    def __init__(
        self,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        url: str,
        *,
        method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST",
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        policy_statuses: Collection[int] = (400, 404, 409, 422),
        retries: int = 2,
        max_bytes: int = 1 << 20,
        fidelity: Literal["none", "exact"] = "none",
        examples: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        for what, value, known in (("method", method, _METHODS), ("fidelity", fidelity, ("none", "exact"))):
            if value not in known:
                raise ValueError(f"{what} is one of {', '.join(map(repr, known))}; found {value!r}")
        if not timeout > 0 or retries < 0 or max_bytes < 1:
            raise ValueError(
                "timeout is above 0 s, retries are at least 0 and max_bytes at least 1; "
                f"found timeout={timeout!r}, retries={retries!r}, max_bytes={max_bytes!r}"
            )
        if wrong := sorted(status for status in policy_statuses if not 400 <= status < 500):
            raise ValueError(f"policy_statuses are from 400 to 499, for from 500 on the service itself broke; found {wrong}")
        _check_address(url, parameters)
        self.name = name
        self.description = description
        self.parameters = parameters
        self.url = url
        self.method = method
        self.timeout: float = timeout
        self.policy_statuses = frozenset(policy_statuses)
        self.fidelity = fidelity
        self.examples = tuple(examples)
        self._service = f"the service of tool {name!r} at {bare(url)}"
        self._exchange = Exchange(
            self._service,
            method,
            headers or {},
            timeout,
            retries,
            max_bytes,
            final=self.policy_statuses,
            harmless=fidelity == "exact",
        )

    def __repr__(self) -> str:
        return f"HttpTool({self.name!r}, '{self.method} {bare(self.url)}')"

    def run(self, /, **arguments: Any) -> ToolResult:
        """Makes the request.

        Returns:
            The reply's text; faults are ``bad_arguments`` (a value that cannot stand in the address), ``error`` (the service
            refused the call) and ``timeout``.

        Raises:
            EnvironmentFault: The service cannot be reached, broke, or answered what is no text.
        """
        names = set(_PLACEHOLDER.findall(self.url))
        rest = {name: value for name, value in arguments.items() if name not in names}
        try:
            url = _filled(self.url, arguments)
        except ValueError as problem:
            return ToolResult(f"{self.name}: {problem}", "bad_arguments")
        body = None
        if self.method in _BODY:
            body = json.dumps(rest).encode("ascii")
        elif rest:
            url += ("&" if urlsplit(url).query else "?") + urlencode(_in_query(rest), doseq=True, errors="replace")
        try:
            reply = self._exchange.ask(url, body)
        except TooSlow:
            return ToolResult(f"timed out after {self.timeout:g} s", "timeout")
        if 200 <= reply.status < 300:
            return ToolResult(self._text(reply) or "(no output)")
        if reply.status in self.policy_statuses:
            return ToolResult(_refusal(reply) or f"the service refused the call (status {reply.status})", "error")
        raise EnvironmentFault(
            f"{self._service} answers status {reply.status} ({reply.excerpt}): see that the address, the method and the "
            "headers are right, or name the status in policy_statuses"
        )

    def fork(self) -> HttpTool:
        """A tool of its own for the same service, which keeps nothing.

        Raises:
            ForkError: The service may keep something.
        """
        if self.fidelity == "none":
            raise ForkError(
                f"tool {self.name!r} cannot be copied, since what its service keeps is out of reach; if that keeps nothing "
                "from call to call, say so by fidelity='exact'"
            )
        twin = copy.copy(self)
        twin._exchange = copy.copy(self._exchange)  # which leaves its share in the connections here
        return twin

    def close(self) -> None:
        """Gives back its share in the process's connections."""
        self._exchange.close()

    def _text(self, reply: Reply) -> str:
        kind, charset = _content_type(reply)
        if kind and not (kind.startswith("text/") or _is_json(kind) or kind in ("application/xml", "application/yaml")):
            raise EnvironmentFault(f"{self._service} answers with {kind}; expected JSON or text")
        try:
            text = reply.body.decode(charset, "replace" if reply.cut else "strict")
            if reply.cut:
                return f"{text}\n[the rest of the reply was left out]"
            return _compact(text) if _is_json(kind) and text.strip() else text
        except (ValueError, LookupError, RecursionError) as error:
            raise EnvironmentFault(
                f"{self._service} answers what is no {kind or 'text'} ({type(error).__name__}: {error})"
            ) from error


def _check_address(url: str, parameters: Mapping[str, Any]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError(
            "url is the address of a service, such as 'http://localhost:8000/items/{id}', without a login (which goes into "
            f"headers); found {bare(url)!r}"
        )
    if _PLACEHOLDER.search(parts.netloc):
        raise ValueError(f"url may have placeholders in its path and query only, found {parts.netloc!r}")
    if missing := sorted(set(_PLACEHOLDER.findall(url)) - set(parameters.get("required", ()))):
        raise ValueError(f"url has the placeholders {missing}, which parameters must name and require")


def _filled(url: str, arguments: Mapping[str, Any]) -> str:
    """The address with its placeholders filled.

    Raises:
        ValueError: A part of the path would be empty or made of dots, and so lead to another place on the same host.
    """

    def fill(template: str) -> str:
        return _PLACEHOLDER.sub(lambda match: quote(_plain(arguments[match[1]]), safe="", errors="replace"), template)

    path, mark, query = url.partition("?")
    parts = []
    for part in path.split("/"):
        parts.append(fill(part))
        if parts[-1] != part and parts[-1] in ("", ".", ".."):
            raise ValueError(f"{part} in its address cannot be {parts[-1]!r}")
    return "/".join(parts) + mark + fill(query)


def _plain(value: Any) -> str:
    """A value as it stands in an address."""
    return value if isinstance(value, str) else json.dumps(value)


def _in_query(arguments: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Lists as a name that comes again, null left out."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return {name: list(map(_plain, value)) if isinstance(value, list) else _plain(value) for name, value in given.items()}


def _content_type(reply: Reply) -> tuple[str, str]:
    kind, _, options = reply.headers.get("Content-Type", "").partition(";")
    charset = re.search(r"charset=\"?([\w.:-]+)", options)
    return kind.strip().lower(), charset[1] if charset else "utf-8"


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _compact(text: str) -> str:
    value = json.loads(text)
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _refusal(reply: Reply) -> str:
    """The text of a refusal, whatever it is."""
    kind, _ = _content_type(reply)
    text = reply.body.decode("utf-8", "replace").strip()
    try:
        return _compact(text) if _is_json(kind) and text else text
    except (ValueError, RecursionError):
        return text
