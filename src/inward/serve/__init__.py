"""A server for everything that can be asked: OpenAI's wire format, and a route for puzzles.

    limits      what a request may cost
    scheduler   one thread a model owns its running work; requests join and leave it
    schemas     what the routes take
    choices     what of it a method can keep; the rest is refused by name
    runs        requests under way, by their ids
    replies     answers and streams in OpenAI's form; responses: in the form of its newer route
    decisions   typed questions and their probabilities; systemone: their route
    shield      key, host, origin, size of bodies, headers, before any route
    app         the routes
    server      the process around them; workers: several of them

Needs the extra: pip install "inward[serve]".
"""

from __future__ import annotations

try:
    import fastapi as _fastapi
    import prometheus_client as _prometheus_client
    import uvicorn as _uvicorn
except ImportError as error:
    raise ImportError(
        f"serving needs {error.name}, which the core install leaves out; run: "
        'pip install "inward[serve]"'
    ) from error

del _fastapi, _prometheus_client, _uvicorn
