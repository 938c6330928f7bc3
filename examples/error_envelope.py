"""`ErrorEnvelopeMiddleware` alone: whatever a FastAPI app answers or raises, clients read errors as OpenAI's.

    uvicorn examples.error_envelope:app

    curl -i localhost:8000/voices/tenor
    curl -i localhost:8000/voices/alto
    curl -i "localhost:8000/voices/bass?octave=high"

Every answer has an `x-request-id`, and the message of a 500 names it. The exception itself is in the server's log.
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException

from maas_middleware import ErrorEnvelopeMiddleware

app = FastAPI()
app.add_middleware(ErrorEnvelopeMiddleware)


@app.get("/voices/{name}")
async def voice(name: str, octave: int = 0) -> dict[str, str | int]:
    if name == "tenor":
        raise HTTPException(404, "There is no tenor")  # {"detail": ...}
    if name == "alto":
        raise RuntimeError("the alto is hoarse")
    return {"voice": name, "octave": octave}
