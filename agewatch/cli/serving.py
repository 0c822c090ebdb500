"""The command that serves a model over REST: `serve`."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from agewatch import api
from agewatch.cli.options import ModelOption, PrecisionOption, TrustOption, WorkersOption, trusted

app = typer.Typer()


@app.command()
def serve(
    model: ModelOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port.")] = 8080,
    host: Annotated[str, typer.Option(help="Beyond loopback --certificate and --key are needed.")] = "127.0.0.1",
    certificate: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
    workers: WorkersOption = None,
    precision: PrecisionOption = "auto",
    log_format: Annotated[Literal["text", "json"], typer.Option(help="Of the log, a line a request.")] = "text",
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="/metrics needs no token.")] = False,
    trust_code: TrustOption = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print what would be served, and end.")] = False,
) -> None:
    """Serve the model over REST with TorchServe, with a token, until Ctrl-C or SIGTERM."""
    from agewatch.serving.server import curl_line, limits, running

    more = {
        "host": host,
        "certificate": certificate,
        "key": key,
        "log_format": log_format,
        "open_metrics": open_metrics,
    }
    wanted = api.serving(model=model, port=port, workers=workers, precision=precision, **more)
    if print_config:
        typer.echo(json.dumps(asdict(wanted) | {"limits": limits()}, indent=1, default=str))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what is under way is answered meanwhile
    typer.echo(f"Starting TorchServe with {trusted(api.model_file(model), trust_code)} ...")
    with running(wanted) as served:
        typer.echo(
            f"{'address':<12}{served.url}\n{'model':<12}{served.model}\n{'token':<12}{served.key_file}\n"
            f"{'logs':<12}{served.log_folder}\n\n{curl_line(served)}\n\nready"
        )
        served.wait()
