"""The table of all checks, and the checks of the artifact.

A check is a function that takes a Context and returns one Finding. A check that needs a missing
part has the state `skip`, because another line reports the missing part.
"""

from collections.abc import Callable

from service.artifact import Artifact
from service.core import device_session
from service.errors import ArtifactError, DeviceError, SdkError, TopfiveError
from service.tools.doctor import cards, machine
from service.tools.doctor.context import Context, Finding

Check = Callable[[Context], Finding]


def artifact(context: Context) -> Finding:
    """Check that every file of the artifact exists and matches the manifest."""
    found = context.artifact
    if found is None:
        return Finding(
            "artifact",
            "skip",
            "no artifact is named",
            "Name the artifact: topfive doctor --artifact DIR",
        )
    if isinstance(found, ArtifactError):
        return Finding("artifact", "FAIL", found.detail, found.remedy)
    manifest = found.manifest
    megabytes = sum(file.size for file in manifest.files.values()) / 1e6
    text = f"{manifest.name} {manifest.version} for {manifest.target}, {manifest.precision}"
    files = f"{len(manifest.files)} files, {megabytes:.1f} MB, hashes correct"
    scaled = f"images scaled by {manifest.preprocessing.resample}"
    if manifest.resample_note:
        remedy = "Build the artifact again with --preprocess or --resample."
        return Finding("artifact", "warn", f"{text}: {files}; {manifest.resample_note}", remedy)
    return Finding("artifact", "ok", f"{text}: {files}; {scaled}")


def compiled(context: Context) -> Finding:
    """Check that the model was compiled by an SDK of the same major.minor version."""
    found = context.artifact
    if not isinstance(found, Artifact):
        return Finding("compiled", "skip", "no artifact to check")
    made = found.manifest.sdk
    if made is None:
        return Finding("compiled", "skip", "not needed: the artifact is for the CPU")
    archs = ", ".join(map(_arch, made.config.get("archs", []))) or "all architectures"
    text = f"by MagicMind {made.version} for {archs}"
    if isinstance(context.sdk, SdkError):
        return Finding(
            "compiled", "skip", f"{text}; there is no SDK on this machine to compare with"
        )
    here = context.sdk.version
    if not here:
        return Finding(
            "compiled", "warn", f"{text}; the version of the SDK on this machine is unknown"
        )
    if made.version.split(".")[:2] != here.split(".")[:2]:
        remedy = (
            "Build the artifact again with this SDK, or serve it with the SDK that compiled it."
        )
        return Finding("compiled", "FAIL", f"{text}; the SDK on this machine is {here}", remedy)
    return Finding("compiled", "ok", f"{text}; the SDK does not report the architecture of a card")


def _arch(arch: object) -> str:
    """Return an architecture as text: `mtp_372 with 6, 8 clusters`."""
    if not isinstance(arch, dict):
        return str(arch)
    each = (f"{name} with {', '.join(map(str, sizes))} clusters" for name, sizes in arch.items())
    return ", ".join(each)


def golden(context: Context) -> Finding:
    """Check that each device of the settings gives the right answers to the golden rows."""
    found = context.artifact
    if not isinstance(found, Artifact):
        return Finding("golden", "skip", "no artifact to run")
    ordinals = context.ordinals if found.manifest.served_target.needs_sdk else (0,)
    if absent := _absent(context, found, ordinals):
        return Finding("golden", "skip", f"not checked: {absent}")
    python, import_timeout_s = context.settings.device_python, context.settings.import_timeout_s
    worst = 0.0
    for ordinal in ordinals:
        try:
            answers = device_session.answers(
                found, found.golden.rows, ordinal, python, import_timeout_s
            )
        except (DeviceError, SdkError) as error:
            return Finding("golden", "FAIL", error.detail, error.remedy or _DEVICE)
        fault = found.golden.fault(answers)
        if fault:
            return Finding("golden", "FAIL", f"device {ordinal}: {fault}", _WRONG)
        worst = max(worst, found.golden.deviation(answers))
    where = f"device{'s' * (len(ordinals) > 1)} {', '.join(map(str, ordinals))}"
    bound = f"largest difference {worst:.1g}, tolerance {found.golden.tolerance:.1g}"
    return Finding("golden", "ok", f"{where}: {len(found.golden.rows)} rows correct, {bound}")


def _absent(context: Context, artifact: Artifact, ordinals: tuple[int, ...]) -> str:
    """Return why the golden rows cannot be run, as text; empty if they can."""
    if not artifact.manifest.served_target.needs_sdk:
        return ""
    if isinstance(context.device_count, SdkError):
        return "the SDK's devices could not be counted"
    absent = [str(each) for each in ordinals if each >= context.device_count]
    if absent or not ordinals:
        return f"the SDK sees no device {', '.join(absent)}".rstrip()
    return ""


_DEVICE = "Read the lines above. Run it again with TOPFIVE_LOG_LEVEL=debug topfive serve"
_WRONG = (
    "Do not serve this artifact. Build it again for this SDK and card. If the fault "
    "remains, compare with topfive-build verify on another card."
)

CHECKS: tuple[Check, ...] = (
    cards.sdk,
    cards.nodes,
    cards.driver,
    cards.mode,
    cards.devices,
    artifact,
    compiled,
    golden,
    machine.cpu,
    machine.memory,
    machine.port,
    machine.access,
    machine.tls,
    machine.files,
)


OF_EACH_MODEL = frozenset({artifact, compiled, golden, machine.memory})


def examine(context: Context) -> list[Finding]:
    """Run all CHECKS in order; a check that raises has the state FAIL, and the next one follows.

    With a folder of models the checks OF_EACH_MODEL are run for each of them.
    """
    try:
        models = context.models()
    except TopfiveError as error:
        return [Finding("models", "FAIL", error.detail, error.remedy)]
    return [
        _found(check, model)
        for check in CHECKS
        for model in (models if check in OF_EACH_MODEL else models[:1])
    ]


def _found(check: Check, context: Context) -> Finding:
    try:
        return check(context)
    except TopfiveError as error:
        return Finding(check.__name__, "FAIL", error.detail, error.remedy)
    except Exception as error:  # noqa: BLE001 - the failure of a check is a finding
        found = f"the check failed: {type(error).__name__}: {error}"
        return Finding(
            check.__name__, "FAIL", found, "Report the failure if the text does not explain it."
        )
