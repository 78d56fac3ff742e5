"""A client of the server in a pod: `python - ACTION TOKEN` prints what it saw as JSON.

| action | what it does |
|---|---|
| `reach` | asks whether the server is ready, for a minute at most |
| `compare` | asks for the probabilities of a recording, and computes them with the registered model |
| `status` | asks once, and prints the status |
| `loop` | asks with two threads until the file /tmp/stop exists, and counts the answers |
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ADDRESS = "http://serve-serve-svc.ast:8000"
TRACKING = "http://mlflow.ast:5000"
MODEL = "models:/ast-demo@champion"
STOP = Path("/tmp/stop")  # of this pod


def make_recording() -> bytes:
    """Return three seconds of noise as WAV."""
    content = io.BytesIO()
    soundfile.write(content, np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000, format="WAV")
    return content.getvalue()


def ask(token: str, recording: bytes) -> tuple[int, dict[str, Any]]:
    """Return status and answer of the server."""
    headers = {"Content-Type": "audio/wav", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{ADDRESS}/v1/predict", recording, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}


def reach() -> str:
    """Return `reached`, or why the server cannot be reached."""
    seen = ""
    for _ in range(10):  # a network plugin needs a moment before it knows a new pod
        try:
            urllib.request.urlopen(f"{ADDRESS}/readyz", timeout=5).close()
        except urllib.error.HTTPError:
            return "reached, but not ready"
        except OSError as error:
            seen = repr(error)
            time.sleep(2)
        else:
            return "reached"
    return seen


def compare(token: str) -> dict[str, Any]:
    """Return the server's probabilities and those of the registered model in this process."""
    import ast_core  # noqa: PLC0415  # the other actions need no torch
    from pipeline.tracking.model_choice import fetch_model_folder  # noqa: PLC0415

    recording = make_recording()
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(recording)
        file.flush()
        expected = ast_core.load(fetch_model_folder(MODEL, TRACKING)).predict(file.name)
    status, answer = ask(token, recording)
    return {"status": status, "answer": answer, "expected": expected}


def loop(token: str) -> Counter[str]:
    """Return the number of answers by status, or by the error of the connection."""
    seen: Counter[str] = Counter()
    recording = make_recording()

    def ask_again() -> None:
        while not STOP.exists():
            try:
                seen[str(ask(token, recording)[0])] += 1
            except OSError as error:
                seen[type(getattr(error, "reason", error)).__name__] += 1
            time.sleep(0.05)

    threads = [threading.Thread(target=ask_again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def main() -> None:
    """Run the action of the command line."""
    action, token = sys.argv[1:]
    actions = {
        "reach": reach,
        "compare": lambda: compare(token),
        "status": lambda: ask(token, make_recording())[0],
        "loop": lambda: loop(token),
    }
    sys.stdout.write(f"{json.dumps(actions[action]())}\n")


if __name__ == "__main__":
    main()
