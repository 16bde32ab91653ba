"""The prompts of `openglm.chat.templates` as Jinja, for engines that take them so (llama.cpp).

They write what `prompt_ids` encodes, with `<sop>` for every model. Such an engine encodes the text
between two command tokens in one piece, and ours each part of a message by itself:

    ChatGLM3    the space that sentencepiece puts in front of each part is written out
    GLM-4       a message that begins with an empty line has its line breaks joined into other ids

Tools are not in here: engines have their own ways to pass them.
"""

from __future__ import annotations

ROLE = """
    {%- if message.role == 'system' -%}<|system|>
    {%- elif message.role == 'user' -%}<|user|>
    {%- elif message.role == 'assistant' -%}<|assistant|>
    {%- elif message.role == 'observation' or message.role == 'tool' -%}<|observation|>
    {%- else -%}{{- raise_exception('there is no role ' + message.role) -}}
    {%- endif -%}
""".strip()
"""Tokens are spelled out: llama.cpp means to take no command token from what a caller passes.

What the OpenAI API calls a tool, ChatGLM3 and GLM-4 call an observation.
"""
METADATA = "message.metadata if message.metadata else ''"
ASK = "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"

CHATGLM2 = r"""
{{- '[gMASK]' + '<sop>' -}}
{%- set past = namespace(round=0, system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set past.system = message.content -%}
    {%- elif message.role == 'user' -%}
        {%- set past.round = past.round + 1 -%}
        {{- '[Round ' + past.round|string + ']\n\n问：' + past.system + message.content -}}
        {{- '\n\n答：' -}}
        {%- set past.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- message.content + '\n\n' -}}
    {%- else -%}
        {{- raise_exception('there is no role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
""".strip()
CHATGLM3 = rf"""
[gMASK]<sop>
{{%- for message in messages -%}}
    {ROLE}
    {{{{- ({METADATA}) + '\n' -}}}}
    {{{{- ' ' + message.content if message.content else '' -}}}}
{{%- endfor -%}}
{ASK}
""".strip()
GLM4 = rf"""
[gMASK]<sop>
{{%- for message in messages -%}}
    {ROLE}
    {{{{- ({METADATA}) + '\n' + message.content -}}}}
{{%- endfor -%}}
{ASK}
""".strip()

JINJA = {"chatglm2": CHATGLM2, "chatglm3": CHATGLM3, "glm4": GLM4}
"""By kind of tokenizer.

Where llama.cpp does not run Jinja, it takes `[gMASK]<sop>` as the mark of its built-in template for
GLM-4. That fits ChatGLM3 but for one space; ChatGLM2 it must not fit, hence the `+` there.
"""
