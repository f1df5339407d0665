"""What to do instead: for fields that only other servers know, and for values out of range."""

from collections.abc import Mapping

_STRUCTURED = "Use 'response_format' with {'type': 'json_schema', 'json_schema': {...}}."
_REGEX = "Use 'regex'."
_GRAMMAR = "Use 'grammar', in llguidance's dialect of Lark."
_LIMIT = "Use 'max_tokens'."
_TIMEOUT = "Use 'timeout', in seconds."
_THINKING = "Use 'chat_template_kwargs', e.g. {'enable_thinking': false}, or 'reasoning_effort'."
_LEAVE_OUT = "Leave it out: Jackfield has no such setting."
_LEFT = "Leave it out to get as many tokens as the context leaves."

FOREIGN: Mapping[str, str] = {
    "add_generation_prompt": _LEAVE_OUT,
    "chat_template": "Use 'chat_template_kwargs'; the template itself belongs to the model.",
    "deadline": _TIMEOUT,
    "enable_thinking": "Use 'chat_template_kwargs': {'enable_thinking': ...}.",
    "extra_body": "Send the fields inside 'extra_body' at the top level (the OpenAI SDK does that by itself).",
    "format": _STRUCTURED,
    "guided_choice": "Use 'regex', with the choices as alternatives: 'yes|no'.",
    "guided_grammar": _GRAMMAR,
    "guided_json": _STRUCTURED,
    "guided_regex": _REGEX,
    "input": "Use 'messages' here, or 'prompt' with /v1/completions.",
    "json_schema": _STRUCTURED,
    "keep_alive": _LEAVE_OUT,
    "length_penalty": _LEAVE_OUT,
    "max_new_tokens": _LIMIT,
    "max_output_tokens": _LIMIT,
    "max_time": _TIMEOUT,
    "min_tokens": "Leave it out, or use 'ignore_eos' to go on up to 'max_tokens'.",
    "mirostat": _LEAVE_OUT,
    "n_predict": _LIMIT,
    "num_predict": _LIMIT,
    "options": "Send the sampling fields at the top level.",
    "reasoning": "Use 'reasoning_effort'.",
    "repeat_penalty": "Use 'repetition_penalty'.",
    "request_timeout": _TIMEOUT,
    "response_format.schema": _STRUCTURED,
    "skip_special_tokens": _LEAVE_OUT,
    "stop_sequences": "Use 'stop'.",
    "stop_token_ids": "Use 'stop', with the tokens' text.",
    "structured_outputs": "Use 'response_format', 'regex' or 'grammar'.",
    "t_max_predict_ms": _TIMEOUT,
    "thinking": _THINKING,
    "typical_p": _LEAVE_OUT,
    "use_beam_search": _LEAVE_OUT,
}

OUT_OF_RANGE: Mapping[str, str] = {
    "priority": "Lower goes first; leave it out for 0.",
    "timeout": "It is in seconds, up to a day; leave it out to wait as long as it takes.",
    "max_tokens": _LEFT,
    "max_completion_tokens": _LEFT,
    "max_output_tokens": _LEFT,
    "top_p": "For the most likely token at every step send 'temperature': 0.",
    "top_k": "Send 0 or -1 to keep all tokens.",
}
