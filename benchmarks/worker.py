"""What the workers of the peers share: a JSON object a line, jobs in and answers out. Needs nothing but Python."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any


def serve(solve: Callable[[dict[str, Any]], dict[str, Any]], packages: Sequence[str], **facts: Any) -> None:
    """Says the versions of the packages and what else is known of the process, then answers jobs until they end.

    What the library raises is an answer too, `error`: one of its options may fail where others do not.
    """
    warnings.simplefilter("ignore")
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the library prints is no answer
    hello = {**{name: importlib.metadata.version(name) for name in packages}, **facts}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = solve(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
