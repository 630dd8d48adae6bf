"""model/config.py: numbers that cannot exist are refused by name, config.json loses nothing."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import ours, random_numbers
from transformers import Qwen3Config, Qwen3MoeConfig

from model.config import PRESETS, LMConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 8}, "hidden_size is 100.*num_attention_heads"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads is 3.*num_attention_heads \(8\)"),
        ({"num_key_value_heads": 16}, "num_key_value_heads is 16"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 63}, "head_dim is 63.*even"),
        ({"head_dim": -2}, "head_dim is -2"),
        ({"vocab_size": 0}, "vocab_size is 0.*at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0.*whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True.*whole number"),
        ({"intermediate_size": "64"}, "intermediate_size is '64'.*whole number"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0.*\[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"dropout": "0.1"}, "dropout is '0.1'.*number"),
        ({"dropout": True}, "dropout is True.*number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1.*true or false"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"use_moe": None}, "use_moe is None"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0.*positive"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"yarn_factor": 0.5}, "yarn_factor is 0.5.*at least 1"),
        ({"yarn_factor": 2.0, "yarn_beta_fast": 0.0}, "yarn_beta_fast is 0.0.*positive"),
        ({"yarn_factor": 2.0, "yarn_beta_slow": -1.0}, "yarn_beta_slow is -1.0"),
        ({"yarn_factor": 2.0, "yarn_attention_factor": -1.0}, "yarn_attention_factor is -1.0"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0"),
        ({"vocab_size": 10**30}, "vocab_size.*fits a machine"),
        ({"use_moe": True, "num_experts_per_tok": 9}, r"num_experts_per_tok is 9.*num_experts \(8"),
        ({"use_moe": True, "num_experts": 0}, "num_experts is 0"),
        ({"use_moe": True, "moe_intermediate_size": 100}, "moe_intermediate_size is 100.*of 8"),
        ({"use_moe": True, "hidden_size": 508, "head_dim": 64}, "hidden_size is 508.*of 8"),
        ({"hidden_size": "512"}, "hidden_size is '512'.*whole number"),
        ({"hidden_size": None}, "hidden_size is None.*whole number"),
        ({"yarn_factor": "2"}, "yarn_factor is '2'.*number"),
        ({"max_position_embeddings": 1e4}, "max_position_embeddings is 10000.0.*whole number"),
    ],
    ids=str,
)
def test_a_number_that_cannot_exist_is_refused_by_name(changes, message):
    """The message names the field, its value and what was expected, in one line."""
    with pytest.raises(ValueError, match=message) as error:
        LMConfig(**changes)
    assert "\n" not in str(error.value)


def test_changes_are_validated_again_and_presets_are_known():
    """with_changes and preset go through the same checks."""
    with pytest.raises(ValueError, match="dropout"):
        LMConfig().with_changes(dropout=2.0)
    with pytest.raises(ValueError, match=r"'huge'.*demo, small, base, large, moe"):
        LMConfig.preset("huge")
    config = LMConfig.preset("demo", vocab_size=512)
    assert (config.vocab_size, config.hidden_size, config.head_dim) == (512, 256, 64)


def test_what_is_left_out_is_derived():
    """head_dim from the heads, an expert's width from the feed-forward, YaRN's length from both."""
    config = LMConfig(hidden_size=96, num_attention_heads=4, num_key_value_heads=1)
    assert config.head_dim == 24
    assert config.moe_intermediate_size == config.intermediate_size // 2 == 832
    assert LMConfig(num_experts_per_tok=1).moe_intermediate_size == 1664
    assert LMConfig(max_position_embeddings=8192, yarn_factor=4).yarn_original_length == 2048


def through_json(config: LMConfig) -> LMConfig:
    return LMConfig.from_hf_dict(json.loads(json.dumps(config.to_hf_dict())))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_config_json(name):
    """LMConfig → config.json → LMConfig is the identity for every preset."""
    assert through_json(LMConfig.preset(name)) == LMConfig.preset(name)


@st.composite
def configs(draw) -> LMConfig:
    """Any LMConfig; fields that nothing reads (experts, YaRN) keep their defaults where unused."""
    positive = st.floats(1e-8, 1e3)
    heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    moe = draw(st.booleans())
    width = 8 if moe else 2
    fields = {
        "vocab_size": draw(st.integers(1, 300_000)),
        "hidden_size": heads * width * draw(st.integers(1, 64)),
        "num_hidden_layers": draw(st.integers(1, 100)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 3, 4) if heads % n == 0])),
        "head_dim": draw(st.sampled_from([0, 2, 10, 64, 128])),
        "intermediate_size": 8 * draw(st.integers(1, 5000)),
        "max_position_embeddings": draw(st.integers(1, 2_000_000)),
        "rms_norm_eps": draw(positive),
        "rope_theta": draw(st.floats(1.5, 1e9) | st.integers(2, 10**9)),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": draw(positive),
        "dropout": draw(st.floats(0, 0.99)),
    }
    if draw(st.booleans()):
        fields |= {
            "yarn_factor": draw(st.floats(1.01, 100)),
            "yarn_original_length": draw(st.integers(0, 100_000)),
            "yarn_beta_fast": draw(positive),
            "yarn_beta_slow": draw(positive),
            "yarn_attention_factor": draw(st.just(0.0) | st.floats(0.1, 3)),
        }
    if moe:
        experts = draw(st.integers(1, 128))
        k = draw(st.integers(1, experts))
        derived = fields["intermediate_size"] // k  # where 0 is given: refused unless 8 divide it
        least = 0 if derived and derived % 8 == 0 else 1
        fields |= {
            "use_moe": True,
            "num_experts": experts,
            "num_experts_per_tok": k,
            "moe_intermediate_size": 8 * draw(st.integers(least, 500)),
            "norm_topk_prob": draw(st.booleans()),
            "router_aux_loss_coef": draw(st.floats(0, 1)),
        }
    return LMConfig(**fields)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(configs())
def test_any_config_survives_config_json(config):
    """LMConfig → config.json → LMConfig is the identity, for everything that the model reads."""
    assert through_json(config) == config


@settings(max_examples=40, deadline=None, derandomize=True)
@given(configs())
def test_any_config_means_the_same_to_transformers(config):
    """transformers reads our config.json, and what it writes is the same LMConfig here."""
    kind = Qwen3MoeConfig if config.use_moe else Qwen3Config
    theirs = kind.from_dict(json.loads(json.dumps(config.to_hf_dict())))
    assert LMConfig.from_hf_dict(json.loads(theirs.to_json_string(use_diff=False))) == config
    back = LMConfig.from_hf_dict(json.loads(theirs.to_json_string(use_diff=True)))
    assert back == config
    for name in ("hidden_size", "head_dim", "rms_norm_eps", "tie_word_embeddings", "vocab_size"):
        assert getattr(theirs, name) == getattr(config, name)
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.rope_parameters["rope_type"] == ("yarn" if config.yarn_factor > 1 else "default")


def test_the_default_dense_config_of_transformers_is_read():
    """Qwen3Config().to_dict(): an 8B-like model with 128 channels per head and an untied head."""
    config = LMConfig.from_hf_dict(Qwen3Config().to_dict())
    assert config == LMConfig(
        vocab_size=151936,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        intermediate_size=22016,
        max_position_embeddings=32768,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    )


def test_the_default_moe_config_of_transformers_is_read():
    """Qwen3MoeConfig().to_dict(): 128 experts, 8 per token, head_dim from the heads."""
    config = LMConfig.from_hf_dict(Qwen3MoeConfig().to_dict())
    assert config == LMConfig(
        vocab_size=151936,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=6144,
        max_position_embeddings=32768,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        use_moe=True,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=False,
        router_aux_loss_coef=0.001,
    )


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_key_left_out_means_what_it_means_to_transformers(seed, moe):
    """Each key dropped from config.json gives transformers' value or is refused, never ours."""
    numbers = random_numbers(seed, moe)
    kind = Qwen3MoeConfig if moe else Qwen3Config
    full = json.loads(kind(**json.loads(json.dumps(numbers))).to_json_string(use_diff=False))
    for key in numbers:
        stored = "num_local_experts" if key == "num_experts" and key not in full else key
        part = {name: value for name, value in full.items() if name != stored}
        part.pop("layer_types", None)
        theirs = kind.from_dict(json.loads(json.dumps(part)))
        try:
            config = LMConfig.from_hf_dict(part)
        except ValueError as error:
            assert key in str(error) or (key == "head_dim" and "hidden_size" in str(error))
            continue
        for name in set(numbers) - {"attention_bias", "use_sliding_window", "eos_token_id"}:
            if name == "rope_parameters":
                assert config.rope_theta == theirs.rope_parameters["rope_theta"]
                assert config.yarn_factor == theirs.rope_parameters.get("factor", 1.0)
            elif name == "head_dim" and moe:
                width = numbers["hidden_size"] // numbers["num_attention_heads"]
                assert config.head_dim == getattr(theirs, "head_dim", width)
            else:
                assert getattr(config, name) == getattr(theirs, name), (key, name)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_older_spelling_of_rotary_settings_is_read(key):
    """rope_theta at the top and YaRN under `rope_scaling` with `type`, as older files have it."""
    numbers = random_numbers(2)
    rope = numbers.pop("rope_parameters")
    assert rope.pop("rope_type") == "yarn"
    expected = ours(numbers | {"rope_parameters": rope})
    old = numbers | {"model_type": "qwen3", "rope_theta": rope.pop("rope_theta")}
    rope.pop("original_max_position_embeddings")  # then it is max_position_embeddings
    config = LMConfig.from_hf_dict(old | {key: {"type": "yarn"} | rope})
    assert config == expected.with_changes(yarn_original_length=numbers["max_position_embeddings"])
    theirs = Qwen3Config.from_dict(old | {key: {"type": "yarn"} | rope})
    assert theirs.rope_parameters["original_max_position_embeddings"] == 256
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta


def test_an_edited_models_config_has_the_same_fields():
    """model_type "minimind" with use_moe in place of two names; anything but true or false there
    is refused."""
    for moe in (False, True):
        config = LMConfig.preset("demo", use_moe=moe)
        content = config.to_hf_dict() | {"model_type": "minimind", "use_moe": moe}
        assert LMConfig.from_hf_dict(content) == config
    for wrong in ("no", None, 1):
        with pytest.raises(ValueError, match="use_moe"):
            LMConfig.from_hf_dict(content | {"use_moe": wrong})
