"""What the name of a parameter says: whole words that tell what is no weight.

The words are those that the field uses. A name with the word "weight" says nothing else, and neither do the names of
modules: a linear layer ``query`` holds a weight. Embeddings are tables of weights unless their names say otherwise.
"""

import re
from collections.abc import Sequence

from torch import nn
from torch.nn.utils import parametrize

from torchreg.selection.parameters import ParamInfo, unwrapped

BIAS_WORDS = {"bias", "biases"}
POSITION_WORDS = {"pos", "position", "positions", "positional", "wpe"}  # wpe is GPT-2's
SCALE_WORDS = {"scale", "gain", "gamma", "temperature"}
_FACTOR_WORDS = {"temperature", "tau", "ia"}  # never a row of weights; ia is IA3's ``ia3_l``
_PROMPT_WORDS = {"prompt", "prompts", "prefix", "ctx"}
_QUERY_ENDS = ({"latent"}, {"latents"}, {"queries"}, {"probe"}, {"query", "embed"}, {"query", "feat"})
_FREQUENCY_WORDS = {"freq", "freqs", "frequency", "frequencies"}
_MAP_WORDS = {"proj", "projection", "matrix", "kernel", "lora"}  # of a matrix that maps tokens or scales
_STATE_NAMES = {"a", "d", "ds", "a_real", "a_imag", "dt"}  # beside a logarithm of A: a state space model


def words_of(name: str) -> list[str]:
    """The words of a name in snake case or camel case, without numbers: ``T5LayerNorm`` is t, layer, norm."""
    return [word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def telling_name(info: ParamInfo) -> str:
    """The parameter's own name; in an embedding, a dict or a list of parameters, the name of the module."""
    *_, module_name, own_name = ("", *unwrapped(info.name).split("."))
    is_table = own_name == "weight" and is_embedding(info)
    return module_name if own_name.isdecimal() or is_table or _is_container(info.module) else own_name


def no_weight(words: Sequence[str], info: ParamInfo) -> str | None:
    """What a parameter is instead of a weight, by the words of its telling name and its shape; None for a weight."""
    if "weight" in words:
        return "gain" if list(words[-2:]) == ["weight", "g"] and has_one_axis(info) else None
    if not POSITION_WORDS.isdisjoint(words) or _is_in_position_embedding(info):
        return "position embedding"
    if _is_prompt(words, info):
        return "virtual tokens"
    if _ends_in_tokens(words, info) or _ends_in_queries(words, info):
        return " ".join(words)
    if not _FREQUENCY_WORDS.isdisjoint(words[-1:]) and not is_embedding(info):
        return "frequencies"
    if not {"log", "logs"}.isdisjoint(words) and not is_embedding(info):
        return "logarithm"
    if _is_beside_log_a(words, info):
        return "state space"
    if not SCALE_WORDS.isdisjoint(words) and is_vector(info):
        return "scale"
    if (not _FACTOR_WORDS.isdisjoint(words) or {"logit", "scale"} <= set(words)) and has_one_axis(info):
        return "scale"
    return None


def class_of(module: nn.Module) -> type[nn.Module]:
    """The module's class; of a parametrized module the one it had before."""
    kind = type(module)
    return kind.__mro__[1] if parametrize.is_parametrized(module) else kind


def is_embedding(info: ParamInfo) -> bool:
    return isinstance(info.module, nn.Embedding | nn.EmbeddingBag)


def is_vector(info: ParamInfo) -> bool:
    """Whether it has one axis longer than 1. A matrix with one row is no vector: it holds the weights of one unit."""
    return info.param.ndim != 2 and has_one_axis(info)


def has_one_axis(info: ParamInfo) -> bool:
    return sum(size > 1 for size in info.param.shape) <= 1


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ParameterList | nn.ParameterDict)


def _is_prompt(words: Sequence[str], info: ParamInfo) -> bool:
    """Whether these are tokens in front of the input, as adapters learn them: tensors, or the table of an encoder."""
    if not is_embedding(info):
        return not _PROMPT_WORDS.isdisjoint(words) and _MAP_WORDS.isdisjoint(words)
    near = unwrapped(info.name).split(".")[-4:-1]
    return any(not _PROMPT_WORDS.isdisjoint(own := words_of(part)) and "model" not in own for part in near)


def _ends_in_tokens(words: Sequence[str], info: ParamInfo) -> bool:
    if {"class", "cls"} & set(words) and {"emb", "embed", "embedding"} & set(words) and is_vector(info):
        return True
    return words[-1:] in (["token"], ["tokens"]) and "embed" not in words and not is_embedding(info)


def _ends_in_queries(words: Sequence[str], info: ParamInfo) -> bool:
    """Whether these are learned inputs of an attention, such as object queries. A raw ``query`` may be a projection."""
    if any(set(words[-len(end) :]) == end for end in _QUERY_ENDS):
        return True
    return list(words) == ["query"] and not is_embedding(info) and info.param.ndim == 3 and len(info.param) == 1


def _is_beside_log_a(words: Sequence[str], info: ParamInfo) -> bool:
    """Whether it is another parameter of a state space model, such as ``D`` beside Mamba's ``A_log``."""
    beside = [set(words_of(name)) for name in info.module._parameters]
    return "_".join(words) in _STATE_NAMES and any({"a"} < own and own & {"log", "logs"} for own in beside)


def _is_in_position_embedding(info: ParamInfo) -> bool:
    """Whether a module with a name such as ``pos_embed`` owns the tensor."""
    *_, module_name, _ = ("", *unwrapped(info.name).split("."))
    words = set(words_of(module_name))
    return bool(words & POSITION_WORDS and words & {"emb", "embed", "embedding", "embeddings", "encoding"})
