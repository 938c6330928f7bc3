from __future__ import annotations

import copy
import json
import pickle
from itertools import permutations
from typing import Any

import pytest

from maas_middleware.errors import InvalidRequest
from maas_middleware.requests import JSONRequest


def parse(**fields: Any) -> JSONRequest:
    return JSONRequest.parse(json.dumps(fields).encode())


def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        JSONRequest.parse(body)
    return caught.value


# what is forwarded is what was judged


def test_requests_are_equal_where_their_fields_are() -> None:
    request = parse(model="m", n=2)

    assert request.encoded
    assert request == parse(model="m", n=2)
    assert request != parse(model="m", n=3)


def test_body_is_made_once() -> None:
    request = parse(model="m")

    assert request.encoded is request.encoded


def test_request_that_was_judged_cannot_be_changed() -> None:
    request = parse(model="m")

    with pytest.raises(AttributeError):
        request.model = "other"  # type: ignore[misc]  # which is what is tested


def test_of_several_fields_that_are_wrong_it_is_always_the_same_that_is_named() -> None:
    wrong = ['"n":-1', '"stream":1', '"model":5']

    assert {refusal(f"{{{','.join(fields)}}}".encode()).param for fields in permutations(wrong)} == {"model"}


def test_sound_is_no_text_either() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 4000, "format": "wav"}}

    assert parse(messages=[{"role": "user", "content": [sound]}]).prompt_tokens < 600


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model":"cheap","model":"dear"}', id="plain"),
        pytest.param(b'{"model":"cheap","\\u006dodel":"dear"}', id="escaped"),
        pytest.param(b'{"model":5,"model":"dear"}', id="the-first-of-a-wrong-type"),
    ],
)
def test_of_duplicate_keys_the_upstream_sees_the_one_that_was_judged(body: bytes) -> None:
    request = JSONRequest.parse(body)

    assert request.model == "dear"
    assert request.encoded == b'{"model":"dear"}'


def test_duplicate_keys_are_gone_from_what_is_made_of_the_request() -> None:
    request = JSONRequest.parse(b'{"stream":false,"model":"a","stream":true,"model":"b"}')

    assert request.stream is True
    assert request.naming("c").encoded == b'{"stream":true,"model":"c"}'
    asking = request.asking_for_usage(running=False)
    assert asking.encoded == b'{"stream":true,"model":"b","stream_options":{"include_usage":true}}'


def test_numbers_and_unknown_fields_keep_the_notation_of_the_client() -> None:
    body = (
        b'{"model":"m","temperature":0.1000000000000000055511151231257827,"seed":123456789012345678901234567890,'
        b'"x":{"deep":[1e-400,-0.0,1E5,"\\u00e9\\/"]},"logit_bias":{"50256":-100,"50256":1.0}}'
    )

    assert JSONRequest.parse(body).encoded == body


def test_white_space_between_the_fields_is_all_that_is_lost() -> None:
    request = JSONRequest.parse(b' {\n "model" : "m" , "n" : 1 }\r\n')

    assert request.encoded == b'{"model":"m","n":1}'


def test_what_was_encoded_is_parsed_to_the_same_request() -> None:
    request = JSONRequest.parse('{ "model": "ünï", "max_tokens": 5, "a": [1, 2] }'.encode())

    again = JSONRequest.parse(request.encoded)

    assert again.encoded == request.encoded
    assert (again.model, again.cap) == ("ünï", 5)


def test_request_survives_copies() -> None:
    request = parse(model="m", messages=[], max_tokens=5)

    for twin in (copy.deepcopy(request), pickle.loads(pickle.dumps(request))):
        assert twin == request
        assert twin.naming("n").encoded == request.naming("n").encoded


