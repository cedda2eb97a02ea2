"""Every method but the inference, the messages, health and reflection over gRPC."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from scripts import write_descriptor
from service import errors
from service.api.access import Access
from service.api.grpc import messages
from service.api.grpc.calls import code_of
from service.api.v2 import descriptions
from service.server.grpc_server import grpc_serving
from service.settings import Settings
from tests.support.grpc_calls import (
    NAME,
    Caller,
    free_port,
    infer_request,
    pb,
    serving_grpc,
    trailer,
)
from tests.support.paths import ROOT
from tests.support.pictures import encoded
from tests.support.running import running as core_running
from tests.support.serving import Service
from tests.support.tiny import CLASSES, SIDE, write_tiny_artifact

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def running(artifact: Path) -> Iterator[tuple[Service, Caller]]:
    with serving_grpc(artifact, "--access-log") as running:
        yield running


@pytest.fixture(scope="module")
def caller(running: tuple[Service, Caller]) -> Caller:
    return running[1]


def test_states(running: tuple[Service, Caller]) -> None:
    """The same as over HTTP; no name is the default model."""
    service, caller = running
    assert caller.call("ServerLive").live
    assert caller.call("ServerReady").ready
    version = service.http.get("/model").json()["model"]["version"]
    for fields in ({}, {"name": "tiny"}, {"name": "tiny", "version": version}):
        assert caller.call("ModelReady", **fields).ready
    for fields in ({"name": "other"}, {"name": "tiny", "version": "1"}):
        error = caller.refused("ModelReady", pb.ModelReadyRequest(**fields))
        assert error.code() == grpc.StatusCode.NOT_FOUND


def test_metadata(caller: Caller) -> None:
    """Of the server and of the model, as REST has them."""
    server = caller.call("ServerMetadata")
    assert server.name == "topfive" and "statistics" in server.extensions
    model = caller.call("ModelMetadata", name="tiny")
    inputs = {each.name: (each.datatype, list(each.shape)) for each in model.inputs}
    assert inputs == {"image": ("BYTES", [-1, 1]), "pixels": ("UINT8", [-1, SIDE, SIDE, 3])}
    outputs = {each.name: (each.datatype, list(each.shape)) for each in model.outputs}
    assert outputs["probabilities"] == ("FP32", [-1, CLASSES])
    assert (model.name, model.platform, len(model.versions)) == ("tiny", "openvino_ir", 1)


def test_configuration(caller: Caller) -> None:
    """Triton's ModelConfig, with names of datatypes as its enumeration."""
    config = caller.call("ModelConfig", name="tiny").config
    types = [pb.DataType.Name(each.data_type) for each in config.input]
    assert types == ["TYPE_STRING", "TYPE_UINT8"]
    assert list(config.input[1].dims) == [SIDE, SIDE, 3]
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_MODEL
    assert config.max_batch_size == 32


def test_statistics(caller: Caller) -> None:
    """Images and requests since the start; every duration that perf_analyzer reads is there."""
    [before] = caller.call("ModelStatistics").model_stats
    caller.infer(encoded(seed=1), encoded(seed=2))
    [after] = caller.call("ModelStatistics", name="tiny").model_stats
    assert after.inference_count == before.inference_count + 2
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert all(
        after.inference_stats.HasField(field)
        for field in (
            *("success", "fail", "queue", "cache_hit", "cache_miss"),
            *("compute_input", "compute_infer", "compute_output"),
        )
    )
    assert {each.batch_size for each in after.batch_stats} <= {1, 2}
    error = caller.refused("ModelStatistics", pb.ModelStatisticsRequest(name="other"))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == "There is no model 'other'. RepositoryIndex lists the models."


def test_index(caller: Caller) -> None:
    """The model with its state, with and without the wish for ready ones."""
    for ready in (False, True):
        [model] = caller.call("RepositoryIndex", ready=ready).models
        assert (model.name, model.state, model.reason) == ("tiny", "READY", "")


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_control_is_forbidden(caller: Caller, method: str) -> None:
    request = getattr(pb, f"{method}Request")(model_name="tiny")
    error = caller.refused(method, request)
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    assert trailer(error)["error-code"] == "forbidden"


