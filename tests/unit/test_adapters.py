"""Adapters: read from PEFT's directories, refused with reasons, mixed in a batch, kept."""

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from flowmesh.base.digest import Digest  # noqa: E402
from flowmesh.runtimes.adapters import AdapterRefused, load_adapter, read_adapter  # noqa: E402
from flowmesh.runtimes.choosing import choose  # noqa: E402
from flowmesh.runtimes.decoding import Answer, Decoder, Request  # noqa: E402
from flowmesh.runtimes.low_rank import Adapter, AdapterCache, Adapting  # noqa: E402
from flowmesh.runtimes.sampling import GREEDY, Sampling, stream_key  # noqa: E402
from flowmesh.runtimes.weights import BrokenModel, Weights  # noqa: E402
from flowmesh.spec.action import Artifact  # noqa: E402
from support.blobs import DirBlobs  # noqa: E402
from support.tiny_adapter import make_adapter  # noqa: E402
from support.tiny_model import make_tiny  # noqa: E402

pytestmark = pytest.mark.model

#: Unlike each other in rank, scale and layers, as adapters of several tenants are.
KINDS: list[dict[str, Any]] = [
    {},
    {"r": 2, "use_rslora": True},
    {"target_modules": ["q_proj", "down_proj"], "r": 8, "lora_alpha": 4},
    {"rank_pattern": {"o_proj": 3}, "alpha_pattern": {"mlp.up_proj": 32}},
]
QUESTIONS = ["What is blue?", "Why?", "Name the mountain and the river.", "bread " * 30]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(base: Path) -> Weights:
    return Weights(base, "float32")


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(base, root / str(number), seed=number, **kind)
        for number, kind in enumerate(KINDS)
    ]


@pytest.fixture(scope="module")
def adapters(weights: Weights, folders: list[Path]) -> list[Adapter]:
    return [read_adapter(weights, folder, folder.name) for folder in folders]


def requests(
    weights: Weights, adapters: Sequence[Adapter | None], *, temperature: float
) -> list[Request]:
    """Every question to every adapter and to the base."""
    made = []
    for number, question in enumerate(QUESTIONS):
        prompt = weights.prompt_tokens({"prompt": question})
        sampling = GREEDY
        if temperature:
            sampling = Sampling(temperature, 0.9, 0, stream_key(3, 0, prompt))
        for adapter in (*adapters, None):
            request = Request(prompt, 70 + number, sampling, (), number == 1, adapter)
            made.append(request)
    return made