# what is no JSON object


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="truncated"),
        pytest.param(b'{"model":"m"', id="truncated-after-a-value"),
        pytest.param(b'{"model":"m"}x', id="more-behind"),
        pytest.param(b'{"model":"m"}{}', id="two-objects"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'"text"', id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(b'{"temperature":NaN}', id="nan-as-value"),
        pytest.param(b'{"a":{"b":[Infinity]}}', id="infinity-inside"),
        pytest.param(b'{"a":01}', id="leading-zero"),
        pytest.param(b'{"a":1,}', id="trailing-comma"),
        pytest.param(b"{'a':1}", id="single-quotes"),
        pytest.param(b'{"a":1/*b*/}', id="comment"),
        pytest.param(b'{"a":"\x01"}', id="control-character"),
        pytest.param(b'{"a":"\\x"}', id="unknown-escape"),
        pytest.param(b'{"a":"\\ud800"}', id="half-a-character"),
        pytest.param(b'\xef\xbb\xbf{"model":"m"}', id="bom"),
        pytest.param('{"model":"m"}'.encode("utf-16"), id="utf-16"),
        pytest.param('{"model":"m"}'.encode("utf-16-le"), id="utf-16-without-bom"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100000-arrays"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="100000-objects"),
        pytest.param(b"[" * 100_000, id="100000-arrays-that-never-end"),
        pytest.param(b'{"\xff":1}', id="key-not-utf-8"),
        pytest.param(b'{"messages":[{"content":"\xff"}]}', id="value-not-utf-8"),
        pytest.param(b'{"model":"\xc3"}', id="half-a-utf-8-character"),
        pytest.param(b'{"a":"\xc0\xa2,\xc0\xa2model\xc0\xa2:1"}', id="overlong-utf-8"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="surrogate-in-utf-8"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    error = refusal(body)

    assert (error.status, error.code) == (400, "invalid_json")
    assert error.message == "The request body is not a JSON object"


def test_nested_request_is_served_up_to_some_depth_and_refused_below_it() -> None:
    def is_served(depth: int) -> bool:
        body = b'{"stream_options":{"x":' + b"[" * depth + b"]" * depth + b"}}"
        try:
            return b"include_usage" in JSONRequest.parse(body).asking_for_usage(running=False).encoded
        except InvalidRequest:
            return False

    served = [is_served(depth) for depth in range(1, 1200)]

    assert served[0]
    assert served == sorted(served, reverse=True)


# fields that decide


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("model", "5", id="model-number"),
        pytest.param("model", '["m"]', id="model-list"),
        pytest.param("stream", '"true"', id="stream-text"),
        pytest.param("stream", "1", id="stream-number"),
        pytest.param("stream", '"false"', id="stream-false-as-text"),
        pytest.param("stream_options", "[]", id="stream-options-list"),
        pytest.param("stream_options", "true", id="stream-options-bool"),
        pytest.param("stream_options", '{"include_usage":1}', id="include-usage-number"),
        pytest.param("stream_options", '{"include_usage":"true"}', id="include-usage-text"),
        pytest.param("max_tokens", '"100"', id="max-tokens-text"),
        pytest.param("max_tokens", "1.5", id="max-tokens-fraction"),
        pytest.param("max_tokens", "1e2", id="max-tokens-exponent"),
        pytest.param("max_tokens", "true", id="max-tokens-bool"),
        pytest.param("max_tokens", "-1", id="max-tokens-negative"),
        pytest.param("max_tokens", "2147483648", id="max-tokens-over-31-bits"),
        pytest.param("max_tokens", str(10**400), id="max-tokens-400-digits"),
        pytest.param("max_tokens", "1" + "0" * 10_000, id="max-tokens-10000-digits"),
        pytest.param("max_completion_tokens", "{}", id="max-completion-tokens-object"),
        pytest.param("max_output_tokens", "-5", id="max-output-tokens-negative"),
        pytest.param("n", "-1", id="n-negative"),
        pytest.param("n", str(10**400), id="n-400-digits"),
        pytest.param("best_of", '"2"', id="best-of-text"),
    ],
)
def test_known_field_with_an_invalid_value_is_refused_by_name(name: str, value: str) -> None:
    error = refusal(f'{{"model":"m","{name}":{value}}}'.encode().replace(b'"model":"m","model"', b'"model"'))

    assert (error.status, error.code, error.param) == (400, "invalid_value", name)
    assert error.message == f"`{name}` has an invalid value"


def test_fields_that_are_null_are_absent() -> None:
    request = JSONRequest.parse(
        b'{"model":null,"stream":null,"stream_options":null,"max_tokens":null,"max_completion_tokens":null,'
        b'"max_output_tokens":null,"n":null,"best_of":null}'
    )

    assert (request.model, request.stream, request.include_usage) == (None, False, False)
    assert (request.cap, request.answers) == (None, 1)


@pytest.mark.parametrize(
    ("fields", "stream", "include_usage"),
    [
        pytest.param({}, False, False, id="nothing"),
        pytest.param({"stream": False}, False, False, id="no-stream"),
        pytest.param({"stream": True}, True, False, id="stream"),
        pytest.param({"stream": True, "stream_options": {}}, True, False, id="no-options"),
        pytest.param({"stream": True, "stream_options": {"include_usage": None}}, True, False, id="null"),
        pytest.param({"stream": True, "stream_options": {"include_usage": False}}, True, False, id="not-asked"),
        pytest.param({"stream": True, "stream_options": {"include_usage": True}}, True, True, id="asked"),
    ],
)
def test_request_tells_whether_it_streams_and_asks_for_usage(
    fields: dict[str, Any], stream: bool, include_usage: bool
) -> None:
    request = parse(model="m", **fields)

    assert (request.stream, request.include_usage) == (stream, include_usage)


@pytest.mark.parametrize(
    ("fields", "cap"),
    [
        pytest.param({}, None, id="no-cap"),
        pytest.param({"max_tokens": 100}, 100, id="max-tokens"),
        pytest.param({"max_tokens": 0}, 0, id="zero"),
        pytest.param({"max_completion_tokens": 100}, 100, id="max-completion-tokens"),
        pytest.param({"max_output_tokens": 100}, 100, id="max-output-tokens"),
        pytest.param({"max_tokens": 1, "max_completion_tokens": 738}, 738, id="max-completion-tokens-is-larger"),
        pytest.param({"max_tokens": 738, "max_completion_tokens": 1}, 738, id="max-tokens-is-larger"),
        pytest.param({"max_tokens": 1, "max_output_tokens": 50}, 50, id="max-output-tokens-is-larger"),
        pytest.param({"max_tokens": None, "max_output_tokens": 50}, 50, id="null-is-none"),
        pytest.param({"max_tokens": 100, "n": 3}, 100, id="of-one-answer"),
        pytest.param({"max_tokens": 2**31 - 1}, 2**31 - 1, id="largest-possible"),
    ],
)
def test_the_largest_of_all_caps_counts(fields: dict[str, Any], cap: int | None) -> None:
    assert parse(model="m", **fields).cap == cap


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        pytest.param({}, 1, id="nothing"),
        pytest.param({"n": 3}, 3, id="n"),
        pytest.param({"n": 0}, 1, id="n-of-zero-is-one"),
        pytest.param({"best_of": 5}, 5, id="best-of"),
        pytest.param({"n": 2, "best_of": 5}, 5, id="best-of-is-larger"),
        pytest.param({"n": 5, "best_of": 2}, 5, id="n-is-larger"),
        pytest.param({"prompt": "text"}, 1, id="text"),
        pytest.param({"prompt": ""}, 1, id="no-text"),
        pytest.param({"prompt": None}, 1, id="null"),
        pytest.param({"prompt": []}, 1, id="empty-list"),
        pytest.param({"prompt": [1, 2, 3]}, 1, id="token-ids"),
        pytest.param({"prompt": ["a"]}, 1, id="one-prompt-in-a-list"),
        pytest.param({"prompt": ["a", "b", "c"]}, 3, id="several-texts"),
        pytest.param({"prompt": [[1, 2], [3], [4]]}, 3, id="several-lists-of-token-ids"),
        pytest.param({"prompt": [{"prompt_token_ids": [1]}, {"prompt": "b"}]}, 2, id="several-objects"),
        pytest.param({"prompt": {"id": "pmpt"}}, 1, id="object"),
        pytest.param({"prompt": ["a", "b"], "n": 3}, 6, id="several-prompts-times-n"),
        pytest.param({"n": 2**31 - 1}, 2**31 - 1, id="largest-possible"),
        pytest.param({"input": ["a", "b"]}, 1, id="inputs-are-not-answered-one-by-one"),
    ],
)
def test_answers_are_counted_for_every_prompt_and_choice(fields: dict[str, Any], answers: int) -> None:
    assert parse(model="m", **fields).answers == answers