async def test_control(artifact: Path) -> None:
    """What a service is given to load and unload models is called, and its errors are answers."""

    loaded = []

    class Loader:
        async def load(self, name: str) -> None:
            loaded.append(name)

        async def unload(self, name: str) -> None:
            raise errors.NotFound(f"There is no model {name!r}.")

    caller = Caller(free_port())
    settings = Settings(grpc_port=caller.port)
    async with core_running(artifact) as core:
        serving = grpc_serving(
            core.service,
            settings,
            core.metrics,
            Access(settings, core.metrics),
            "1",
            Loader(),
            fatal=pytest.fail,
        )
        async with serving:
            load = pb.RepositoryModelLoadRequest(model_name="tiny")
            await asyncio.to_thread(caller.method("RepositoryModelLoad"), load)
            unload = pb.RepositoryModelUnloadRequest(model_name="other")
            error = await asyncio.to_thread(caller.refused, "RepositoryModelUnload", unload)
            caller.channel.close()
    assert loaded == ["tiny"]
    assert error.code() == grpc.StatusCode.NOT_FOUND


ABSENT = [
    *(f"{kind}SharedMemory{act}" for kind in ("System", "Cuda")
      for act in ("Status", "Register", "Unregister")),
    *("TraceSetting", "LogSettings"),
]  # fmt: skip


@pytest.mark.parametrize("method", ABSENT)
def test_what_topfive_has_not(caller: Caller, method: str) -> None:
    error = caller.refused(method)
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert method in error.details()


def test_a_method_of_no_one(caller: Caller) -> None:
    """It is answered by grpcio."""
    with pytest.raises(grpc.RpcError) as raised:
        caller.channel.unary_unary(f"/{NAME}/Other")(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_log(running: tuple[Service, Caller]) -> None:
    """A line for each answer with its facts, none of a state."""
    service, caller = running
    metadata = (
        ("x-request-id", "for-the-log"),
        ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),
    )
    caller.call("ModelReady")
    caller.method("ModelInfer")(infer_request(encoded(seed=1)), metadata=metadata)
    line = service.await_event("answered", request_id="for-the-log")
    assert line.items() >= {
        "method": "ModelInfer", "status": "OK", "client": "127.0.0.1", "images": 1,
        "trace_id": "a" * 32,
    }.items()  # fmt: skip
    assert line["bytes_received"] > len(encoded(seed=1))
    assert not [line for line in service.log if line.get("method") == "ModelReady"]


def test_a_request_id_that_cannot_be_repeated(caller: Caller) -> None:
    """It is replaced by 128 random bits."""
    for given in ("a b", "x" * 200, ""):
        _, call = caller.method("ServerLive").with_call(
            pb.ServerLiveRequest(), metadata=(("x-request-id", given),)
        )
        assert re.fullmatch("[0-9a-f]{32}", dict(call.trailing_metadata())["x-request-id"])


