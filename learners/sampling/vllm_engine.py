"""vLLM's engine on an event loop of its own: requests, weights, memory, and its end.

The engine's front end is asyncio, and bound to the loop that it began on; what it computes, it computes in processes of its
own. So that a sampler can be used from one event loop after another, and told of new weights from where nothing can be
awaited, the front end lives on a loop in a thread here. Results go to whoever asked by ``call_soon_threadsafe``.

Weights travel as a checkpoint in a temporary folder (TMPDIR says where): the same files and the same code for the first
weights and for every later ones, for one device and for several.

An engine whose processes have died is a `SamplerFault` for whoever waits for it: requests, weights, sleep and all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from vllm import AsyncEngineArgs, SamplingParams
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from learners.sampling.progress_bars import no_progress_bars
from learners.sampling.sampler import SamplerFault

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 1024  # sequences in a batch; more than the tokens of one vLLM refuses
_BATCH_TOKENS = 4096  # on CPU, whole prompts at a time; more where a sequence may have more
_PATIENCE = 10.0  # seconds within which abandoned requests have given back what they hold
_LOOK_EVERY = 1.0  # seconds after which it is looked whether the engine still lives
_DEAD = "vLLM's engine has died: what it wrote above says of what (of too little memory, where it wrote nothing)"
_ENDING = 60.0  # seconds after which the engine's processes are killed that were told to end


class VllmEngine:
    """The engine, from its start to `close`.

    Args:
        model: The policy: its configuration, number format and, where it is on one, its GPU. The engine takes that one too;
            for a policy on the CPU, the GPU that the calling thread would take.
        weights: The first weights, by the names that they had when the model was loaded.
        length: Tokens of the longest sequence.
        concurrency: Sequences that are advanced at once.
        logprobs: The most log-probabilities a token that are ever asked for.
        memory: Share of a GPU's memory that weights and caches may take; of the machine's, on CPU, the caches.

    Raises:
        SamplerFault: The engine did not start.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: dict[str, torch.Tensor],
        *,
        length: int,
        concurrency: int,
        logprobs: int,
        memory: float,
    ) -> None:
        self._model = model
        self._asleep = False
        self.can_sleep = not current_platform.is_cpu()
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        thread.start()
        self._started: list[AsyncLLM] = []  # what the finaliser ends; it must not hold on to this object
        self._scratch = tempfile.TemporaryDirectory(prefix="weights-")
        self._end = weakref.finalize(self, _shut_down, self._loop, thread, self._started, self._scratch)
        try:
            with self._checkpoint(weights) as folder:
                arguments = AsyncEngineArgs(
                    model=str(folder),
                    skip_tokenizer_init=True,  # ids in, ids out
                    generation_config="vllm",  # nothing that the model's publisher recommends
                    dtype=str(model.dtype).removeprefix("torch."),
                    max_model_len=length,
                    max_num_seqs=min(concurrency, _MOST_AT_ONCE),
                    max_logprobs=logprobs,
                    logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                    enable_prefix_caching=True,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    worker_extension_cls="learners.sampling.vllm_worker.WorkerExtension",
                    **_device_arguments(model, length, concurrency, memory),
                )
                try:
                    self._started.append(self._call(_start(arguments, _gpu_of(model))))
                except Exception as problem:
                    raise SamplerFault(f"vLLM's engine did not start: {problem}") from problem
                except BaseException:
                    self.close()  # it is still reading the folder
                    raise
            self._call(self._llm.collective_rpc("end_with", args=(os.getpid(), self._scratch.name)))
        except BaseException:
            self.close()
            raise

    @property
    def _llm(self) -> AsyncLLM:
        return self._started[0]

    def request(
        self,
        name: str,
        ids: Sequence[int],
        parameters: SamplingParams,
        deliver: Callable[[Any], object],
        fail: Callable[[Exception], object],
    ) -> concurrent.futures.Future[None]:
        """Asks for a continuation.

        Args:
            name: Unique among all requests.
            ids: The tokens to go on from.
            parameters: How.
            deliver: Called in the engine's thread with each `vllm.outputs.CompletionOutput`.
            fail: Called there with what kept the request from its end.

        Returns:
            Cancelling it aborts the request.
        """
        return asyncio.run_coroutine_threadsafe(self._serve(name, ids, parameters, deliver, fail), self._loop)

    def load_weights(self, parameters: dict[str, torch.Tensor]) -> None:
        """Takes up new weights, by the names that they have in the model, and forgets what was cached under the old ones."""
        with self._checkpoint(parameters) as folder:
            self._call(self._reload(folder))

    def sleep(self) -> None:
        """Moves the weights to the machine's memory and drops the caches."""
        if not self._asleep:
            self._call(self._sleep())

    def wake(self) -> None:
        """Ends what `sleep` began."""
        if self._asleep:
            self._call(self._wake())

    def close(self) -> None:
        """Ends the engine and its processes. Twice is fine; it happens by itself when the interpreter exits."""
        self._end()

    def _call(self, job: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(self._watched(job), self._loop).result()

    async def _watched(self, job: Coroutine[Any, Any, T]) -> T:
        """What a job comes to. From vLLM, whoever waits for its processes to answer never hears that they have died."""
        task = asyncio.create_task(job)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_EVERY))[0]:
                if self._started and self._llm.errored:
                    raise SamplerFault(_DEAD)
            return task.result()
        except EngineDeadError as problem:
            raise SamplerFault(_DEAD) from problem
        finally:
            task.cancel()

    async def _serve(
        self,
        name: str,
        ids: Sequence[int],
        parameters: SamplingParams,
        deliver: Callable[[Any], object],
        fail: Callable[[Exception], object],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            async with aclosing(self._llm.generate({"prompt_token_ids": list(ids)}, parameters, name)) as outputs:
                async for output in outputs:
                    deliver(output.outputs[0])
        except EngineDeadError:
            fail(SamplerFault(_DEAD))
        except Exception as problem:
            fail(problem)
        finally:
            self._running.discard(task)

    async def _idle(self) -> None:
        """Waits until the requests that were cancelled have been aborted."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def _reload(self, folder: Path) -> None:
        await self._idle()
        if self._asleep:
            await self._take_memory("weights")
        await self._llm.collective_rpc("take_weights", args=(str(folder),))
        if self._asleep:  # only now: reading the weights takes memory too
            await self._take_memory("kv_cache")
            self._asleep = False
        await _until(self._llm.reset_prefix_cache, "vLLM kept its prefix cache although no request is live")

    async def _sleep(self) -> None:
        await self._idle()
        await self._llm.sleep(level=1)
        self._asleep = True

    async def _wake(self) -> None:
        await self._take_memory("weights", "kv_cache")
        self._asleep = False

    async def _take_memory(self, *parts: str) -> None:
        torch.cuda.empty_cache()  # what the trainer has freed and its allocator has kept
        await self._llm.wake_up(tags=list(parts))

    @contextlib.contextmanager
    def _checkpoint(self, parameters: dict[str, torch.Tensor]) -> Iterator[Path]:
        """A folder with these weights as the model's."""
        model = self._model
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as folder:
            with no_progress_bars(), _saving_everywhere(model):
                model.save_pretrained(folder, state_dict={name: tensor.detach() for name, tensor in parameters.items()})
            yield Path(folder)


async def _until(attempt: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Attempts something until it succeeds: what an aborted request held is given back a moment later."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while not await attempt():
        if asyncio.get_running_loop().time() > deadline:
            raise RuntimeError(f"{otherwise}; waited {_PATIENCE:g} s")
        await asyncio.sleep(0.01)


def _gpu_of(model: PreTrainedModel) -> int | None:
    """The number of the GPU that a policy's engine is to take, asked for in the thread whose GPU it is; None for no GPU."""
    if model.device.type == "cuda":
        return model.device.index
    return torch.cuda.current_device() if torch.cuda.is_available() else None


async def _start(arguments: AsyncEngineArgs, gpu: int | None) -> AsyncLLM:
    # vLLM writes to the environment for its processes' sake; the tools of this one are to inherit none of it.
    before = dict(os.environ)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if gpu:  # else the first, which it takes anyway
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    if dist.is_available() and dist.is_torchelastic_launched():
        _be_alone()
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork would copy threads' locks without the threads
    if current_platform.is_cpu():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling the sampler's small loops takes half a minute
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    try:
        return AsyncLLM.from_engine_args(arguments)
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _be_alone() -> None:
    """Has an engine whose program torchrun started take itself for no part of what was started."""
    started = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
    for name in filter(started.fullmatch, list(os.environ)):
        del os.environ[name]


def _device_arguments(model: PreTrainedModel, length: int, concurrency: int, memory: float) -> dict[str, Any]:
    if not current_platform.is_cpu():
        return {"gpu_memory_utilization": memory, "enable_sleep_mode": True}
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    needed = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize * length * concurrency
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "enforce_eager": True,
        # Blocks are what is shared and given out: a prompt shorter than one is computed again by every branch.
        "block_size": 32,
        "kv_cache_memory_bytes": min(2 * needed, int(memory * machine)),
        # After a part of a prompt vLLM drops what it has sampled and sets the seed back, which no generator of a CPU can do.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_BATCH_TOKENS, length, min(concurrency, _MOST_AT_ONCE)),
    }


@contextlib.contextmanager
def _saving_everywhere(model: PreTrainedModel) -> Iterator[None]:
    """Has Transformers write a model's files in whichever process of several: each has an engine and a folder of its own."""
    model.should_save_on_this_rank = lambda is_main_process: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.should_save_on_this_rank


def _shut_down(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    started: list[AsyncLLM],
    scratch: tempfile.TemporaryDirectory[str],
) -> None:
    """Ends an engine, its loop and its thread, and takes its folder away."""
    if threading.current_thread() is thread:  # the last reference was a request's
        threading.Thread(target=_shut_down, args=(loop, thread, started, scratch), name="vllm end").start()
        return

    async def last() -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        while started:
            started.pop().shutdown(timeout=_ENDING)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(last(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    scratch.cleanup()
