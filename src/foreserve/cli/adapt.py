"""`foreserve adapt`: train a task for a frozen encoder, for an `Encoder` service to serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from foreserve.cli.ending import wrong
from foreserve.errors import ConfigError, ForeserveError

console = Console(stderr=True)


def adapt(
    model: Annotated[str, typer.Argument(help="A packaged encoder's name, or the folder of one.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="JSONL of text and label, or images by class folders.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The task's folder; its name is the task's.")],
    held_out: Annotated[
        Path | None, typer.Option(help="Data to measure accuracy on. [default: 15 % of DATA, by the seed]")
    ] = None,
    merge: Annotated[str, typer.Option(help="Tokens merged in each layer: settings to try.")] = "1,2,4,8",
    prompts: Annotated[str, typer.Option(help="Numbers of prompts to train.")] = "4",
    epochs: Annotated[int, typer.Option(help="Rounds over the data, for each number of prompts.")] = 8,
    batch: Annotated[int, typer.Option(help="Inputs that are trained on together.")] = 32,
    rate: Annotated[float, typer.Option(help="The learning rate of prompts.")] = 1e-2,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Of torch. [default: one for each core]")] = None,
) -> None:
    """Train a head and prompts for a task on a frozen encoder, and measure every token setting on held-out data.

    Ended at any time, the same command goes on where it was. Serve it with `Encoder(MODEL, tasks=FOLDER-OF-TASKS)`.
    Example: `foreserve adapt minilm train.jsonl --held-out test.jsonl --out tasks/mood --prompts 4,8`.
    """
    try:
        _adapt(model, data, out, held_out, _numbers(merge), _numbers(prompts), epochs, batch, rate, seed, threads)
    except ForeserveError as error:
        wrong(str(error))


def _numbers(words: str) -> tuple[int, ...]:
    """Numbers of at least 1, apart by commas; none at all is fine."""
    try:
        found = tuple(int(word) for word in words.split(",") if word.strip())
    except ValueError:
        found = (0,)
    if any(each < 1 for each in found):
        raise ConfigError(f"{words!r}: whole numbers of at least 1 are wanted, such as 2,4,8")
    return found


def _adapt(
    model: str,
    data: Path,
    out: Path,
    held_out: Path | None,
    merges: tuple[int, ...],
    prompts: tuple[int, ...],
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
    threads: int | None,
) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch

        from foreserve.elastic.adapting import Adapting, Plan
        from foreserve.elastic.loading import load
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'foreserve[torch]'") from error
    from foreserve.elastic.folder import read_folder
    from foreserve.elastic.labelled import read_labelled
    from foreserve.models.catalog import locate

    if threads is not None:
        torch.set_num_threads(threads)
    plan = Plan(merges=merges, prompts=prompts, epochs=epochs, batch=batch, rate=rate, seed=seed)
    folder = locate(model, "adapt").path
    facts = read_folder(folder)
    if facts.cross:
        raise ConfigError(f"{folder} is a cross-encoder, which has a task of its own")
    train, labels = read_labelled(data, folder, facts, ())
    if held_out is None:
        train, kept = train.split(0.15, seed)
    else:
        kept, _ = read_labelled(held_out, folder, facts, labels)
    encoder, _ = load(folder, facts, "f32")
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("adapting", total=1.0)

        def progress(done: float, what: str) -> None:
            bars.update(task, completed=done, description=what)

        found = Adapting(encoder, folder, facts, train, kept, labels, plan, out, progress).run()
    table = Table(title=f"{found.name}: {len(train.numbers)} to train on, {found.held_out} held out")
    for column in ("setting", "accuracy", ""):
        table.add_column(column)
    for setting, accuracy in found.accuracy.items():
        table.add_row(setting, f"{accuracy:.4f}", "" if setting in found.kept else "another is as good and no dearer")
    console.print(table)
    console.print(f"written to {out}; serve it with tasks={str(out.parent)!r}", highlight=False)
