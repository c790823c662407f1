"""The REST APIs on the page's own port: OpenAI's and DeepInfra's, Ollama's, Cloudflare's, and the server's health.

    application   one FastAPI application, its documentation at /v1/docs, and the route that precedes the page's routes
    openai        /v1 and /v1/openai: chat completions, Responses and models
    ollama        /api: chat, generate, and what clients ask about models
    cloudflare    /client/v4/accounts/{id}/ai and /ai/run
    monitoring    /health, /healthz and /metrics
    access        API keys
    asking        from a request's body to its answers, until the caller disconnects

Like the page they make `ChatRequest`s and read `Chunk`s; no route knows the model or another route's format.
"""

from llava_demo.api.access import Access
from llava_demo.api.application import RestRoutes, demo_error, is_rest, unrouted
from llava_demo.api.asking import max_body_bytes

__all__ = ["Access", "RestRoutes", "demo_error", "is_rest", "max_body_bytes", "unrouted"]
