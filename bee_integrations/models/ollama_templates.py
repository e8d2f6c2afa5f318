"""Chat templates for models of Ollama's whose file has none: Ollama's own are in Go's language, which is not Jinja.

What such a template writes around messages says of which family it is, and the families' forms are below in Jinja. Of
a template that writes the marks of no family, or of two, nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import TemplateError

__all__ = ["KNOWN", "known_form"]

_ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """How one family writes a conversation."""

    name: str
    marks: tuple[str, ...]
    """What a template of the family writes, all of it."""
    jinja: str


def known_form(model: str, template: str) -> Form:
    """The form of a template in Go's language. Raises TemplateError where it is none or several of those below."""
    written = _ACTION.sub("\0", template)
    found = [form for form in KNOWN if all(mark in written for mark in form.marks)]
    # A form with more marks counts more than one whose marks are among them.
    found = [form for form in found if not any(set(form.marks) < set(other.marks) for other in found)]
    if len(found) != 1:
        raise TemplateError(
            f"the file of {model} has no chat template, and Ollama's is in Go's language, in which Bee recognises "
            f"{', '.join(form.name for form in KNOWN)}; this one is {_of_which(found)}: "
            "pass chat_template=... (Jinja source)"
        )
    return found[0]


def _of_which(found: list[Form]) -> str:
    return f"of {' and '.join(form.name for form in found)} at once" if found else "none of these"


def _turns(before: str, after: str, answer: str, *, first: str = "") -> str:
    """Jinja of turns that are alike: `before`, where ROLE is the role, and `after` stand around each.

    `answer` begins the model's turn, `first` the text.
    """
    begin = before.replace("ROLE", "{{ message.role }}")
    return (
        f"{first}{{% for message in messages %}}{begin}{{{{ message.content }}}}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


# Where a family has no place for a system message, it stands in the next user's.
_WITH_SYSTEM = (
    "{% set seen = namespace(system='') %}{% for message in messages %}{% if message.role == 'system' %}"
    "{% set seen.system = SYSTEM %}{% elif message.role == 'user' %}USER{% set seen.system = '' %}{% else %}"
    "ANSWER{% endif %}{% endfor %}"
)


def _instructed(system: str, user: str, answer: str, prompt: str = "") -> str:
    """Jinja of turns that differ. `system` is an expression, `user` and `answer` are templates."""
    turns = _WITH_SYSTEM.replace("SYSTEM", system).replace("USER", user).replace("ANSWER", answer)
    return f"{turns}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


_SYSTEM_FIRST = "message.content + '\\n\\n'"
_CONTENT = "{{ message.content }}"
_ASKED = "{{ seen.system }}{{ message.content }}"

KNOWN = (
    Form(
        "ChatML",
        ("<|im_start|>", "<|im_end|>"),
        _turns("<|im_start|>ROLE\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    ),
    Form(
        "Llama 3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _turns(
            "<|start_header_id|>ROLE<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            first="{{ bos_token }}",
        ),
    ),
    Form("Phi 3", ("<|user|>", "<|end|>"), _turns("<|ROLE|>\n", "<|end|>\n", "<|assistant|>\n")),
    Form("Zephyr", ("<|user|>", "</s>"), _turns("<|ROLE|>\n", "</s>\n", "<|assistant|>\n")),
    Form(
        "Granite 3",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        _turns(
            "<|start_of_role|>ROLE<|end_of_role|>",
            "<|end_of_text|>\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
    ),
    Form(
        "Gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        "{{ bos_token }}"
        + _instructed(
            _SYSTEM_FIRST,
            f"<start_of_turn>user\n{_ASKED}<end_of_turn>\n",
            f"<start_of_turn>model\n{_CONTENT}<end_of_turn>\n",
            "<start_of_turn>model\n",
        ),
    ),
    Form(
        "Llama 2",
        ("[INST]", "[/INST]", "<<SYS>>"),
        _instructed(
            "'<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n'",
            f"{{{{ bos_token }}}}[INST] {_ASKED} [/INST]",
            f" {_CONTENT} {{{{ eos_token }}}}",
        ),
    ),
    Form(
        "Mistral",
        ("[INST]", "[/INST]"),
        "{{ bos_token }}" + _instructed(_SYSTEM_FIRST, f"[INST] {_ASKED}[/INST]", f" {_CONTENT}{{{{ eos_token }}}}"),
    ),
    Form(
        "Command R",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|><|"
        "{{ {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message.role] }}_TOKEN|>"
        "{{ message.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
    ),
    Form(
        "DeepSeek",
        ("<｜User｜>", "<｜Assistant｜>"),
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
        "{% elif message.role == 'user' %}<｜User｜>{{ message.content }}"
        "{% else %}<｜Assistant｜>{{ message.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
    ),
    Form(
        "Alpaca",
        ("### Instruction:", "### Response:"),
        _instructed(
            _SYSTEM_FIRST,
            f"{{{{ seen.system }}}}### Instruction:\n{_CONTENT}\n\n",
            f"### Response:\n{_CONTENT}\n\n",
            "### Response:\n",
        ),
    ),
    Form(
        "Vicuna",
        ("USER:", "ASSISTANT:"),
        _instructed(
            _SYSTEM_FIRST,
            f"{{{{ seen.system }}}}USER: {_CONTENT}\n",
            f"ASSISTANT: {_CONTENT}{{{{ eos_token }}}}\n",
            "ASSISTANT:",
        ),
    ),
)