def test_prompts_are_counted_whatever_white_space_is_between_them() -> None:
    assert JSONRequest.parse(b'{"prompt": [\n\t"a" ,\r "b"]}').answers == 2


@pytest.mark.parametrize("mark", [pytest.param(b'"",', id="texts"), pytest.param(b"[],", id="lists")])
def test_more_prompts_than_anybody_needs_are_refused(mark: bytes) -> None:
    error = refusal(b'{"prompt":[' + mark * 500_001 + mark[:-1] + b"]}")

    assert (error.code, error.param, error.message) == ("invalid_value", "prompt", "`prompt` has too many parts")


# what becomes of a request


def test_request_that_names_the_model_already_is_left_alone() -> None:
    request = parse(model="m")

    assert request.naming("m") is request


@pytest.mark.parametrize(
    ("body", "encoded"),
    [
        pytest.param(b'{"model":"m","n":1}', b'{"model":"/models/x","n":1}', id="named"),
        pytest.param(b'{"n":1}', b'{"n":1,"model":"/models/x"}', id="absent"),
        pytest.param(b'{"model":null}', b'{"model":"/models/x"}', id="null"),
    ],
)
def test_upstream_sees_its_own_name_of_the_model(body: bytes, encoded: bytes) -> None:
    request = JSONRequest.parse(body).naming("/models/x")

    assert (request.model, request.encoded) == ("/models/x", encoded)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b'"request_id":"mine"', id="key-of-the-running-request"),
        pytest.param(b'"priority":-100', id="before-all-others"),
        pytest.param(b'"kv_transfer_params":{"remote_host":"10.0.0.1"}', id="memory-of-others"),
        pytest.param(b'"ec_transfer_params":{"remote_host":"10.0.0.1"}', id="images-of-others"),
        pytest.param(b'"stream_interval":1000', id="many-tokens-in-a-piece"),
    ],
)
@pytest.mark.parametrize("name", [pytest.param("m", id="same-name"), pytest.param("/models/x", id="another-name")])
def test_what_is_not_the_users_to_say_does_not_reach_the_upstream(field: bytes, name: str) -> None:
    request = JSONRequest.parse(b"{" + field + b',"model":"m","n":1}').naming(name)

    assert request.encoded == b'{"model":"%s","n":1}' % name.encode()
    assert list(request.fields) == ["model", "n"]


