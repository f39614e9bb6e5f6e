"""`peft chat RUN...`: talk to what was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftcli.console.decoding_options import SamplingSeed, Temperature, TopK, TopP
from peftcli.console.options import BaseDtype, CheckpointName, TrustRemoteCode, note
from peftcli.console.progress_bar import progress_shown
from peftcli.console.standard_input import text_lines
from peftcli.process_state import large_imports


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("chat", short_help="Talk to a run, a merged model, or a recipe's base.")(chat)


def chat(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Runs, directories with a complete model, or recipes (for their base). The first one answers.",
            show_default=False,
        ),
    ],
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System prompt.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Maximum length of an answer in tokens.")
    ] = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: SamplingSeed = 0,
    base_dtype: BaseDtype = None,
    checkpoint: CheckpointName = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="In a pipe: write each answer as a JSON string, which keeps line breaks.")
    ] = False,
) -> None:
    """Talk to a causal language model that was trained, with the run's chat template.

    On a terminal, /help shows the commands: /base asks the base the same question, /adapter NAME lets another run
    answer, Ctrl-C stops an answer. In a pipe, each line of standard input is a user turn, and each answer is one line
    of standard output.

    Example: peft chat runs/lora --system "Answer briefly." --temperature 0.7
    """
    from peftcli.tasks.decoding import Decoding

    decoding = Decoding(temperature, top_p, top_k)
    with progress_shown():
        from peftcli.console.chat.chat_screen import ChatScreen, answer_lines

        with large_imports():
            from peftcli.inference.chat.chat_models import find_targets
            from peftcli.inference.chat.chat_session import Chat, ChatSettings

        models = find_targets(runs, base_dtype, checkpoint, trust_code=trust_remote_code)
        session = Chat(models, ChatSettings(system, max_new_tokens, decoding, seed))
        notes = session.open()
    for text in notes:
        note(text)
    if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        ChatScreen(session).run()
    else:
        answer_lines(session, text_lines(sys.stdin), as_json=as_json)
