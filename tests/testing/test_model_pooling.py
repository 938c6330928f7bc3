from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from maas_middleware.testing.clock import FakeClock
from maas_middleware.testing.model import SimulatedModel
from tests.testing.test_model import client_of, error_of, post, sdk_for

EMBEDDINGS = "/v1/embeddings"


async def answer_of(body: dict[str, Any], path: str) -> Any:
    response = await post(SimulatedModel(clock=FakeClock(5.0)), body, path)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    return response.json()


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


async def test_an_embedding() -> None:
    answer = await answer_of({"model": "simulator", "input": "Hello, how are you?"}, EMBEDDINGS)

    [embedding] = answer.pop("data")
    assert answer == {"id": "embd-1", "object": "list", "created": 5, "model": "simulator", "usage": usage(4)}
    assert (embedding["index"], embedding["object"], len(embedding["embedding"])) == (0, "embedding", 8)
    assert all(0 <= number < 1 for number in embedding["embedding"])


async def test_equal_texts_have_equal_vectors_and_others_have_not() -> None:
    answer = await answer_of({"input": ["A cat.", "A dog.", "A cat."]}, EMBEDDINGS)

    first, second, third = (entry["embedding"] for entry in answer["data"])
    assert first == third
    assert first != second
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == usage(6)


async def test_a_vector_in_base64_is_made_of_little_endian_32_bit_floats() -> None:
    plain = await answer_of({"input": "A cat."}, EMBEDDINGS)
    packed = await answer_of({"input": "A cat.", "encoding_format": "base64"}, EMBEDDINGS)

    vector = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(vector) == plain["data"][0]["embedding"]


async def test_an_unknown_encoding() -> None:
    error = await error_of({"input": "A cat.", "encoding_format": "bytes"}, EMBEDDINGS)

    assert error["message"] == "Invalid enum value 'bytes' - at `$.encoding_format`"


@pytest.mark.parametrize(
    ("asked", "vectors", "tokens"),
    [
        pytest.param([11, 12, 13], 1, 3, id="tokens"),
        pytest.param([[11, 12, 13], [14]], 2, 4, id="lists of tokens"),
    ],
)
async def test_the_input_may_be_tokens(asked: Any, vectors: int, tokens: int) -> None:
    answer = await answer_of({"input": asked}, EMBEDDINGS)

    assert (len(answer["data"]), answer["usage"]) == (vectors, usage(tokens))


async def test_the_openai_sdk_reads_the_same_vector_in_both_encodings() -> None:
    model = SimulatedModel()

    async with sdk_for(model) as sdk:
        packed = await sdk.embeddings.create(model="simulator", input=["A cat.", "A dog."])
        plain = await sdk.embeddings.create(model="simulator", input=["A cat.", "A dog."], encoding_format="float")

    assert [b"base64" in seen.body for seen in model.requests] == [True, False]
    assert [entry.embedding for entry in packed.data] == [entry.embedding for entry in plain.data]
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (4, 4)
    CreateEmbeddingResponse.model_validate(plain.to_dict(), strict=True)


async def test_reranking_puts_the_closest_documents_first() -> None:
    documents = ["Paris is old.", "Berlin", "the capital of France"]

    answer = await answer_of({"query": "The capital of France", "documents": documents, "top_n": 2}, "/rerank")

    assert answer == {
        "id": "rerank-1",
        "model": "simulator",
        "usage": {"prompt_tokens": 20, "total_tokens": 20},
        "results": [
            {"index": 2, "document": {"text": "the capital of France"}, "relevance_score": 1.0},
            {"index": 0, "document": {"text": "Paris is old."}, "relevance_score": 0.0},
        ],
    }


@pytest.mark.parametrize(
    "cap", [pytest.param({}, id="none"), pytest.param({"top_n": None}, id="null"), pytest.param({"top_n": 9}, id="9")]
)
async def test_reranking_without_a_cap_leaves_out_no_document(cap: Any) -> None:
    answer = await answer_of({"query": "b", "documents": ["a", "b c", ""], **cap}, "/rerank")

    assert [(result["index"], result["relevance_score"]) for result in answer["results"]] == [(1, 0.5), (0, 0), (2, 0)]


@pytest.mark.parametrize(
    ("left", "right", "scores", "tokens"),
    [
        pytest.param("a b", "b a", [1.0], 4, id="1:1"),
        pytest.param("a b", ["a b", "a c d"], [1.0, 0.25], 9, id="1:N"),
        pytest.param(["a"], ["a", "b"], [1.0, 0.0], 4, id="1:N as lists"),
        pytest.param(["a", "b"], ["b", "b"], [0.0, 1.0], 4, id="N:N"),
        pytest.param("", "", [0.0], 0, id="empty"),
    ],
)
async def test_scores(left: Any, right: Any, scores: list[float], tokens: int) -> None:
    answer = await answer_of({"text_1": left, "text_2": right}, "/score")

    assert answer == {
        "id": "score-1",
        "object": "list",
        "created": 5,
        "model": "simulator",
        "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)],
        "usage": usage(tokens),
    }


async def test_texts_that_cannot_be_paired() -> None:
    error = await error_of({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "/score")

    assert error["message"] == "Input lengths must be either 1:1, 1:N or N:N"


async def test_classes() -> None:
    answer = await answer_of({"input": ["A cat.", "A large dog."]}, "/classify")

    data = answer.pop("data")
    assert answer == {"id": "classify-1", "object": "list", "created": 5, "model": "simulator", "usage": usage(5)}
    assert [(entry["index"], entry["num_classes"]) for entry in data] == [(0, 2), (1, 2)]
    assert [entry["label"] for entry in data] == ["LABEL_0", "LABEL_1"]
    assert [entry["probs"].index(max(entry["probs"])) for entry in data] == [0, 1]
    assert [sum(entry["probs"]) for entry in data] == [1, 1]


async def test_pooling_gives_the_bare_vector() -> None:
    async with client_of(SimulatedModel()) as client:
        pooled = (await client.post("/pooling", json={"input": "A cat."})).json()
        embedded = (await client.post(EMBEDDINGS, json={"input": "A cat."})).json()

    vector = embedded["data"][0]["embedding"]
    assert pooled["id"] == "pool-1"
    assert pooled["data"] == [{"index": 0, "object": "pooling", "data": vector}]
    assert pooled["usage"] == usage(2)