def test_request_is_given_a_cap_in_the_field_that_its_server_reads() -> None:
    request = JSONRequest.parse(b'{"model":"m","max_output_tokens":null,"n":2}').capped("max_output_tokens", 50)

    assert request.encoded == b'{"model":"m","max_output_tokens":50,"n":2}'
    assert (request.cap, request.answers) == (50, 2)
    assert request.naming("n").encoded == b'{"model":"n","max_output_tokens":50,"n":2}'


# single fields


@pytest.mark.parametrize(
    ("value", "says_anything"),
    [
        pytest.param(b"null", False, id="null"),
        pytest.param(b"false", False, id="false"),
        pytest.param(b'""', False, id="no-text"),
        pytest.param(b"[]", False, id="empty-list"),
        pytest.param(b"[ \n]", False, id="empty-list-with-space"),
        pytest.param(b"{}", False, id="empty-object"),
        pytest.param(b"{\t}", False, id="empty-object-with-space"),
        pytest.param(b"0", True, id="zero"),
        pytest.param(b"true", True, id="true"),
        pytest.param(b'" "', True, id="text"),
        pytest.param(b"[null]", True, id="list"),
        pytest.param(b'{"a":null}', True, id="object"),
    ],
)
def test_field_says_something_or_nothing(value: bytes, says_anything: bool) -> None:
    request = JSONRequest.parse(b'{"x": ' + value + b" }")

    assert request.has("x") is says_anything
    assert not request.has("y")


