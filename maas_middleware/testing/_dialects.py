"""Which path is asked what, and how a request becomes a question."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ._answers import Question, RefusedError
from ._completion import Chat, Text
from ._media import Images, Speech, Transcription, Translation
from ._messages import CountTokens, Messages
from ._pooling import Classify, Embeddings, Pooling, Rerank, Score
from ._responses import Responses
from ._tokenizing import Detokenize, Tokenize

QUESTIONS: Mapping[str, type[Question]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Text,
    "/v1/messages": Messages,
    "/v1/messages/count_tokens": CountTokens,
    "/v1/responses": Responses,
    "/v1/embeddings": Embeddings,
    "/rerank": Rerank,
    "/v1/rerank": Rerank,
    "/v2/rerank": Rerank,
    "/score": Score,
    "/v1/score": Score,
    "/classify": Classify,
    "/pooling": Pooling,
    "/v1/audio/transcriptions": Transcription,
    "/v1/audio/translations": Translation,
    "/v1/audio/speech": Speech,
    "/v1/images/generations": Images,
    "/tokenize": Tokenize,
    "/detokenize": Detokenize,
}


async def read(request: Request, kind: type[Question]) -> Question:
    """What the body of a request asks: a form where it brings a file, JSON everywhere else.

    Raises:
        RefusedError: if the body is none of this kind.
    """
    try:
        if issubclass(kind, Transcription):
            async with request.form() as form:
                return msgspec.convert(dict(form), kind, strict=False, from_attributes=True)
        return msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError, MultiPartException, HTTPException) as error:
        raise RefusedError(str(error)) from None
