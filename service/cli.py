"""`topfive`: serve an artifact, classify images, measure, show settings and health.

Results go to stdout, all other output to stderr. Exit codes: 0 done, 1 failed (an error with a
remedy), 2 usage, 3 a check failed, 4 server unreachable or not ready, 5 some images failed, 130
interrupted. With --json an error is one line of JSON.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import command
from service.command import FAILED, UNREACHABLE
from service.errors import Unreachable
from service.tools.bench.cli import bench
from service.tools.keys_cli import keys

if TYPE_CHECKING:
    from service.settings import Settings

UNFIT, PARTLY, INTERRUPTED = 3, 5, 130

cli = typer.Typer(
    help="Serve a trained image classifier, and classify, evaluate and measure with it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # it would shorten the names of options and read [...] as markup
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command `topfive`."""
    try:
        command.run(cli)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@cli.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"topfive {installed('topfive')}")
        raise typer.Exit


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with an option for each setting.

    The first two parameters of `command` are the settings and their sources. Its other parameters
    stay options of its own.
    """
    from service import settings

    _, _, *own = inspect.signature(command).parameters.values()

    def run(config: Path | None, **flags: Any) -> None:
        options = {parameter.name: flags.pop(parameter.name) for parameter in own}
        command(*settings.load(flags, config), **options)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters += [
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[Path | None, typer.Option(help="TOML file of settings.")],
            default=None,
        )
    ]
    for name, field in settings.Settings.model_fields.items():
        default = "" if field.default is None else f" [default: {field.default}]"
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    bool | None if field.annotation is bool else str | None,
                    typer.Option(help=f"{field.description}{default}", show_default=False),
                ],
                default=None,
            )
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def serve(settings: "Settings", sources: dict[str, str]) -> None:
    """Serve an artifact over HTTP until SIGTERM.

    Example: topfive serve --artifact models/resnext50 --port 8080
    """
    import logging

    from service import sdk
    from service.settings import require_linux, unknown_variables
    from service.system import signals
    from service.telemetry import logs

    require_linux()
    signals.end_at_once()
    logs.configure(settings.log_format, settings.log_level)
    for name in unknown_variables():
        logging.getLogger("topfive").warning(
            "unknown_variable",
            extra={
                "variable": name,
                "detail": "This variable is not a setting. topfive config lists all settings.",
            },
        )
    if ignored := sdk.overridden():
        facts = {"variable": sdk.OVERRIDE, "detail": ignored}
        logging.getLogger("topfive").warning("ignored_variable", extra=facts)
    if settings.workers > 1:
        from service.server import supervisor

        sys.exit(supervisor.serve(settings))
    from service.server import app

    sys.exit(app.serve(settings))


def config(settings: "Settings", sources: dict[str, str]) -> None:
    """Print the effective settings and the source of each.

    Example: topfive config --port 9000
    """
    lines = (f"{name:20} {value!s:20} {sources[name]}" for name, value in settings)
    print("\n".join(lines), flush=True)


def doctor(
    settings: "Settings",
    sources: dict[str, str],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Run every experiment that needs a real card. This takes minutes."
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="With --card: file to write the report to.")
    ] = Path("first-card.txt"),
    prototxt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --card: prototxt of a network to use instead of the demo's."
        ),
    ] = None,
    caffemodel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --card: weights of that network.")
    ] = None,
    preprocess: Annotated[
        str,
        typer.Option(
            help="With --card: preprocessing of that network, as for topfive-build caffe."
        ),
    ] = "",
    labels: Annotated[
        str,
        typer.Option(help="With --card: class order of that network, as for topfive-build caffe."),
    ] = "2012",
    image_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --card: folder of photos for calibration. "
            "Default: the photos that come with topfive.",
        ),
    ] = None,
) -> None:
    """Check whether `topfive serve` could serve with the same flags.

    The command prints a line for each check, with a remedy where a check failed. The exit code is 3
    if a check failed. With --card the command answers the open questions about MagicMind on this
    machine's card, and writes a report that can be sent: docs/first-card.md.

    Example: topfive doctor --artifact models/resnext50 --port 8080
    """
    from service.tools.doctor import checks, report
    from service.tools.doctor.context import Context

    if card:
        from service.tools.doctor.first_card import write_report
        from service.tools.doctor.walk import WalkOptions

        options = WalkOptions(settings, output, prototxt, caffemodel, preprocess, labels, image_dir)
        sys.exit(0 if write_report(options) else UNFIT)
    findings = checks.examine(Context(settings))
    print(report.as_json(findings) if as_json else "\n".join(report.lines(findings)), flush=True)
    sys.exit(0 if report.all_right(findings) else UNFIT)


cli.add_typer(bench, name="bench")
cli.add_typer(keys, name="keys")

cli.command("serve")(with_settings(serve))
cli.command("config")(with_settings(config))
cli.command("doctor")(with_settings(doctor))


@cli.command()
def classify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="URL|ARTIFACT",
            help="URL of a running server (with ?model=NAME for one of several models), or folder "
            "of an artifact.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Image files, folders, globs in quotes ('photos/**/*.jpg'), or @FILE with a path "
            "on each line. - reads standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a .jsonl, .csv or .parquet file instead of printing. The same command "
            "resumes an interrupted run.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels for each image.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table or a summary.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option(help="Seconds to wait for the answer to each image.")
    ] = 30.0,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="With --output: images in flight. Default: 16, or on an artifact as many as use "
            "all its devices.",
        ),
    ] = None,
    retry_for_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="With --output: seconds to retry an image while the server is unavailable.",
        ),
    ] = 300.0,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --output: start over and overwrite an existing file."),
    ] = False,
) -> None:
    """Classify images over HTTP, or directly on the devices of an artifact.

    The images of folders and globs are those with a known ending, in sorted order. The exit code is
    5 if some images failed; with --output, FILE.failures.csv lists them.

    Example: topfive classify http://127.0.0.1:8080 model_build/photos/cat.png

    Example: topfive classify models/lite0 model_build/photos --output photos.jsonl
    """
    if output is None:
        sys.exit(_print_answers(target, images, top_k, as_json, timeout_s))
    from service.tools import bulk, sources

    try:
        bulk.check(output)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    plan = bulk.BulkPlan(images, output, top_k, concurrency, retry_for_s, force)
    connections = concurrency or sources.IN_FLIGHT
    result = bulk.classify_all(
        sources.over_http(target, timeout_s, connections, retry_for_s, top_k)
        if _is_url(target)
        else sources.on_artifact(Path(target), timeout_s, top_k=top_k),
        plan,
    )
    bulk.print_summary(result, plan, as_json)
    sys.exit(PARTLY if result.failed else 0)


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _print_answers(
    target: str, images: list[str], top_k: int, as_json: bool, timeout_s: float
) -> int:
    """Classify the images one after another, print the answers, and return the exit code."""
    from service.tools import client
    from service.tools.bulk import ImageFiles

    files = list(ImageFiles(images))
    if _is_url(target):
        answers = client.classify_over_http(target, files, top_k, timeout_s)
    else:
        answers = client.classify_on_artifact(Path(target), files, top_k, timeout_s)
    if as_json:
        client.print_json(answers)
    else:
        client.print_table(answers)
    failed = sum(bool(answer.error) for answer in answers)
    return 0 if not failed else PARTLY if failed < len(answers) else FAILED


@cli.command("eval")
def evaluate(
    label_file: Annotated[
        Path,
        typer.Option(
            "--label-file",
            "--label_file",
            help="File of labels: lines `name class`; or a .csv file with the columns file "
            "and wnid, class_id or label; or a folder with one folder for each class.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the results to.")],
    url: Annotated[
        str, typer.Option(help="URL of the server, with ?model=NAME for one of several models.")
    ] = "",
    artifact: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of an artifact to evaluate instead of --url."),
    ] = None,
    image_dir: Annotated[
        Path | None,
        typer.Option(
            "--image-dir",
            "--image_dir",
            metavar="DIR",
            help="Folder of the images. Default: the folder of the label file.",
        ),
    ] = None,
    image_num: Annotated[
        int | None,
        typer.Option("--image-num", "--image_num", min=1, help="Evaluate only the first N images."),
    ] = None,
    name_file: Annotated[
        Path | None,
        typer.Option(
            "--name-file",
            "--name_file",
            help="File of class names: lines `id names`. Default: the model's labels.",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Images in flight.")] = 16,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for the answer to each image.")
    ] = 30.0,
    retry_for_s: Annotated[
        float,
        typer.Option(min=0, help="Seconds to retry an image while the server is unavailable."),
    ] = 300.0,
    force: Annotated[
        bool, typer.Option("--force", help="Start over and overwrite existing results.")
    ] = False,
) -> None:
    """Measure top-1 and top-5 accuracy over labelled images, and write the files of the sample.

    The same command resumes an interrupted run. The exit code is 5 if an image is missing or
    failed; failed.csv lists these images.

    Example: topfive eval --url http://127.0.0.1:8080 --image-dir val --label-file val.txt
    --output eval
    """
    if bool(url) is (artifact is not None):
        raise typer.BadParameter(
            "exactly one of the two is required", param_hint="--url / --artifact"
        )
    from service.tools import evaluation

    folder = label_file if label_file.is_dir() else label_file.parent
    results = evaluation.evaluate(
        evaluation.on_artifact(artifact, timeout_s)
        if artifact
        else evaluation.over_http(url, timeout_s, concurrency, retry_for_s),
        evaluation.Plan(
            label_file=label_file,
            image_dir=image_dir or folder,
            image_num=image_num,
            name_file=name_file,
            output=output,
            force=force,
            concurrency=concurrency,
            retry_for_s=retry_for_s,
        ),
    )
    evaluation.print_summary(results, output)
    sys.exit(PARTLY if results.failed else 0)


@cli.command()
def reload(
    url: Annotated[str, typer.Option(help="URL of the server.", envvar="TOPFIVE_URL")] = "",
    pid: Annotated[
        int | None,
        typer.Option(help="Process of topfive serve. Default: the only one of this user."),
    ] = None,
    wait_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait until the models are loaded.")
    ] = 300.0,
) -> None:
    """Have a running service load the models whose artifacts were replaced or added.

    The command sends SIGHUP and waits. The exit code is 1 if a model was refused: the version that
    was served before stays.

    Example: topfive reload
    """
    from service.tools.reload import reload as reload_models

    reloads = reload_models(url, pid, wait_s)
    for model in reloads["models"]:
        print(f"{model['name']:24} {model.get('version', ''):14} {model['state']}", flush=True)
    for refusal in reloads["refused"]:
        print(f"error: {refusal['detail']}\n  try: {refusal['remedy']}", file=sys.stderr)
    sys.exit(FAILED if reloads["refused"] else 0)


@cli.command()
def health(
    url: Annotated[str, typer.Option(help="URL of the server.", envvar="TOPFIVE_URL")] = "",
    wait_s: Annotated[
        float, typer.Option(help="Seconds to wait for the server to become ready.")
    ] = 0.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing. Only set the exit code.")
    ] = False,
) -> None:
    """Check whether a server is ready, for example as the health check of a container.

    The exit code is 0 if the server is ready, else 4. Without --url the command checks the address
    that `topfive serve` would listen on here.

    Example: topfive health --wait-s 60
    """
    from service.tools import client

    try:
        text = client.wait_until_ready(url, wait_s)
    except Unreachable:
        if quiet:
            sys.exit(UNREACHABLE)
        raise
    if not quiet:
        print(text, flush=True)