def test_value_of_a_field_is_json_data() -> None:
    request = parse(a={"b": [1, None, "c"]})

    assert request.value("a") == {"b": [1, None, "c"]}
    assert request.value("b") is None


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        pytest.param(None, b'{"include_usage":true}', id="absent"),
        pytest.param(b"null", b'{"include_usage":true}', id="null"),
        pytest.param(b"{}", b'{"include_usage":true}', id="empty"),
        pytest.param(b'{"include_usage":false}', b'{"include_usage":true}', id="declined"),
        pytest.param(b'{"include_usage":null,"x":1.10}', b'{"include_usage":true,"x":1.10}', id="others-are-kept"),
        pytest.param(
            b'{"x":0.1000000000000000055,"y":"\\u00e9"}',
            b'{"x":0.1000000000000000055,"y":"\\u00e9","include_usage":true}',
            id="others-keep-their-notation",
        ),
        pytest.param(
            b'{"include_usage":false,"include_usage":null}', b'{"include_usage":true}', id="duplicates-become-one"
        ),
        # it has no effect without include_usage; with ours it would put usage into every chunk
        pytest.param(b'{"continuous_usage_stats":true}', b'{"include_usage":true}', id="no-continuous-usage"),
    ],
)
def test_asking_for_usage_keeps_the_other_stream_options(options: bytes | None, asked: bytes) -> None:
    given = b"" if options is None else b',"stream_options":' + options

    request = JSONRequest.parse(b'{"model":"m","stream":true' + given + b"}")
    asking = request.asking_for_usage(running=False)

    assert asking.encoded == b'{"model":"m","stream":true,"stream_options":' + asked + b"}"
    assert (asking.model, asking.stream, asking.include_usage) == ("m", True, request.include_usage)


@pytest.mark.parametrize(
    ("options", "running", "asked"),
    [
        pytest.param(None, True, '{"include_usage":true,"continuous_usage_stats":true}', id="nothing"),
        pytest.param({"include_usage": True}, True, '{"include_usage":true,"continuous_usage_stats":true}', id="usage"),
        pytest.param(
            {"continuous_usage_stats": False, "a": 1},
            True,
            '{"a":1,"include_usage":true,"continuous_usage_stats":true}',
            id="refused-by-the-client",
        ),
        pytest.param(
            {"include_usage": True, "continuous_usage_stats": True},
            False,
            '{"include_usage":true,"continuous_usage_stats":true}',
            id="asked-by-the-client",
        ),
    ],
)
def test_running_usage_is_asked_for_where_it_is_told(options: dict[str, Any] | None, running: bool, asked: str) -> None:
    request = JSONRequest.parse(json.dumps({"model": "m", "stream_options": options}).encode())

    asking = request.asking_for_usage(running=running)

    assert json.loads(asking.encoded)["stream_options"] == json.loads(asked)


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        pytest.param({"include_usage": True, "continuous_usage_stats": True}, True, id="both"),
        pytest.param({"continuous_usage_stats": True}, False, id="without-usage-it-has-no-effect"),
        pytest.param({"include_usage": False, "continuous_usage_stats": True}, False, id="usage-is-refused"),
        pytest.param({"include_usage": True, "continuous_usage_stats": None}, False, id="null"),
        pytest.param({"include_usage": True}, False, id="usage-alone"),
        pytest.param(None, False, id="no-options"),
    ],
)
def test_client_asks_for_running_usage(options: dict[str, Any] | None, asks: bool) -> None:
    request = JSONRequest.parse(json.dumps({"model": "m", "stream_options": options}).encode())

    assert request.running_usage is asks


