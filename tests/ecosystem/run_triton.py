"""The methods of tritonclient's four clients: http, http.aio, grpc and grpc.aio."""

import asyncio
import importlib
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from reporting import (
    PATIENCE_S,
    SHORT_S,
    Cases,
    cancelled,
    data_url,
    ended,
    finished,
    present,
    report,
    until,
)
from tritonclient.utils import InferenceServerException

TOPS = ("top_index", "top_probability", "top_label")


class Client:
    """One of the clients, its module, and the cases."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.module = importlib.import_module(f"tritonclient.{cases.client}")
        self.over_grpc = cases.client.startswith("grpc")
        self.asynchronous = cases.client.endswith("aio")
        self.client = self.made()

    def made(self, **options: Any) -> Any:
        """Return a client with these options."""
        url = self.cases.grpc if self.over_grpc else self.cases.http
        return self.module.InferenceServerClient(url, **options)

    async def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return the answer of a method, messages as dictionaries."""
        answer = await finished(getattr(self.client, method)(*arguments, **options))
        if isinstance(answer, Message):
            return MessageToDict(answer, preserving_proto_field_name=True)
        return answer

    def input(self, name: str, datatype: str, data: Any, binary: bool = True) -> Any:
        made = self.module.InferInput(name, list(data.shape), datatype)
        made.set_data_from_numpy(data, **({} if self.over_grpc else {"binary_data": binary}))
        return made

    def files(self, *files: bytes) -> list[Any]:
        return [self.input("image", "BYTES", np.array(files, dtype=object))]

    def photo(self) -> list[Any]:
        return self.files(self.cases.photo)

    def pixels(self, binary: bool = True) -> list[Any]:
        return [self.input("pixels", "UINT8", np.load(self.cases.pixels), binary)]

    def output(self, name: str, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options)

    async def infer(self, inputs: list[Any], model: str = "", **options: Any) -> Any:
        """Return the outputs by name."""
        names = [each.name() for each in options.get("outputs", ())] or TOPS
        call = self.client.infer(model or self.cases.model, inputs, **options)
        return values(await finished(call), names)


def values(result: Any, names: Any = TOPS) -> dict[str, Any]:
    """Return the outputs of a result by name, as lists."""
    found = {}
    for name in names:
        array = result.as_numpy(name)
        texts = array.dtype == object
        found[name] = (np.char.decode(array.astype("S")) if texts else array).tolist()
    return found


def refusal(error: Exception) -> tuple[str, str]:
    if isinstance(error, InferenceServerException):
        status = str(error.status()).removeprefix("StatusCode.")
        return status, str(error.message())
    if isinstance(error, TimeoutError):  # of http and http.aio, by their own clock
        return "client's timeout", str(error)
    raise error


