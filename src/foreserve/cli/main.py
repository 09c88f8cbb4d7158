"""The `foreserve` command: one subcommand a module."""

from __future__ import annotations

import typer

from foreserve import __version__
from foreserve.cli.adapt import adapt
from foreserve.cli.bench import bench
from foreserve.cli.calibrate import calibrate
from foreserve.cli.explain import explain
from foreserve.cli.graph import app as graph
from foreserve.cli.learn import forget_, learn
from foreserve.cli.replay import replay_
from foreserve.cli.serve import serve
from foreserve.cli.servers import app as servers
from foreserve.cli.simulate import simulate
from foreserve.cli.top import top
from foreserve.cli.trace import app as trace

app = typer.Typer(
    name="foreserve",
    help="Serve models with foresight.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(bench)
app.command()(explain)
app.command()(top)
app.command()(calibrate)
app.command()(learn)
app.command()(adapt)
app.command()(simulate)
app.command("replay")(replay_)
app.command("forget")(forget_)
app.add_typer(graph, name="graph")
app.add_typer(servers, name="servers")
app.add_typer(trace, name="trace")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foreserve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Serve models with foresight."""


def main() -> None:
    """The entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