# estimates


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_prompt_is_estimated_from_its_bytes() -> None:
    messages = [{"role": "user", "content": "x" * 400}]
    size = len(json.dumps(messages).encode())

    assert parse(model="m", messages=messages).prompt_tokens == -(-size // 4)
    assert parse(model="m", prompt="x" * 400).prompt_tokens == 101
    assert parse(model="m", prompt="x" * 398, tools=["y" * 396]).prompt_tokens == 200
    assert parse(model="m", data={"text": "x" * 388}).prompt_tokens == 100
    assert parse(model="m", metadata="x" * 400).prompt_tokens == 0


@pytest.mark.parametrize(
    "name",
    [
        *("messages", "prompt", "suffix", "system", "instructions", "input", "tools", "functions"),
        *("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2"),
    ],
)
def test_everything_that_a_model_reads_is_its_prompt(name: str) -> None:
    request = parse(model="m", **{name: "x" * 398})

    assert (request.prompt_tokens, request.prompt_bytes) == (100, 400)


def test_text_of_several_bytes_a_character_counts_by_its_bytes() -> None:
    body = json.dumps({"prompt": "你" * 100}, ensure_ascii=False).encode()

    assert JSONRequest.parse(body).prompt_tokens == 76


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("data:image/png;base64,", id="empty"),
        pytest.param("data:image/png;base64," + "A" * 1_000_000, id="a-megabyte"),
        pytest.param("https://example.com/" + "a" * 40, id="an-address"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_image_counts_the_same_whatever_its_size(url: str, count: int) -> None:
    text = {"type": "text", "text": "What is this?"}
    size = len(json.dumps([{"role": "user", "content": [text, *[image("")] * count]}]))

    request = parse(messages=[{"role": "user", "content": [text, *[image(url)] * count]}])

    assert 512 * count <= request.prompt_tokens <= 512 * count + size // 4 + 20 * count


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"type": "input_image", "image_url": "data:image/png;base64," + "A" * 9000}, id="responses"),
        pytest.param(
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 9000}},
            id="messages",
        ),
        pytest.param({"image_url": "data:image/png;base64," + "A" * 9000}, id="without-a-type"),
    ],
)
def test_image_of_another_dialect_counts_once(part: dict[str, Any]) -> None:
    assert 512 <= parse(input=[part]).prompt_tokens <= 512 + 40


def test_prompt_bytes_count_images_whole() -> None:
    part = image("data:image/png;base64," + "A" * 9000)

    assert parse(messages=[part], metadata="x" * 99).prompt_bytes == len(json.dumps([part]))


@pytest.mark.parametrize(
    "name", ["Model", "MODEL", "Max_Tokens", "STREAM", "max_to\u212aens", "Tools", "Background", "Audio"]
)
def test_field_that_looks_like_a_judged_one_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**{"model": "a", name: "b"})

    assert (caught.value.code, caught.value.param) == ("invalid_value", name)
    assert caught.value.message == f"`{name}` has to be written `{name.casefold()}`"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{" + b",".join(b'"k%d":1' % key for key in range(1001)) + b"}", id="at the top"),
        pytest.param(b'{"a":{' + b",".join(b'"k%d":1' % key for key in range(250_001)) + b"}}", id="anywhere"),
        pytest.param(b'{"a":{' + b",".join(b'"k%d"\t:1' % key for key in range(250_001)) + b"}}", id="with spaces"),
    ],
)
def test_body_with_more_keys_than_anybody_needs_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="The request body has too many keys"):
        JSONRequest.parse(body)


def test_large_body_with_few_keys_is_read() -> None:
    assert JSONRequest.parse(b'{"prompt":"' + b"a" * (2 << 20) + b'"}').prompt_tokens > 500_000