def descriptions(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows about the server and its models."""
    model, ask = client.cases.model, client.ask
    return {
        "is_server_live": lambda: ask("is_server_live"),
        "is_server_ready": lambda: ask("is_server_ready"),
        "is_model_ready": lambda: ask("is_model_ready", model),
        "is_model_ready: unknown model": lambda: ask("is_model_ready", "other"),
        "get_server_metadata": lambda: ask("get_server_metadata"),
        "get_model_metadata": lambda: ask("get_model_metadata", model),
        "get_model_metadata: unknown model": lambda: ask("get_model_metadata", "other"),
        "get_model_config": lambda: ask("get_model_config", model),
        "get_inference_statistics": lambda: ask("get_inference_statistics", model),
        "get_model_repository_index": lambda: ask("get_model_repository_index"),
        "load_model": lambda: ask("load_model", model),
        "unload_model": lambda: ask("unload_model", model),
        "get_system_shared_memory_status": lambda: ask("get_system_shared_memory_status"),
        "get_cuda_shared_memory_status": lambda: ask("get_cuda_shared_memory_status"),
        "get_trace_settings": lambda: ask("get_trace_settings"),
        "get_log_settings": lambda: ask("get_log_settings"),
    }


def inferences(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of inferences that every client has a way for."""
    infer, cases = client.infer, client.cases

    def with_algorithm(algorithm: str) -> Any:
        name = "compression_algorithm"
        name = name if client.over_grpc else f"request_{name}"
        return infer(client.photo(), **{name: algorithm})

    async def identified() -> Any:
        result = await finished(client.client.infer(cases.model, client.photo(), request_id="a7"))
        answer = result.get_response()
        return answer.id if client.over_grpc else answer["id"]

    named = [client.output("top_index"), client.output("probabilities")]
    counted = [client.output("probabilities", class_count=3)]
    return {
        "infer: an image file": lambda: infer(client.photo()),
        "infer: three files": lambda: infer(client.files(*cases.photos)),
        "infer: pixels": lambda: infer(client.pixels()),
        "infer: requested outputs": lambda: infer(client.photo(), outputs=named),
        "infer: classification": lambda: infer(client.photo(), outputs=counted),
        "infer: parameter top_k": lambda: infer(client.photo(), parameters={"top_k": 2}),
        "infer: request id": identified,
        "infer: the served version": lambda: infer(client.photo(), model_version=cases.version),
        "infer: request of gzip": lambda: with_algorithm("gzip"),
        "infer: request of deflate": lambda: with_algorithm("deflate"),
        "infer: unknown model": lambda: infer(client.photo(), "other"),
        "infer: unknown version": lambda: infer(client.photo(), model_version="9"),
        "infer: wrong shape": lambda: infer(
            [client.input("pixels", "UINT8", np.zeros((1, 7, 7, 3), np.uint8))]
        ),
        "infer: broken image": lambda: infer(client.files(cases.photo, cases.broken)),
        "infer: unknown input": lambda: infer(
            [client.input("other", "UINT8", np.zeros((1, 7), np.uint8))]
        ),
        "infer: unknown output": lambda: infer(client.photo(), outputs=[client.output("other")]),
        "infer: a sequence": lambda: infer(client.photo(), sequence_id=7, sequence_start=True),
    }


def of_http(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of what only HTTP has: tensors as JSON, compressed answers."""
    texts = np.array([data_url(client.cases.photo).encode()], dtype=object)
    as_text = client.output("top_label", binary_data=False)
    return {
        "infer: an image file as JSON": lambda: client.infer(
            [client.input("image", "BYTES", texts, binary=False)]
        ),
        "infer: pixels as JSON": lambda: client.infer(client.pixels(binary=False)),
        "infer: outputs as JSON": lambda: client.infer(client.photo(), outputs=[as_text]),
        "infer: answer of gzip": lambda: client.infer(
            client.photo(), response_compression_algorithm="gzip"
        ),
    }


def with_callback(client: Client) -> Any:
    """Return the outputs that `async_infer` of the gRPC client passes to a callback."""
    got: queue.Queue[Any] = queue.Queue()
    client.client.async_infer(
        client.cases.model, client.photo(), lambda result, error: got.put((result, error))
    )
    result, error = got.get(timeout=PATIENCE_S)
    if error:
        raise error
    return values(result)


def streamed(client: Client) -> list[Any]:
    """Return the answers to three requests of a stream, of which the second is wrong."""
    got: queue.Queue[Any] = queue.Queue()
    stub = client.client
    stub.start_stream(lambda result, error: got.put((result, error)))
    for inputs in (client.photo(), client.files(client.cases.broken), client.photo()):
        stub.async_stream_infer(client.cases.model, inputs)
    answers = [got.get(timeout=PATIENCE_S) for _ in range(3)]
    stub.stop_stream()
    return [values(result) if error is None else error.message() for result, error in answers]


async def streamed_aio(client: Client) -> list[Any]:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for inputs in (client.photo(), client.files(client.cases.broken), client.photo()):
            yield {"model_name": client.cases.model, "inputs": inputs}

    return [
        values(result) if error is None else error.message()
        async for result, error in client.client.stream_infer(requests())
    ]


def concurrent(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of calls that do not wait, and of streams."""
    if client.cases.client == "http":
        return {
            "async_infer": lambda: values(
                client.client.async_infer(client.cases.model, client.photo()).get_result()
            )
        }
    if client.cases.client == "grpc":
        return {"async_infer": lambda: with_callback(client), "stream": lambda: streamed(client)}
    return {"stream": lambda: streamed_aio(client)} if client.over_grpc else {}


def while_stopped(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of inferences that a stopped device does not answer."""
    rows: dict[str, Callable[[], Any]] = {
        "infer: parameter timeout": lambda: client.infer(
            client.photo(), timeout=round(SHORT_S * 1e6)
        ),
        "infer: the client's timeout": lambda: short(client),
    }
    if client.asynchronous and client.over_grpc:
        rows["stream: cancelled"] = lambda: cancelled_stream_aio(client)
    if client.asynchronous:
        rows["cancelled"] = lambda: cancelled(client.cases, client.infer(client.photo()))
    elif client.over_grpc:
        rows["cancelled"] = lambda: cancelled_future(client)
        rows["stream: cancelled"] = lambda: cancelled_stream(client)
    return rows


async def short(client: Client) -> Any:
    """Return the answer to an inference with a timeout of the client."""
    photo, cases = client.photo(), client.cases
    if client.over_grpc:
        return await client.infer(photo, client_timeout=SHORT_S)
    option = "conn_timeout" if client.asynchronous else "network_timeout"
    impatient = client.made(**{option: SHORT_S})
    try:
        return values(await finished(impatient.infer(cases.model, photo)))
    finally:
        await finished(impatient.close())


async def cancelled_future(client: Client) -> str:
    """Cancel a call of `async_infer` when the service has its image; return its error's status."""
    ended, errors = threading.Event(), []
    before = client.cases.images()

    def end(result: Any, error: Any) -> None:
        errors.append(error)
        ended.set()

    call = client.client.async_infer(client.cases.model, client.photo(), end)
    await until(lambda: client.cases.images() > before)
    call.cancel()
    assert ended.wait(PATIENCE_S)
    return str(errors[0].status())


async def cancelled_stream(client: Client) -> str:
    got: queue.Queue[Any] = queue.Queue()
    before = client.cases.images()
    client.client.start_stream(lambda result, error: got.put(error))
    client.client.async_stream_infer(client.cases.model, client.photo())
    await until(lambda: client.cases.images() > before)
    client.client.stop_stream(cancel_requests=True)
    return str(got.get(timeout=PATIENCE_S).status())


async def cancelled_stream_aio(client: Client) -> str:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": client.cases.model, "inputs": client.photo()}

    before = client.cases.images()
    answers = client.client.stream_infer(requests())
    waiting = asyncio.ensure_future(anext(answers))
    await until(lambda: client.cases.images() > before)
    answers.cancel()
    [outcome] = await asyncio.gather(waiting, return_exceptions=True)
    return type(outcome).__name__


def controlled(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of a service with --model-control."""

    async def states() -> Any:
        index = await client.ask("get_model_repository_index")
        return [each["state"] for each in (index["models"] if client.over_grpc else index)]

    async def unloaded() -> Any:
        await client.ask("unload_model", client.cases.model)
        return await states()

    async def loaded() -> Any:
        await client.ask("load_model", client.cases.model)
        return [*await states(), await client.infer(client.photo())]

    return {
        "unload_model, --model-control": unloaded,
        "load_model, --model-control": loaded,
        "load_model, --model-control: unknown model": lambda: client.ask("load_model", "other"),
    }


async def main() -> None:
    client = Client(Cases())
    rows: dict[str, Callable[[], Any]]
    match client.cases.phase:
        case "answers":
            rows = descriptions(client) | inferences(client) | concurrent(client)
            if not client.over_grpc:
                rows |= of_http(client)
        case "methods":
            rows = present(client.cases, client.client)
        case "stopped":
            rows = ended(client.cases, while_stopped(client))
        case "control":
            rows = controlled(client)
    await report(rows, refusal)
    await finished(client.client.close())


asyncio.run(main())
