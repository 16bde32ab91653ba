"""The official OpenAI client, which checks every response, against a real server."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest

import openglm
from helpers_serve import scripted, serving

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "天气",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


TOO_LONG = [{"role": "user", "content": "ж" * 3000}]


def script(conversation: str) -> str:
    question = conversation.rsplit("<|user|>", 1)[-1]
    if "<|observation|>" in conversation:
        return "\n晴天。"
    if "weather" in question:
        return '\n让我看看<|assistant|>get_weather\n{"city": "北京"}'
    if "json" in question:
        return '\n{"a": [1, 2]}'
    if "count" in question:
        return "\n" + " ".join(map(str, range(40)))
    return "\nHello, 你好👋!"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = {"glm-4": scripted(tmp_path_factory.mktemp("glm4"), script), "mini": openglm.load()}
    with serving(models, aliases={"gpt-4o": "glm-4"}) as found:
        yield found


def events(client, path, body):
    """The events of a stream, without a client's help."""
    key = {"Authorization": f"Bearer {client.api_key}"}
    with httpx2.stream("POST", f"{client.base_url}{path}", json=body, headers=key) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def ask(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(**{"model": "glm-4", "messages": messages} | more)


def test_an_answer(client):
    """A chat client gets no answer, or another than the model's."""
    done = ask(client, "hi")
    (choice,) = done.choices
    assert choice.message.content == "Hello, 你好👋!"
    assert choice.finish_reason == "stop"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.completion_tokens > 5
    assert ask(client, "hi", model="gpt-4o").model == "gpt-4o"


def test_tokens_that_were_known(client):
    """Usage does not tell what the cache saved, or counts it for each of several completions."""
    text = "The same long question, asked again. " * 20
    ask(client, text)
    used = ask(client, text, n=3).usage
    assert 0 < used.prompt_tokens_details.cached_tokens < used.prompt_tokens
    assert ask(client, "Another one?" * 20).usage.prompt_tokens_details.cached_tokens < 16


def test_a_stream(client):
    """Half a character is sent, or usage although nobody asked for it."""
    chunks = list(ask(client, "hi", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == "Hello, 你好👋!"
    assert "\ufffd" not in "".join(texts)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    *_, last = ask(client, "hi", stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens > 5


@pytest.mark.parametrize("streams", [False, True])
def test_a_stop_string_is_never_seen(client, streams):
    """A stop string that lies across tokens reaches the client."""
    if streams:
        chunks = list(ask(client, "count", stream=True, stop=[" 12 13"]))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = ask(client, "count", stop=" 12 13").choices[0].message.content
    assert text == " ".join(map(str, range(12)))


def test_a_stop_string_may_come_too_early(client):
    """A stop string ends an answer that must be longer, or is seen once it may end it."""
    least = {"min_tokens": 30}
    text = ask(client, "count", stop=" 3", extra_body=least).choices[0].message.content
    assert text.startswith("0 1 2 3 4 5")
    assert not text.endswith(" 3")
    assert len(text) < len(ask(client, "count").choices[0].message.content)


def test_length(client):
    """max_tokens is not kept, or its end has another name."""
    choice = ask(client, "count", max_tokens=5).choices[0]
    assert choice.finish_reason == "length"
    assert ask(client, "count", max_completion_tokens=5).choices[0] == choice
    assert ask(client, "count", max_tokens=10**6).choices[0].finish_reason == "stop"


def test_a_tool_is_called(client):
    """A call is lost, arrives as text, or its result is not understood."""
    choice = ask(client, "weather?", tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "北京"}
    assert choice.message.content == "让我看看"
    messages = [
        {"role": "user", "content": "weather?"},
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    done = client.chat.completions.create(model="glm-4", messages=messages, tools=[WEATHER])
    assert done.choices[0].message.content == "晴天。"


def test_a_call_in_a_stream(client):
    """Pieces of a call cannot be put together."""
    with client.chat.completions.stream(
        model="glm-4", messages=[{"role": "user", "content": "weather?"}], tools=[WEATHER]
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "北京"}
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_can_be_required(client, choice):
    """The model answers although it must call."""
    found = ask(client, "hi", tools=[WEATHER], tool_choice=choice, max_tokens=64).choices[0]
    (call,) = found.message.tool_calls
    assert call.function.name == "get_weather"
    none = ask(client, "weather?", tools=[WEATHER], tool_choice="none").choices[0]
    assert none.message.tool_calls is None


def test_choosing_a_tool_counts(client):
    """A call that must choose between tools reads its prompt twice, and one reading is free."""
    other = {"type": "function", "function": {"name": "get_time", "parameters": {}}}
    tools, rest = [WEATHER, other], {"max_tokens": 64, "seed": 1}
    named = {"type": "function", "function": {"name": "get_weather"}}
    chosen = ask(client, "hi", tools=tools, tool_choice="required", **rest).usage
    told = ask(client, "hi", tools=tools, tool_choice=named, **rest).usage
    assert chosen.prompt_tokens > 1.5 * told.prompt_tokens


def test_json(client):
    """An answer that must be JSON of a schema is not."""
    done = ask(client, "json", response_format={"type": "json_object"})
    assert json.loads(done.choices[0].message.content) == {"a": [1, 2]}
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    done = ask(client, "json", response_format=form)
    assert json.loads(done.choices[0].message.content) == {"a": [1, 2]}


def test_several_answers(client):
    """N answers are fewer, or mixed up."""
    for more in ({"temperature": 0}, {"seed": 3}):
        done = ask(client, "hi", n=3, **more)
        assert [choice.index for choice in done.choices] == [0, 1, 2]
        assert {choice.message.content for choice in done.choices} == {"Hello, 你好👋!"}
        texts = {0: "", 1: "", 2: ""}
        for chunk in ask(client, "hi", n=3, stream=True, **more):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert set(texts.values()) == {"Hello, 你好👋!"}


def test_logprobs(client):
    """Log-probabilities belong to other tokens."""
    choice = ask(client, "hi", logprobs=True, top_logprobs=2).choices[0]
    raw = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
    assert raw.decode().strip() == "Hello, 你好👋!"
    assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)


@pytest.mark.parametrize(
    ("more", "error", "named"),
    [
        ({"model": "glm-5"}, openai.NotFoundError, "glm-5"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, openai.BadRequestError, "king"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"n": 1000}, openai.BadRequestError, "n"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"top_logprobs": 3}, openai.BadRequestError, "logprobs"),
        ({"logit_bias": {"foo": 0}}, openai.BadRequestError, "foo"),
        (
            {"messages": [{"role": "user", "content": "ж" * 3000}]},
            openai.BadRequestError,
            "positions",
        ),
        ({"model": "mini"}, openai.BadRequestError, "chat"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done(client, more, error, named):
    """A request that cannot be honoured is answered all the same, or with the wrong error."""
    for stream in (False, True):
        with pytest.raises(error) as found:
            ask(client, "hi", **{"stream": stream} | more)
        assert named in found.value.message


def test_instructions_alone(client):
    """Instructions without a question, which OpenAI answers, are refused."""
    messages = [{"role": "developer", "content": "hi"}]
    done = client.chat.completions.create(model="glm-4", messages=messages)
    assert done.choices[0].message.content == "Hello, 你好👋!"


def test_null_is_nothing(client):
    """Clients that send null for what they do not set are refused."""
    nothing = dict.fromkeys(("temperature", "stop", "tools", "response_format", "seed", "thinking"))
    assert ask(client, "hi", extra_body=nothing).choices[0].finish_reason == "stop"


def test_what_is_ignored_is_said(client):
    """A field that does nothing is taken without a word."""
    raw = client.chat.completions.with_raw_response.create(
        model="glm-4", messages=[{"role": "user", "content": "hi"}], user="me", extra_body={"zz": 1}
    )
    assert raw.headers["x-openglm-ignored"] == "user, zz"


def complete(client, prompt, **more):
    return client.completions.create(**{"model": "mini", "prompt": prompt, "temperature": 0} | more)


def test_texts_are_continued(client):
    """A completion is not the model's, or prompts are mixed up."""
    model = openglm.load()
    prompts = ["The river", "Once upon a time"]
    expected = [model.generate(text, temperature=0, max_tokens=9).text for text in prompts]
    done = complete(client, prompts, max_tokens=9)
    assert [choice.text for choice in done.choices] == expected
    assert done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 18
    twice = complete(client, prompts, max_tokens=9, n=2, echo=True)
    assert [c.text for c in twice.choices] == [
        prompt + text for prompt, text in zip(prompts, expected, strict=True) for _ in range(2)
    ]
    texts = {0: "", 1: ""}
    # OpenAI's own streams say null until the end, which the client's strict types do not allow.
    lenient = openai.OpenAI(base_url=client.base_url, api_key=client.api_key)
    for chunk in complete(lenient, prompts, max_tokens=9, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == expected


def test_the_best_of_several(client):
    """best_of gives the first ones."""
    drawn = {"temperature": 1, "seed": 5, "max_tokens": 6}
    model = openglm.load()
    every = model.generate("The river", n=4, **drawn)
    best = max([every, *every.others], key=lambda one: one.log_probability)
    done = complete(client, "The river", n=1, best_of=4, **drawn)
    assert [choice.text for choice in done.choices] == [best.text]


def test_a_suffix_is_written_towards(client):
    """The text behind the cursor does not count."""
    model = openglm.load()
    expected = model.fill("The cat [sMASK] on the mat.", max_tokens=8).blanks[0].text
    done = complete(client, "The cat ", suffix=" on the mat.", max_tokens=8)
    assert done.choices[0].text == expected
    with pytest.raises(openai.BadRequestError, match="blanks"):
        complete(client, "[MASK]", suffix="x")


def test_logprobs_of_a_text(client):
    """Log-probabilities do not belong to the text."""
    (choice,) = complete(client, "The river", max_tokens=5, logprobs=2).choices
    assert "".join(choice.logprobs.tokens) == choice.text
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 5


def test_blanks_are_filled(client):
    """Blanks are filled otherwise than by the model, or come in one piece."""
    text = "The [MASK] sat on the [MASK]."
    filled = openglm.load().fill(text)
    body = {"model": "mini", "text": text}
    done = client.post("/fill", body=body, cast_to=dict)
    assert done["choices"][0]["text"] == filled.text
    blanks = [blank["text"] for blank in done["choices"][0]["blanks"]]
    assert blanks == [blank.text for blank in filled.blanks]
    found = ["", ""]
    for chunk in events(client, "fill", body | {"stream": True}):
        for choice in chunk["choices"]:
            found[choice["blank"]] += choice["text"]
    assert found == blanks
    with pytest.raises(openai.BadRequestError, match="fills no blanks"):
        client.post("/fill", body=body | {"model": "glm-4"}, cast_to=dict)


def test_models_and_tokens(client):
    """A model is not listed, or its tokens are another's."""
    assert [model.id for model in client.models.list()] == ["glm-4", "mini", "gpt-4o"]
    assert client.models.retrieve("gpt-4o").root == "glm-4"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.models.retrieve("gpt-9")
    ids = client.post("/tokenize", body={"model": "mini", "text": "你好 [MASK]"}, cast_to=dict)
    assert ids["tokens"] == openglm.load().tokenizer.encode("你好 [MASK]")
    back = {"model": "mini", "tokens": ids["tokens"]}
    assert client.post("/detokenize", body=back, cast_to=dict)["text"] == "你好 [MASK]"
