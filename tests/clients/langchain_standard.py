"""LangChain's standard tests of chat models and of embeddings, run by test_serve_langchain.py.

OPENGLM_URL says where the server is, OPENGLM_KEY with which key. Out of scope: images, audio and
PDF files (the models here read text), Anthropic's parts of messages (another API), and recorded
cassettes, which need a model that never changes.
"""

import os

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

URL, KEY = os.environ["OPENGLM_URL"], os.environ["OPENGLM_KEY"]


class TestChatOpenAI(ChatModelIntegrationTests):
    """With nothing changed but address and key."""

    chat_model_class = ChatOpenAI
    supports_json_mode = True
    model_override_value = "gpt-4o"

    @property
    def chat_model_params(self):
        return {
            "model": "glm-4", "base_url": f"{URL}/v1", "api_key": KEY, "stream_usage": True,
            "temperature": 0, "max_retries": 0,
        }  # fmt: skip


class TestOpenAIEmbeddings(EmbeddingsIntegrationTests):
    """With texts as they are: tokens of OpenAI's vocabulary are others here, and refused."""

    embeddings_class = OpenAIEmbeddings

    @property
    def embedding_model_params(self):
        return {
            "model": "mini", "base_url": f"{URL}/v1", "api_key": KEY,
            "check_embedding_ctx_length": False, "max_retries": 0,
        }  # fmt: skip


class TestChatZhipuAI:
    """LangChain's own client of BigModel, which sends tokens without `Bearer`.

    Its class fails the standard tests on BigModel, too: it takes no `tool_choice` but "auto", and
    tells no usage. So this is what it can do.
    """

    @pytest.fixture
    def model(self):
        community = pytest.importorskip("langchain_community.chat_models")
        return community.ChatZhipuAI(
            model="glm-4", api_key=KEY, api_base=f"{URL}/api/paas/v4/chat/completions"
        )

    def test_an_answer(self, model):
        assert model.invoke([HumanMessage("Hello")]).content == "Hello! How are you, 朋友?"

    def test_a_stream(self, model):
        texts = [chunk.content for chunk in model.stream([HumanMessage("Hello")])]
        assert "".join(texts) == "Hello! How are you, 朋友?"
        assert len(texts) > 2

    def test_a_tool(self, model):
        tool = {
            "name": "get_weather",
            "description": "weather",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
        }
        bound = model.bind_tools([{"type": "function", "function": tool}])
        (call,) = bound.invoke([HumanMessage("What is the weather?")]).tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"location": "San Francisco"})