def answers(decoder: Decoder, wanted: Sequence[Request]) -> list[Answer]:
    found = dict(decoder.generate(wanted))
    return [found[index] for index in range(len(wanted))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_the_same_in_the_company_of_other_adapters(
    weights: Weights, adapters: list[Adapter], temperature: float
) -> None:
    wanted = requests(weights, adapters, temperature=temperature)
    together = answers(Decoder(weights), wanted)
    assert [answers(Decoder(weights), [one])[0] for one in wanted] == together
    for number, adapter in enumerate((*adapters, None)):
        own = [one for one in wanted if one.adapter is adapter]
        assert answers(Decoder(weights), own) == together[number :: len(adapters) + 1]
    order = random.Random(1).sample(range(len(wanted)), len(wanted))
    shuffled = answers(Decoder(weights), [wanted[index] for index in order])
    assert [shuffled[order.index(index)] for index in range(len(wanted))] == together
    assert len({answer.tokens for answer in together}) == len(wanted), "or they change nothing"


def test_close_calls_are_decided_by_the_rows_own_adapter(
    weights: Weights, adapters: list[Adapter]
) -> None:
    wanted = requests(weights, adapters, temperature=1.0)
    careful = Decoder(weights)
    careful.counts.noise = 0.5
    assert answers(careful, wanted) == answers(Decoder(weights), wanted)
    assert careful.counts.recomputed > careful.counts.tokens / 4


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_logits_and_greedy_text_are_those_of_peft(
    weights: Weights, base: Path, folders: list[Path], adapters: list[Adapter], number: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    known = peft.PeftModel.from_pretrained(model, folders[number]).eval()
    others = requests(weights, adapters, temperature=0.0)
    together = answers(Decoder(weights), others)
    for request, answer in zip(others, together, strict=True):
        if request.adapter is not adapters[number]:
            continue
        ids = torch.tensor([request.prompt])
        with torch.inference_mode():
            logits = known(ids).logits[0, -1]
            made = known.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_tokens,
                do_sample=False,
            )
        with weights.adapted([adapters[number]]):
            assert torch.allclose(weights.read(request.prompt).logits[0], logits, atol=1e-4)
        assert tuple(made[0, len(request.prompt) :].tolist()) == answer.tokens


def one_pass(weights: Weights, adapters: Sequence[Adapter | None], rows: int) -> Any:
    from transformers.cache_utils import DynamicCache

    tokens = [[5, 6, 7 + row] for row in range(rows)]
    with weights.adapted(adapters):
        return weights.forward(tokens, DynamicCache(), positions=[[0, 1, 2]] * rows, keep=3)


def test_rows_without_an_adapter_keep_every_bit(weights: Weights, adapters: list[Adapter]) -> None:
    plain = one_pass(weights, [None], 6)
    mixed = one_pass(weights, [None, *adapters, None], 6)
    for row in range(6):
        assert torch.equal(plain[row], mixed[row]) == (row in (0, 5))


def test_one_entry_serves_any_number_of_rows(weights: Weights, adapters: list[Adapter]) -> None:
    one = one_pass(weights, [adapters[0]], 4)
    each = one_pass(weights, [adapters[0], adapters[0], adapters[0], adapters[0]], 4)
    assert torch.equal(one, each)
    assert not torch.equal(one, one_pass(weights, [], 4))


def test_a_wild_adapter_changes_no_other_row(weights: Weights, adapters: list[Adapter]) -> None:
    """What overflows to infinity on the way is kept out of the others' sums."""
    wild = Adapter(
        "wild",
        {
            name: type(update)(torch.full_like(update.down, 3e38), update.up)
            for name, update in adapters[0].updates.items()
        },
    )
    plain = one_pass(weights, [None, adapters[1]], 2)
    beside = one_pass(weights, [None, adapters[1], wild], 3)[:2]
    assert not torch.isfinite(one_pass(weights, [wild], 1)).all()
    assert torch.allclose(plain, beside, atol=1e-4)
    wanted = [
        *requests(weights, adapters[:2], temperature=0.0),
        *(one for one in requests(weights, [wild], temperature=0.0) if one.adapter is wild),
    ]
    decoder = Decoder(weights)
    found: dict[int, Answer] = {}
    with pytest.raises(BrokenModel, match="adapter"):
        found.update(decoder.generate(wanted))
    for index, answer in decoder.generate(wanted[:-4]):
        found[index] = answer
    good = wanted[:-4]
    assert [found[index] for index in range(len(good))] == answers(Decoder(weights), good)
    assert len(found) == len(good)


def test_an_adapter_in_its_own_noise_costs_others_nothing(
    weights: Weights, adapters: list[Adapter]
) -> None:
    decoder = Decoder(weights)
    before = decoder.counts.noise
    decoder._adapter_noise[adapters[0].name] = 0.5
    wanted = [one for one in requests(weights, adapters[:2], temperature=1.0)]
    assert answers(decoder, wanted) == answers(Decoder(weights), wanted)
    assert decoder.counts.noise == before
    assert decoder._adapter_noise.get(adapters[1].name, before) < 0.5


def test_the_first_token_of_an_adapter_tells_its_noise(
    weights: Weights, adapters: list[Adapter]
) -> None:
    decoder = Decoder(weights)
    prompt = weights.prompt_tokens({"prompt": "Why?"})
    wanted = [Request(prompt, 8, adapter=adapter) for adapter in (*adapters[:2], None)]
    answers(decoder, wanted)
    assert set(decoder._adapter_noise) == {adapter.name for adapter in adapters[:2]}
    before = decoder.counts.recomputed
    answers(decoder, wanted)
    assert decoder.counts.recomputed - before == before - 2, "once for each adapter"


def test_memory_that_runs_out_while_adapters_are_mixed_is_a_memory_error(
    weights: Weights, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Adapting, "_mixed", full)
    with pytest.raises(MemoryError), weights.adapted([adapters[1], adapters[3], None]):
        pass


def test_nothing_stays_behind_and_the_base_is_one(
    weights: Weights, adapters: list[Adapter]
) -> None:
    layers = [module for module in weights.model.modules() if "forward" in module.__dict__]
    places = {name: value.data_ptr() for name, value in weights.model.named_parameters()}
    with weights.adapted([*adapters, None]):
        assert {n: v.data_ptr() for n, v in weights.model.named_parameters()} == places
        assert any("forward" in module.__dict__ for module in weights.model.modules())
    with pytest.raises(ZeroDivisionError), weights.adapted([adapters[0]]):
        raise ZeroDivisionError
    assert [m for m in weights.model.modules() if "forward" in m.__dict__] == layers == []


def test_choices_are_judged_by_the_adapter(
    weights: Weights, base: Path, folders: list[Path], adapters: list[Adapter]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    known = Weights.__new__(Weights)
    known.__dict__.update(weights.__dict__)
    known.model = peft.PeftModel.from_pretrained(model, folders[2]).eval().merge_and_unload()
    prompt = weights.prompt_tokens({"prompt": "Name it:"})
    choices = ["blue", "the river rises", "why"]
    expected = choose(known, prompt, choices, by_length=False)
    with weights.adapted([adapters[2]]):
        found = choose(weights, prompt, choices, by_length=False)
    assert found.text == expected.text
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert choose(weights, prompt, choices, by_length=False).probabilities != found.probabilities


def test_layers_that_are_transposed_or_see_rows_laid_end_to_end(
    weights: Weights, tmp_path: Path
) -> None:
    """GPT-2 keeps its matrices the other way round; models with experts flatten what they read."""

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned = Conv1D(6, 8)
            self.flat = torch.nn.Linear(6, 5)

        def forward(self, x: Any) -> Any:
            read = self.turned(x)
            return self.flat(read.view(-1, 6)).view(*read.shape[:2], 5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it sets `fan_in_fan_out` by itself.
        config = peft.LoraConfig(target_modules=["turned", "flat"], r=2, init_lora_weights=False)
        known = peft.get_peft_model(Flat(), config).eval()
        known.save_pretrained(tmp_path / "a")
    other = Weights.__new__(Weights)
    other.__dict__.update(weights.__dict__)
    x = torch.randn(3, 4, 8)
    expected = known(x)
    other.model = known.unload()
    other.model.dtype = torch.float32
    adapter = read_adapter(other, tmp_path / "a", "a")
    wild = read_adapter(other, tmp_path / "a", "b")
    with torch.inference_mode():
        plain = other.model(x)
        with Adapting(other.model).on([adapter, None, wild]):
            mixed = other.model(x)
    assert torch.allclose(mixed[[0, 2]], expected[[0, 2]], atol=1e-5)
    assert torch.equal(mixed[1], plain[1])
    assert not torch.allclose(mixed[0], plain[0], atol=1e-2)


def changed(folder: Path, out: Path, **config: Any) -> Path:
    """A copy of an adapter with other settings."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    written = out / "adapter_config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | config))
    return out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"use_dora": True}, "`use_dora`"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
        ({"bias": "all"}, "biases"),
        ({"of_the_future": {"a": 1}}, "`of_the_future`"),
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"r": 5}, "rank 4, but adapter_config.json says 5"),
        ({"r": None}, "`r` is None"),
        ({"lora_alpha": "much"}, "`lora_alpha` is 'much'"),
        ({"lora_alpha": -1}, "`lora_alpha` is -1"),
        ({"rank_pattern": {"(a+)+": 3}}, "`rank_pattern`"),
        ({"alpha_pattern": [1]}, "`alpha_pattern`"),
    ],
)
def test_settings_that_are_not_understood_are_refused(
    weights: Weights, folders: list[Path], tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdapterRefused) as refused:
        read_adapter(weights, changed(folders[0], tmp_path / "a", **config), "a")
    assert words in str(refused.value)


def tampered(folder: Path, out: Path, **tensors: Any) -> Path:
    """A copy of an adapter in which tensors are other ones, or not there if None."""
    changed(folder, out)
    path = out / "adapter_model.safetensors"
    held = load_file(path)
    for part, tensor in tensors.items():
        (key,) = (
            (key for key in held if part in key.replace(".", "_")) if tensor is None else (part,)
        )
        held.pop(key, None)
        if tensor is not None:
            held[key] = tensor
    save_file(held, path)
    return out


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{LAYER}.lora_A.weight": torch.zeros(4, 63)}, "another size"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(3, 64)}, "another size"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(64)}, "another size"),
        ({f"{LAYER}.lora_A.weight": torch.full((4, 64), torch.nan)}, "diverged"),
        ({f"{LAYER}.lora_B.weight": torch.full((64, 4), torch.inf)}, "diverged"),
        ({"layers_0_self_attn_q_proj_lora_A": None}, "lora_B of `model.layers.0.self_attn.q_proj`"),
        ({f"{LAYER}.bias": torch.zeros(64)}, "no LoRA matrix"),
        (
            {
                "base_model.model.model.experts.0.up.lora_A.weight": torch.zeros(4, 64),
                "base_model.model.model.experts.0.up.lora_B.weight": torch.zeros(64, 4),
            },
            "experts",
        ),
        (
            {
                "base_model.model.model.norm.lora_A.weight": torch.zeros(4, 64),
                "base_model.model.model.norm.lora_B.weight": torch.zeros(64, 4),
            },
            "has a LlamaRMSNorm there",
        ),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    weights: Weights, folders: list[Path], tmp_path: Path, tensors: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdapterRefused) as refused:
        read_adapter(weights, tampered(folders[0], tmp_path / "a", **tensors), "a")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("adapter_config.json", b"{", "no JSON"),
        ("adapter_config.json", b"\xff", "no JSON"),
        ("adapter_config.json", b"[]", "no JSON object"),
        ("adapter_config.json", None, "not an adapter"),
        ("adapter_model.safetensors", None, "not an adapter"),
        ("adapter_model.safetensors", b"no tensors", "damaged"),
        ("flowmesh.json", b"{}", "another base model"),
    ],
)
def test_a_damaged_adapter_is_refused(
    weights: Weights,
    folders: list[Path],
    tmp_path: Path,
    name: str,
    content: bytes | None,
    words: str,
) -> None:
    folder = changed(folders[0], tmp_path / "a")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(AdapterRefused, match=words):
        read_adapter(weights, folder, "a", str(Digest.of(b"base")))


def test_an_adapter_of_another_architecture_is_refused(
    weights: Weights, folders: list[Path], tmp_path: Path
) -> None:
    folder = changed(folders[0], tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    held = {key.replace("q_proj", "c_attn"): value for key, value in load_file(path).items()}
    save_file(held, path)
    with pytest.raises(AdapterRefused, match="has no such layer"):
        read_adapter(weights, folder, "a")


class CountingBlobs(DirBlobs):
    read = 0

    def tree(self, digest: Digest) -> Path:
        self.read += 1
        return super().tree(digest)


def test_adapters_are_loaded_once_and_those_of_another_base_refused(
    weights: Weights, base: Path, tmp_path: Path
) -> None:
    blobs = CountingBlobs(tmp_path / "store")
    model = Artifact("tree", str(blobs.put_tree(base)))
    other = Artifact("tree", str(Digest.of(b"another model")))
    folder = make_adapter(base, tmp_path / "a", origin=model.digest)
    adapter = Artifact("tree", str(blobs.put_tree(folder)))
    first = load_adapter(weights, blobs, adapter, model)
    assert load_adapter(weights, blobs, adapter, model) is first
    assert blobs.read == 1
    for _ in range(2):
        with pytest.raises(AdapterRefused) as refused:
            load_adapter(weights, blobs, adapter, other)
    assert "trained for another base model" in str(refused.value)
    assert model.address.short in str(refused.value)
    assert other.address.short in str(refused.value)
    assert blobs.read == 2


def test_the_cache_lets_go_of_what_was_used_longest_ago(adapters: list[Adapter]) -> None:
    one, two, three = adapters[0], adapters[1], adapters[3]
    cache = AdapterCache(one.size_bytes + two.size_bytes + three.size_bytes - 1)
    for name, adapter in (("one", one), ("two", two)):
        cache.put(name, "base", adapter)
    assert cache.get("one", "base") is one
    cache.put("three", "base", three)
    assert cache.get("two", "base") is None
    assert (cache.get("one", "base"), cache.get("three", "base")) == (one, three)
    assert cache.size_bytes == one.size_bytes + three.size_bytes
    assert cache.get("one", "another base") is None


def test_one_adapter_over_the_limit_is_kept_alone(adapters: list[Adapter]) -> None:
    cache = AdapterCache(1)
    for name, adapter in zip("ab", adapters, strict=False):
        cache.put(name, "base", adapter)
    assert cache.get("a", "base") is None
    assert cache.get("b", "base") is adapters[1]


def test_bfloat16_adapters_take_the_format_of_their_base(base: Path, folders: list[Path]) -> None:
    weights = Weights(base, "bfloat16")
    adapter = read_adapter(weights, folders[0], "a")
    assert {update.up.dtype for update in adapter.updates.values()} == {torch.bfloat16}
    prompt = weights.prompt_tokens({"prompt": "What is blue?"})
    found = dict(Decoder(weights).generate([Request(prompt, 8, adapter=adapter)] * 2))
    assert found[0] == found[1]
