"""The methods of KServe's clients: InferenceRESTClient, with V2 and V1, and InferenceGRPCClient."""

import asyncio
import base64
import logging
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from reporting import SHORT_S, Cases, cancelled, data_url, ended, present, report

TOPS = ("top_index", "top_probability", "top_label")


class Client:
    """One of the two clients, and the cases."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.over_grpc = cases.client == "kserve grpc"
        self.base = f"http://{cases.http}"
        self.grpc = InferenceGRPCClient(cases.grpc)
        self.rest = InferenceRESTClient(RESTConfig(protocol="v2"))
        self.v1 = InferenceRESTClient(RESTConfig(protocol="v1"))

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method about the server or a model answers."""
        if self.over_grpc:
            return getattr(self.grpc, method)(*arguments)
        return getattr(self.rest, method)(self.base, *arguments)

    async def infer(
        self, inputs: list[InferInput], model: str = "", timeout_s: float = 60, **options: Any
    ) -> dict[str, Any]:
        """Return the outputs by name; without `request_outputs` those that a request gets."""
        names = [each.name for each in options.get("request_outputs", ())] or TOPS
        request = InferRequest(model or self.cases.model, inputs, **options)
        if self.over_grpc:
            response = await self.grpc.infer(request, timeout=timeout_s)
        else:
            response = await self.rest.infer(
                self.base, request, model_name=request.model_name, timeout=timeout_s
            )
        found = {name: response.get_output_by_name(name) for name in names}
        return {name: as_list(output.as_numpy()) for name, output in found.items()} | (
            {"id": response.id} if "request_id" in options else {}
        )

    def files(self, *files: bytes) -> list[InferInput]:
        return [tensor("image", "BYTES", np.array(files, dtype=object))]

    def photo(self) -> list[InferInput]:
        return self.files(self.cases.photo)


def tensor(name: str, datatype: str, data: Any, binary: bool = True) -> InferInput:
    made = InferInput(name, list(data.shape), datatype)
    made.set_data_from_numpy(data, binary_data=binary)
    return made


def as_list(array: Any) -> list[Any]:
    texts = array.dtype == object
    found: list[Any] = (np.char.decode(array.astype("S")) if texts else array).tolist()
    return found


def refusal(error: Exception) -> tuple[str, str]:
    if isinstance(error, httpx.HTTPStatusError):
        return str(error.response.status_code), str(error)
    if isinstance(error, httpx.TimeoutException):
        return "client's timeout", str(error)
    if isinstance(error, grpc.RpcError):
        return error.code().name, str(error.details())
    raise error


def answers(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of both clients."""
    cases, infer, photo = client.cases, client.infer, client.photo
    named = [RequestedOutput("top_index"), RequestedOutput("probabilities")]
    counted = [RequestedOutput("probabilities", {"classification": 3})]
    return {
        "is_server_live": lambda: client.ask("is_server_live"),
        "is_server_ready": lambda: client.ask("is_server_ready"),
        "is_model_ready": lambda: client.ask("is_model_ready", cases.model),
        "is_model_ready: unknown model": lambda: client.ask("is_model_ready", "other"),
        "infer: an image file": lambda: infer(photo()),
        "infer: three files": lambda: infer(client.files(*cases.photos)),
        "infer: pixels": lambda: infer([tensor("pixels", "UINT8", np.load(cases.pixels))]),
        "infer: requested outputs": lambda: infer(photo(), request_outputs=named),
        "infer: classification": lambda: infer(photo(), request_outputs=counted),
        "infer: parameter top_k": lambda: infer(photo(), parameters={"top_k": 2}),
        "infer: request id": lambda: identified(client),
        "infer: unknown model": lambda: infer(photo(), "other"),
        "infer: wrong shape": lambda: infer(
            [tensor("pixels", "UINT8", np.zeros((1, 7, 7, 3), np.uint8))]
        ),
        "infer: broken image": lambda: infer(client.files(cases.photo, cases.broken)),
        "infer: unknown input": lambda: infer(
            [tensor("other", "UINT8", np.zeros((1, 7), np.uint8))]
        ),
        "infer: unknown output": lambda: infer(photo(), request_outputs=[RequestedOutput("other")]),
        "infer: a sequence": lambda: infer(photo(), parameters={"sequence_id": 7}),
    }


async def identified(client: Client) -> Any:
    return (await client.infer(client.photo(), request_id="a7"))["id"]


def of_grpc(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of gRPC alone: its REST client sends no version, and tensors have no raw bytes."""
    infer, cases = client.infer, client.cases
    pixels = [tensor("pixels", "UINT8", np.load(cases.pixels), binary=False)]
    return {
        "infer: the served version": lambda: infer(client.photo(), model_version=cases.version),
        "infer: unknown version": lambda: infer(client.photo(), model_version="9"),
        "infer: an image file in contents": lambda: infer(
            [InferInput("image", [1], "BYTES", data=[cases.photo])]
        ),
        "infer: pixels in contents": lambda: infer(pixels),
    }


def of_rest(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of REST alone: tensors as JSON, and V1."""
    cases, base = client.cases, client.base
    texts = np.array([data_url(cases.photo).encode()], dtype=object)
    pixels = [tensor("pixels", "UINT8", np.load(cases.pixels), binary=False)]
    as_json = [RequestedOutput("top_label", {"binary_data": False})]
    instance = {"b64": base64.b64encode(cases.photo).decode()}

    async def predicted(model: str) -> Any:
        found = await client.v1.infer(base, {"instances": [instance]}, model_name=model)
        return found["predictions"]

    return {
        "infer: an image file as JSON": lambda: client.infer(
            [tensor("image", "BYTES", texts, binary=False)]
        ),
        "infer: pixels as JSON": lambda: client.infer(pixels),
        "infer: outputs as JSON": lambda: client.infer(client.photo(), request_outputs=as_json),
        "V1: is_server_live": lambda: client.v1.is_server_live(base),
        "V1: is_model_ready": lambda: client.v1.is_model_ready(base, cases.model),
        "V1: infer": lambda: predicted(cases.model),
        "V1: infer: unknown model": lambda: predicted("other"),
        "V1: explain": lambda: client.v1.explain(base, cases.model, {"instances": [instance]}),
    }


def while_stopped(client: Client) -> dict[str, Callable[[], Any]]:
    """The rows of inferences that a stopped device does not answer."""
    timeout = {"timeout": round(SHORT_S * 1e6)}
    return {
        "infer: parameter timeout": lambda: client.infer(client.photo(), parameters=timeout),
        "infer: the client's timeout": lambda: client.infer(client.photo(), timeout_s=SHORT_S),
        "cancelled": lambda: cancelled(client.cases, client.infer(client.photo())),
    }


async def main() -> None:
    logging.disable()  # KServe's client logs each refusal with its traceback
    client = Client(Cases())
    rows: dict[str, Callable[[], Any]]
    if client.cases.phase == "methods":
        rows = present(client.cases, client.grpc if client.over_grpc else client.rest)
    elif client.cases.phase == "stopped":
        rows = ended(client.cases, while_stopped(client))
    else:
        rows = answers(client) | (of_grpc if client.over_grpc else of_rest)(client)
    await report(rows, refusal)
    for each in (client.grpc, client.rest, client.v1):
        await each.close()


asyncio.run(main())
