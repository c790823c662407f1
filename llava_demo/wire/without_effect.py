"""The fields that are accepted and ignored, because they cannot change an answer here.

They are fields of OpenAI, and of servers and routers with its API. `()` stands for any value; otherwise only the values
that ask for the default behaviour are accepted. All other unknown fields are refused by name.
"""

from typing import Any

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    # identify the caller; storing, billing, routing, counting, caching
    **dict.fromkeys(("user", "metadata", "store", "service_tier", "safety_identifier", "request_id", "priority"), ()),
    **dict.fromkeys(("session_id", "rid", "cache_salt", "guided_decoding_backend"), ()),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_retention", "cache_prompt", "id_slot"), ()),
    **dict.fromkeys(("keep_alive", "ttl", "provider", "route", "usage", "timings_per_token", "return_progress"), ()),
    # how long a model reasons, and how it calls tools: this one does neither
    **dict.fromkeys(("reasoning_effort", "reasoning", "reasoning_format", "include_reasoning", "verbosity"), ()),
    **dict.fromkeys(("thinking_token_budget", "thinking_budget_tokens", "reasoning_budget"), ()),
    **dict.fromkeys(("separate_reasoning", "stream_reasoning", "parallel_tool_calls", "parse_tool_calls"), ()),
    "thinking": (False, {"type": "disabled"}),
    "enable_thinking": (False,),
    "chat_template_kwargs": (),
    **dict.fromkeys(("tools", "tool_prompt"), ()),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "functions": (),
    "function_call": ("none", "auto"),
    # what is generated
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "prediction": (),
    "logit_bias": ({},),
    "seed": (-1,),
    "top_k": (-1,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "best_of": (1,),
    "num_beams": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "echo": (False,),
    "watermark": (False,),
    # how the answer is written
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "return_hidden_states": (False,),
    "prompt_logprobs": (0, False),
    "transforms": ([],),
    "plugins": ([],),
}
