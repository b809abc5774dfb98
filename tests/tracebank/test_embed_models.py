"""The embedders that run a network, on tiny ones made here, held to transformers itself, which reads one text at a time."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tracebank.embed import open_embedder
from tracebank.embed.embedder import Embedder, Vectors
from tracebank.embed.policy import PolicyEmbedder
from tracebank.embed.sentence_transformers import SentenceTransformersEmbedder
from tracebank.faults import BankError

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TEXTS = ["what is 6 times 7?", "who wrote it", "b" + " a" * 800, "x", "hello, world. " * 5]
ANY_TEXTS = st.lists(st.text(max_size=20) | st.sampled_from(TEXTS), max_size=8)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that reads letters, with mean pooling over at most 40 tokens, as sentence-transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *".,?!", *(f"##{letter}" for letter in LETTERS)]
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    network = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=512, initializer_range=0.5, **shape))
    network.save_pretrained(folder / "plain")
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder / "plain")
    modules = [Transformer(str(folder / "plain"), max_seq_length=40), Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=modules).save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model that reads bytes, as transformers saves it, in the numbers that policies are trained in."""
    folder = tmp_path_factory.mktemp("policy") / "step_000001"
    save_policy(folder, seed=0)
    return folder


def save_policy(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Qwen3Config(
        vocab_size=len(alphabet), intermediate_size=64, max_position_embeddings=96, initializer_range=0.2, **shape
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is told that there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def save_in(cache: Path, name: str, model: Path) -> None:
    """Puts a model into a cache as if it had been downloaded."""
    folder, revision = cache / f"models--{name.replace('/', '--')}", "ab" * 20
    shutil.copytree(model, folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


@pytest.fixture(scope="module", params=["bert", "bert-last", "policy", "policy-last"])
def embedder(request: pytest.FixtureRequest, bert: Path, policy: Path) -> Embedder:
    specs = {
        "bert": f"sentence-transformers:{bert}",
        "bert-last": f"sentence-transformers:{bert}?pooling=last&characters=30&tokens=64",
        "policy": f"policy:{policy}",
        "policy-last": f"policy:{policy}?pooling=last&tokens=50",
    }
    return open_embedder(specs[request.param])


class TestEveryNetwork:
    @settings(max_examples=8, deadline=None)
    @given(ANY_TEXTS, st.randoms())
    def test_neither_order_nor_company_matters(self, embedder: Embedder, texts: list[str], rng) -> None:  # type: ignore[no-untyped-def]
        together = embedder.embed(texts)
        assert together.shape == (len(texts), embedder.dimension)
        assert together.dtype == np.float32
        order = rng.sample(range(len(texts)), len(texts))
        np.testing.assert_allclose(embedder.embed([texts[number] for number in order]), together[order], atol=1e-5)
        for text, vector in zip(texts, together, strict=True):
            np.testing.assert_allclose(embedder.embed([text])[0], vector, atol=1e-5)

    def test_vectors_have_length_one_and_those_of_blank_texts_are_zero(self, embedder: Embedder) -> None:
        lengths = np.linalg.norm(embedder.embed([*TEXTS, "", " \n"]), axis=1)
        assert lengths == pytest.approx([1] * len(TEXTS) + [0, 0], abs=1e-6)

    def test_it_opens_again_from_its_spec(self, embedder: Embedder) -> None:
        again = open_embedder(embedder.spec)
        assert (again.name, again.spec, again.dimension) == (embedder.name, embedder.spec, embedder.dimension)
        assert np.array_equal(again.embed(TEXTS), embedder.embed(TEXTS))

    def test_a_lone_surrogate_is_read_as_a_question_mark(self, embedder: Embedder) -> None:
        np.testing.assert_allclose(*embedder.embed(["a\ud800", "a?"]), atol=1e-6)

    def test_embedding_draws_no_random_numbers_and_keeps_no_gradients(self, embedder: Embedder) -> None:
        before = torch.random.get_rng_state()
        embedder.embed(TEXTS)
        assert torch.equal(before, torch.random.get_rng_state())


class TestSentenceTransformers:
    @pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
    def test_vectors_are_those_of_the_network_by_itself(self, bert: Path, pooling: str) -> None:
        embedder = SentenceTransformersEmbedder(str(bert), pooling=pooling, characters=30, tokens=64)
        np.testing.assert_allclose(embedder.embed(TEXTS), bert_vectors(bert, pooling, 30, 64), atol=1e-5)

    def test_without_options_the_models_own_settings_hold(self, bert: Path) -> None:
        vectors = SentenceTransformersEmbedder(str(bert)).embed(TEXTS)
        np.testing.assert_allclose(vectors, bert_vectors(bert, "mean", 10**6, 40), atol=1e-5)

    def test_a_tokenizer_that_pads_on_the_left_changes_nothing(self, bert: Path, tmp_path: Path) -> None:
        """What makes the vectors of RAPO's released code depend on the batch: positions that count from the padding."""
        copy = shutil.copytree(bert, tmp_path / "left")
        settings = json.loads((copy / "tokenizer_config.json").read_text())
        (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
        vectors = SentenceTransformersEmbedder(str(copy), pooling="last", tokens=64).embed(TEXTS)
        np.testing.assert_allclose(vectors, bert_vectors(bert, "last", 10**6, 64), atol=1e-5)

    def test_a_copy_is_the_same_and_a_model_trained_again_in_its_place_is_not(self, bert: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(bert, tmp_path / "copy")
        (copy / "notes.txt").write_text("which make no difference")
        name = SentenceTransformersEmbedder(str(bert)).name
        assert SentenceTransformersEmbedder(str(copy)).name == name
        network = BertModel.from_pretrained(copy)
        with torch.no_grad():
            network.embeddings.word_embeddings.weight[7, 7] += 1
        network.save_pretrained(copy)
        assert SentenceTransformersEmbedder(str(copy)).name != name

    def test_a_model_is_found_by_its_name_on_the_hub(self, bert: Path, cache: Path) -> None:
        save_in(cache, "lab/tiny-bert", bert)
        by_name = open_embedder("sentence-transformers:lab/tiny-bert?pooling=cls")
        by_folder = open_embedder(f"sentence-transformers:{bert}?pooling=cls")
        assert by_name.name == by_folder.name
        assert by_name.spec == "sentence-transformers:lab/tiny-bert?pooling=cls"
        assert np.array_equal(by_name.embed(TEXTS), by_folder.embed(TEXTS))

    def test_the_papers_preset_is_the_last_token_of_the_last_1300_characters(self, bert: Path, cache: Path) -> None:
        save_in(cache, "sentence-transformers/all-MiniLM-L6-v2", bert)
        embedder = open_embedder("rapo")
        np.testing.assert_allclose(embedder.embed(TEXTS), bert_vectors(bert, "last", 1300, 512), atol=1e-5)
        assert open_embedder(embedder.spec).name == embedder.name

    def test_without_the_package_the_error_says_what_to_install(self, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(BankError, match=r"pip install 'agent-envs\[embedders\]'"):
            SentenceTransformersEmbedder(str(bert))

    @pytest.mark.usefixtures("cache")
    def test_a_model_that_is_not_there_is_named(self) -> None:
        with pytest.raises(BankError, match=r"^sentence-transformers:lab/none: .*download the model first[^\n]*$"):
            SentenceTransformersEmbedder("lab/none")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pooling": "max"}, "expected mean, last, cls, found 'max'"),
            ({"characters": 0}, "characters: expected a number from 1, found 0"),
            ({"tokens": 513}, "from 1 to the 512 positions"),
        ],
    )
    def test_options_that_cannot_be_are_refused(self, bert: Path, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SentenceTransformersEmbedder(str(bert), **options)  # type: ignore[arg-type]

    def test_weights_that_are_not_finite_are_found(self, bert: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(bert, tmp_path / "copy")
        network = BertModel.from_pretrained(copy)
        with torch.no_grad():
            network.embeddings.word_embeddings.weight.fill_(torch.nan)
        network.save_pretrained(copy)
        with pytest.raises(BankError, match="found 5 of 6 that are not"):
            SentenceTransformersEmbedder(str(copy)).embed([*TEXTS, ""])


class TestPolicy:
    @pytest.mark.parametrize(("pooling", "tokens"), [("mean", 96), ("last", 96), ("mean", 10), ("last", 1)])
    def test_vectors_are_those_of_the_network_by_itself(self, policy: Path, pooling: str, tokens: int) -> None:
        found = PolicyEmbedder(policy, pooling=pooling, tokens=tokens).embed(TEXTS)
        np.testing.assert_allclose(found, policy_vectors(policy, TEXTS, pooling, tokens), atol=1e-5)

    def test_it_reads_as_much_as_the_model_can_and_1024_tokens_at_most(self, policy: Path, tmp_path: Path) -> None:
        assert PolicyEmbedder(policy).name.endswith("?pooling=mean&tokens=96")
        copy = shutil.copytree(policy, tmp_path / "copy")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
        assert PolicyEmbedder(copy).name.endswith("?pooling=mean&tokens=1024")

    def test_a_checkpoint_is_the_same_wherever_it_lies_and_another_is_not(self, policy: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(policy, tmp_path / "elsewhere" / "step_000009")
        (copy / "optimizer.pt").write_bytes(b"whatever else a checkpoint holds")
        assert PolicyEmbedder(copy).name == PolicyEmbedder(policy).name
        save_policy(tmp_path / "other", seed=1)
        assert PolicyEmbedder(tmp_path / "other").name != PolicyEmbedder(policy).name

    def test_another_tokenizer_is_another_embedder(self, policy: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(policy, tmp_path / "copy")
        text = (copy / "tokenizer.json").read_text()
        (copy / "tokenizer.json").write_text(text.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
        assert PolicyEmbedder(copy).name != PolicyEmbedder(policy).name

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_a_folder_that_is_no_checkpoint_is_refused(self, policy: Path, tmp_path: Path, missing: str) -> None:
        copy = shutil.copytree(policy, tmp_path / "copy")
        (copy / missing).unlink()
        with pytest.raises(BankError, match=r"copy: expected a model with .*, found [^\n]*$"):
            PolicyEmbedder(copy)

    def test_damaged_weights_are_refused_in_one_line(self, policy: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(policy, tmp_path / "copy")
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(BankError, match=r"copy: expected a language model that transformers can load, found [^\n]*$"):
            PolicyEmbedder(copy)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BankError, match="found no folder"):
            PolicyEmbedder(tmp_path / "none")

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"pooling": "cls"}, "expected mean or last"), ({"tokens": 97}, "to the model's 96"), ({"tokens": 0}, "from 1 to")],
    )
    def test_options_that_cannot_be_are_refused(self, policy: Path, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PolicyEmbedder(policy, **options)  # type: ignore[arg-type]


def bert_vectors(folder: Path, pooling: str, characters: int, tokens: int) -> Vectors:
    """The vectors of `TEXTS`, each by itself."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    pooled = []
    for text in TEXTS:
        inputs = tokenizer(text[-characters:], truncation=True, max_length=tokens, return_tensors="pt")
        pooled.append(pool(network(**inputs).last_hidden_state[0], pooling))
    return unit(pooled)


def policy_vectors(folder: Path, texts: Sequence[str], pooling: str, tokens: int) -> Vectors:
    """The vectors of texts, each by itself; a token is a byte."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pooled = []
    for text in texts:
        ids = tokenizer(text[-tokens:], return_tensors="pt").input_ids
        pooled.append(pool(network(ids, output_hidden_states=True).hidden_states[-1][0], pooling))
    return unit(pooled)


def pool(hidden: torch.Tensor, pooling: str) -> torch.Tensor:
    return {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]


def unit(pooled: list[torch.Tensor]) -> Vectors:
    vectors: Vectors = torch.nn.functional.normalize(torch.stack(pooled)).detach().numpy()
    return vectors