def test_health(caller: Caller) -> None:
    """The server, the protocol and the model serve; another name is unknown."""
    stub = health_pb2_grpc.HealthStub(caller.channel)
    for name in ("", NAME, "tiny"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_is_watched(artifact: Path) -> None:
    """A watcher is sent each change: the device fails, recovers, and the service stops."""
    with serving_grpc(artifact, "--drain-delay-s", "1") as (service, caller):
        stub = health_pb2_grpc.HealthStub(caller.channel)
        whole, model = (
            stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
            for name in ("", "tiny")
        )
        assert [next(each).status for each in (whole, model)] == [SERVING] * 2
        [host] = service.hosts()
        subprocess.run(["kill", "-KILL", str(host)], check=True)
        assert [next(each).status for each in (whole, model)] == [NOT_SERVING] * 2
        assert not caller.call("ServerReady").ready
        assert not caller.call("ModelReady").ready
        [index] = caller.call("RepositoryIndex").models
        assert index.state == "UNAVAILABLE" and index.reason
        error = caller.refused("ModelInfer", infer_request(encoded(seed=1)))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert int(trailer(error)["retry-after-ms"]) > 0
        assert "retry-after-ms" in error.details() and "Retry-After" not in error.details()
        assert [next(each).status for each in (whole, model)] == [SERVING] * 2
        service.process.terminate()
        assert [next(each).status for each in (whole, model)] == [NOT_SERVING] * 2
        assert service.await_end() == 0
        for each in (whole, model):
            with pytest.raises(grpc.RpcError):
                next(each)


async def test_the_health_of_a_model_that_was_unloaded(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not ready."""
    port = free_port()
    settings = Settings(grpc_port=port)
    check = health_pb2.HealthCheckRequest(service="tiny")
    async with (
        core_running(artifact) as core,
        grpc_serving(
            core.service,
            settings,
            core.metrics,
            Access(settings, core.metrics),
            "1",
            fatal=pytest.fail,
        ),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(check)
        assert (await watched.read()).status == SERVING
        monkeypatch.setattr(descriptions, "served", lambda _: [])
        for call in core.service.on_ready_change:
            call()
        assert (await watched.read()).status == NOT_SERVING


OF_HTTP = {
    *(errors.MethodNotAllowed, errors.NotAcceptable, errors.HeadTimeout, errors.HeadTooLarge),
    *(errors.HttpVersion, errors.UrlNotFetched),
}


def test_the_documented_statuses() -> None:
    """docs/grpc.md has each error in the row of its status, but for those of HTTP's own."""
    page = (ROOT / "docs" / "grpc.md").read_text()
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| (.*) \|$", page, re.MULTILINE))
    kinds = [kind for kind in errors.RequestError.__subclasses__() if kind not in OF_HTTP]
    assert {code_of(kind("")).name for kind in kinds} == set(rows)
    for kind in kinds:
        assert f"`{kind.code}`" in rows[code_of(kind("")).name]
        assert sum(f"`{kind.code}`" in row for row in rows.values()) == 1 + (
            kind is errors.TooLarge  # by bytes, and by images
        )


def test_reflection(caller: Caller) -> None:
    """It lists the services and has their descriptions."""
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="inference.proto"),
    ]
    listed, *files = stub.ServerReflectionInfo(iter(asked), timeout=30)
    names = {each.name for each in listed.list_services_response.service}
    assert names == {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for file, package in zip(files, ("inference", "grpc.health.v1", "inference"), strict=True):
        [data] = file.file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(data).package == package


def test_the_descriptor_is_that_of_the_proto() -> None:
    """`make proto` would change nothing."""
    written = (ROOT / "service" / "api" / "grpc" / "descriptor.py").read_text()
    assert write_descriptor.module() == written


def test_two_definitions_in_one_process() -> None:
    """Those of the default pool are others than ours, and both write the same bytes."""
    ours = messages.REQUESTS["ModelInfer"]
    assert ours is not pb.ModelInferRequest
    assert ours.DESCRIPTOR.file.pool is not pb.DESCRIPTOR.pool
    fields: dict[str, Any] = {
        "model_name": "tiny", "model_version": "1", "id": "42",
        "parameters": {"top_k": {"int64_param": 3}},
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, -1, 2**40],
                    "parameters": {"a": {"double_param": 0.5}},
                    "contents": {"bytes_contents": [b"x"], "uint_contents": [1, 2**32 - 1]}}],
        "outputs": [{"name": "top_index"}], "raw_input_contents": [b"raw", b""],
    }  # fmt: skip
    theirs = pb.ModelInferRequest(**fields).SerializeToString(deterministic=True)
    assert ours(**fields).SerializeToString(deterministic=True) == theirs


NUMBERS = {
    "ModelInferRequest": "model_name 1 model_version 2 id 3 parameters 4 inputs 5 outputs 6 "
    "raw_input_contents 7",
    "ModelInferRequest.InferInputTensor": "name 1 datatype 2 shape 3 parameters 4 contents 5",
    "ModelInferRequest.InferRequestedOutputTensor": "name 1 parameters 2",
    "ModelInferResponse": "model_name 1 model_version 2 id 3 parameters 4 outputs 5 "
    "raw_output_contents 6",
    "InferTensorContents": "bool_contents 1 int_contents 2 int64_contents 3 uint_contents 4 "
    "uint64_contents 5 fp32_contents 6 fp64_contents 7 bytes_contents 8",
    "InferParameter": "bool_param 1 int64_param 2 string_param 3 double_param 4 uint64_param 5",
    "ModelStreamInferResponse": "error_message 1 infer_response 2",
    "ModelConfig": "name 1 platform 2 version_policy 3 max_batch_size 4 input 5 output 6 "
    "instance_group 7 default_model_filename 8 dynamic_batching 11 parameters 14 backend 17 "
    "runtime 25",
    "ModelStatistics": "name 1 version 2 last_inference 3 inference_count 4 execution_count 5 "
    "inference_stats 6 batch_stats 7 memory_usage 8 response_stats 9",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_are_the_published_ones(name: str) -> None:
    """Written here a second time: another number is another protocol."""
    fields = messages.POOL.FindMessageTypeByName(f"inference.{name}").fields
    assert " ".join(f"{each.name} {each.number}" for each in fields) == NUMBERS[name]


def test_only_a_server_with_grpc_loads_it(artifact: Path) -> None:
    """Neither a model without a server, nor the application without a gRPC port."""
    lines = (
        "import sys, service.core.local_model, service.tools.client, service.server.app",
        "from service.settings import Settings",
        f"service.server.app.create_app(Settings(artifact={str(artifact)!r}), print)",
        "print(*sys.modules)",
    )
    answer = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert not {"grpc", "google.protobuf"} & set(answer.stdout.split())
