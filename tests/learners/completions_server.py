"""A small inference server: OpenAI's completions over the transformers sampler of a model, with faults on demand.

It speaks what vLLM's server speaks, as far as token ids are concerned, over real connections.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from policies import TOKENIZER, cut_as_transformers_cuts, full_logprobs
from transformers import PreTrainedModel

from learners.sampling.sampler import Decoding
from learners.sampling.transformers import TransformersSampler


@dataclass
class Manners:
    """What the server does; may be changed while it runs.

    Args:
        key: The key that it wants, or "".
        served: Names of its models.
        room: Tokens of the longest sequence.
        ids: How it tells ids: in a field, in the names of tokens, or not.
        names_ids: Whether the names of tokens are their ids.
        tempered: Whether log-probabilities are of the distribution that it samples from.
        refusals: What it answers first, once each: statuses, or "cut" for a connection that ends at once.
        cut_after: Tokens after which it closes a connection; 0 for never.
        limit: Tokens of the longest completion, whatever is asked for; 0 for none.
        silent: Whether it never says why a completion ended.
        instead: The token id that it tells in place of every sampled one; None for the right ones.
        wait: Seconds before each token.
        rewrites: Whether it puts a token before each prompt.
    """

    key: str = ""
    served: tuple[str, ...] = ("policy",)
    room: int = 400
    ids: Literal["field", "names", "none"] = "field"
    names_ids: bool = True
    tempered: bool = True
    refusals: list[int | str] = field(default_factory=list)
    cut_after: int = 0
    limit: int = 0
    silent: bool = False
    instead: int | None = None
    wait: float = 0.0
    rewrites: bool = False


class CompletionsServer:
    """The server, in a thread of its own, until `close`.

    Attributes:
        address: Where it is.
        manners: What it does.
        bodies: The requests that it was sent.
        running: Completions that are being written.
        aborted: Completions whose reader went away before their end.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.manners = Manners()
        self.bodies: list[dict[str, Any]] = []
        self.running = self.aborted = 0
        self._model = model
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> str:
        # Ends of turns are the sampler's under test to see.
        self._sampler = TransformersSampler(self._model, TOKENIZER, seed=0, eos=())
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/completions", self._completions)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    def _stranger(self, request: web.Request) -> bool:
        return bool(self.manners.key) and request.headers.get("Authorization") != f"Bearer {self.manners.key}"

    async def _models(self, request: web.Request) -> web.Response:
        if self._stranger(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        listed = [{"id": name, "object": "model", "max_model_len": self.manners.room} for name in self.manners.served]
        return web.json_response({"object": "list", "data": listed})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body, manners = await request.json(), self.manners
        self.bodies.append(body)
        if self._stranger(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        if manners.refusals:
            refusal = manners.refusals.pop(0)
            if refusal == "cut":
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({"error": {"message": "not now"}}, status=refusal if isinstance(refusal, int) else 500)
        if len(body["prompt"]) + body["max_tokens"] > manners.room:
            told = f"This model's maximum context length is {manners.room} tokens."
            return web.json_response({"error": {"message": told, "code": 400}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.running += 1
        try:
            await self._write(body, request, response)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
        return response

    async def _write(self, body: dict[str, Any], request: web.Request, response: web.StreamResponse) -> None:
        manners, stream = self.manners, self._sampler.start((body["seed"],))
        prompt = [1, *body["prompt"]] if manners.rewrites else body["prompt"]
        most = min(body["max_tokens"], manners.limit or body["max_tokens"])
        try:
            stream.append(prompt)
            top_k = max(0, body["top_k"])
            stream.decode(Decoding(body["temperature"], max_tokens=most, top_p=body["top_p"], top_k=top_k))
            await response.write(b": a comment\r\n\r\n")
            for count in range(1, most + 1):
                token = (await stream.first(count)).ids[-1]
                await asyncio.sleep(manners.wait)
                choice = self._choice(body, prompt, list(stream.ids[: len(prompt) + count - 1]), token)
                choice["finish_reason"] = "stop" if token in body["stop_token_ids"] else "length" if count == most else None
                ended = choice["finish_reason"] is not None
                if manners.silent:
                    choice["finish_reason"] = None
                if manners.instead is not None:
                    choice["token_ids"] = [manners.instead]
                choice["prompt_token_ids"] = prompt if count == 1 else None
                await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                if count == manners.cut_after:
                    assert request.transport is not None
                    request.transport.abort()
                    return
                if ended:
                    break
            await response.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')
        finally:
            stream.cancel()

    def _choice(self, body: dict[str, Any], prompt: list[int], before: list[int], token: int) -> dict[str, Any]:
        temperature = (self.manners.tempered and body["temperature"]) or 1.0
        logprobs = full_logprobs(self._model, before, temperature=temperature)[-1]
        if self.manners.tempered and body["temperature"]:
            logprobs = cut_as_transformers_cuts(logprobs, body["top_p"], max(0, body["top_k"]))
        logprobs = logprobs.clamp(min=-9999.0)  # as vLLM has it: JSON has no infinity
        likeliest = {*logprobs.topk(body["logprobs"]).indices.tolist(), token}
        told = {
            "tokens": [self._name(token)],
            "token_logprobs": [float(logprobs[token])],
            "top_logprobs": [{self._name(one): float(logprobs[one]) for one in likeliest}],
        }
        ids = {"token_ids": [token]} if self.manners.ids == "field" else {}
        return {"index": 0, "text": TOKENIZER.decode([token]), "logprobs": told, **ids}

    def _name(self, token: int) -> str:
        named = self.manners.names_ids and self.manners.ids != "none"
        return f"token_id:{token}" if named else TOKENIZER.decode([token])
