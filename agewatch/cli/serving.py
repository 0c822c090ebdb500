"""The command that serves a model over REST: `serve`."""

from typing import Annotated

import typer

from agewatch import api
from agewatch.cli.options import ModelOption, PrecisionOption, WorkersOption

app = typer.Typer()


@app.command()
def serve(
    model: ModelOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the REST interface, on 127.0.0.1.")] = 8080,
    workers: WorkersOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Serve the model over REST with TorchServe, on this machine only and with a token, until Ctrl-C."""
    from agewatch.serving.torchserve import curl_line

    mar = api.model_file(model)
    typer.echo(f"Starting TorchServe with {mar} ...")
    with api.serve(model=mar, port=port, workers=workers, precision=precision) as served:
        typer.echo(
            f"inference   {served.inference_url}\nmanagement  {served.management_url}\n"
            f"metrics     {served.metrics_url}\ngRPC        {served.grpc_inference}, {served.grpc_management}\n"
            f"tokens      {served.key_file}\nlogs        {served.log_folder}\n\n{curl_line(served)}\n\nready"
        )
        served.wait()
