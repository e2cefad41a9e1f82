"""Probes against scikit-learn and plain references, the cached pass against the encoder itself."""
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from wren.probing import probes
from wren.probing import scoring
from wren.cli import UserError
from wren.probing.embeddings import Embeddings, MelStatistics, describe, embed_split, vectors
from model import Encoder
from wren.recipes import PRESETS
from wren.tasks import load_task

ROOT = Path(__file__).parent.parent
LAPTOP = {"ssast": "ssast-laptop-patch", "atst": "atst-laptop", "animal2vec": "animal2vec-laptop"}


def accuracy(scores, truth):
    return scoring.metric_of("accuracy", scores, truth)


def mean_ap(scores, truth):
    return scoring.metric_of("map", scores, truth)


def clusters(n, classes=5, dim=16, noise=0.6, seed=0):
    """float16 vectors, as the cache has them, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return (3 + np.eye(classes, dim)[labels] + noise * rng.standard_normal((n, dim))).astype(np.float16), labels


def splits(**kwargs):
    """train, labels, valid, labels, test, truth."""
    return [part for seed, n in ((0, 300), (1, 80), (2, 120)) for part in clusters(n, seed=seed, **kwargs)]


def standardised(train, *others):
    mean, deviation = train.astype(np.float64).mean(0), train.astype(np.float64).std(0)
    return [(x - mean) / deviation for x in (train, *others)]


def several(labels, classes=5):
    """Two labels a clip: its own and, for even ones, the next."""
    out = np.eye(classes, dtype=bool)[labels]
    out[np.arange(len(labels)), (labels + 1) % classes] |= labels % 2 == 0
    return out


def encoder(name="ssast", seed=0, **changes):
    torch.manual_seed(seed)
    return Encoder(replace(PRESETS[LAPTOP[name]], depth=3, **changes)).eval()


# ------------------------------------------------------------------------------------------------- agreement

@pytest.mark.parametrize("dim", [16, 400])  # fewer features than clips, and more
def test_ridge_gives_scikit_learns_scores(dim):
    train, y, valid, truth, test, _ = splits(dim=dim)
    found = probes.ridge(train, y, valid, truth, test, 5, accuracy, penalties=(0.1,))
    x, held, t = standardised(train, valid, test)
    reference = Ridge(alpha=0.1 * len(x)).fit(x, np.eye(5)[y])
    assert np.abs(found.test - reference.predict(t)).max() < 1e-4
    assert np.abs(found.valid - reference.predict(held)).max() < 1e-4


def test_a_grid_of_ridge_penalties_is_each_of_them_and_validation_chooses():
    train, y, valid, truth, test, _ = splits(dim=32, noise=1.0)
    grid = probes.ridge(train, y, valid, truth, test, 5, accuracy)
    each = {p: probes.ridge(train, y, valid, truth, test, 5, accuracy, penalties=(p,)) for p in probes.PENALTIES}
    values = {p: accuracy(found.valid, truth) for p, found in each.items()}
    assert values[grid.choice["penalty"]] == max(values.values()) > min(values.values())
    assert np.array_equal(grid.test, each[grid.choice["penalty"]].test)


def test_logistic_regression_gives_scikit_learns_probabilities():
    train, y, valid, truth, test, _ = splits()
    found = probes.logistic(train, y, valid, truth, test, 5, accuracy, decays=(1.0, 0.01), steps=300, tolerance=1e-8)
    x, t = standardised(train, test)
    decay = found.choice["decay"]
    reference = LogisticRegression(C=1 / (len(x) * decay), max_iter=5000, tol=1e-9).fit(x, y)
    mine = torch.tensor(found.test).softmax(1).numpy()
    assert np.abs(mine - reference.predict_proba(t)).max() < 1e-3  # float32 here, float64 there
    assert np.array_equal(found.test.argmax(1), reference.predict(t))


def test_logistic_regression_of_several_labels_is_one_of_each():
    train, y, valid, truth, test, _ = splits()
    found = probes.logistic(train, several(y), valid, several(truth), test, 5, mean_ap, decays=(0.01,), steps=300,
                            tolerance=1e-8)
    x, t = standardised(train, test)
    for c in (0, 3):
        reference = LogisticRegression(C=1 / (len(x) * 0.01), max_iter=5000, tol=1e-9).fit(x, several(y)[:, c])
        assert np.abs(found.test[:, c] - reference.predict_proba(t)[:, 1]).max() < 1e-3


def test_knn_gives_scikit_learns_shares_for_one_label_and_for_several():
    train, y, valid, truth, test, _ = splits()
    x, t = ([row / np.linalg.norm(row) for row in part] for part in standardised(train, test))
    arguments = dict(n_neighbors=10, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute")
    for targets, reference in ((y, KNeighborsClassifier(**arguments).fit(x, y).predict_proba(t)),
                               (several(y), KNeighborsRegressor(**arguments).fit(x, several(y)).predict(t))):
        found = probes.knn_probe(train, targets, valid, truth if targets.ndim == 1 else several(truth), test, 5,
                                 accuracy if targets.ndim == 1 else mean_ap)
        assert np.abs(found.test - reference).max() < 1e-4


def test_neighbours_found_in_chunks_are_those_found_at_once():
    train, _, _, _, test, _ = splits()
    whole, parts = probes.nearest(train, test, 10), probes.nearest(train, test, 10, chunk=7)
    assert torch.allclose(whole[0], parts[0], atol=1e-6) and torch.equal(whole[1], parts[1])


def test_k_is_chosen_on_validation():
    train, y, valid, truth, test, _ = splits(noise=1.0)
    found = probes.knn_probe(train, y, valid, truth, test, 5, accuracy, neighbours=(1, 30))
    values = {k: accuracy(probes.knn_probe(train, y, valid, truth, test, 5, accuracy, (k,)).valid, truth)
              for k in (1, 30)}
    assert found.choice["k"] == max(values, key=values.get)


# --------------------------------------------------------------------------------------- trained probes, layers

def bags(n, seed):
    """Clips of 6 to 9 tokens, of which one tells the class and the others tell nothing."""
    rng = np.random.default_rng(seed)
    labels, sizes = rng.integers(3, size=n), rng.integers(6, 10, size=n)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.standard_normal((offsets[-1], 24))
    x[offsets[:-1] + rng.integers(6, size=n)] += 6 * np.eye(3, 24)[labels]
    return x.astype(np.float16), offsets, labels


def read(x, offsets, shape):
    return probes.Tokens(x, offsets, *shape)


@pytest.mark.parametrize("kind, rates", [(probes.AttentiveHead, (5e-3,)), (probes.PrototypeHead, (3e-2,))])
def test_a_probe_on_tokens_finds_the_one_that_tells_the_class(kind, rates):
    made = [bags(n, seed) for seed, n in ((0, 200), (1, 50), (2, 80))]
    shape = probes.standardiser(made[0][0])
    train, valid, test = (read(x, offsets, shape) for x, offsets, _ in made)
    labels = [m[2] for m in made]
    found = probes.train_heads(kind, train, labels[0], valid, labels[1], test, 3, accuracy, rates=rates, epochs=20)
    assert accuracy(found.test, labels[2]) > 0.8
    shuffled = np.random.default_rng(0).permutation(labels[0])
    chance = probes.train_heads(kind, train, shuffled, valid, labels[1], test, 3, accuracy, rates=rates, epochs=3)
    assert accuracy(chance.test, labels[2]) < 0.6, "nothing to learn from labels that mean nothing"


@pytest.mark.parametrize("kind", [probes.AttentiveHead, probes.PrototypeHead])
def test_a_clips_score_depends_on_no_other_clip_of_its_batch(kind):
    x, offsets, _ = bags(8, 0)
    data = read(x, offsets, probes.standardiser(x))
    torch.manual_seed(0)
    module = kind(24, 3)
    together, alone = module(*data.batch(slice(0, 8))), module(*data.batch(np.array([3])))
    assert torch.allclose(together[3], alone[0], atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(module(*data.batch(slice(0, 8))), together, atol=1e-5)


def test_attention_without_keys_is_torchs_multi_head_attention():
    """Keys of tokens are never computed, values only of the mean: still the textbook function."""
    torch.manual_seed(0)
    module = probes.AttentiveHead(24, 3)
    x, keep = torch.randn(4, 7, 24), torch.ones(4, 7, dtype=torch.bool)
    keep[1, 5:] = False
    k, v = (torch.einsum("bnd,dhs->bhns", x, p) for p in (module.key, module.value))
    q = module.query[None, :, None].expand(4, -1, -1, -1)
    pooled = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None])
    assert torch.allclose(module(x, keep), module.linear(module.norm(pooled.flatten(1))), atol=1e-5)


def test_a_grid_of_learning_rates_trains_each_head_as_if_alone():
    train, y, valid, truth, test, answer = splits()
    shape = probes.standardiser(train)
    rows = [probes.Vectors(x, *shape) for x in (train, valid, test)]

    class Same(probes.LinearHead):
        """All heads start alike, so that only the rate tells them apart."""

        def __init__(self, *size):
            torch.manual_seed(0)
            super().__init__(*size)

    def fit(*rates):
        return probes.train_heads(Same, rows[0], y, rows[1], truth, rows[2], 5, accuracy, rates=rates, epochs=4)
    grid = fit(1e-6, 1e-2, 1e-4)
    alone = fit(grid.choice["lr"])
    assert grid.choice == alone.choice and np.allclose(grid.test, alone.test, atol=1e-4)
    assert accuracy(grid.test, answer) > 0.4, "five classes"


# --------------------------------------------------------------------------------------------------- the pass

@pytest.mark.parametrize("name, pool", [("ssast", "mean"), ("ssast", "specials"), ("atst", "both"),
                                        ("animal2vec", "mean")])
def test_cached_vectors_are_those_of_the_encoder(name, pool):
    """Long clips, short ones, each pooling: layer by layer, and tokens whose mean is the vector."""
    model = encoder(name, pool=pool)
    rate = model.config.sample_rate
    wave, lengths = 0.1 * torch.randn(2, 5 * rate), torch.tensor([5, 1]) * rate
    with torch.inference_mode():
        clips, tokens = describe(model, wave, lengths)
        assert torch.allclose(clips[:, 0], model.embed(wave, lengths), atol=1e-5)
        layers, _ = describe(model, wave, lengths, layers=True)
        assert layers.shape[1] == 3 and torch.allclose(layers[:, -1], clips[:, 0], atol=1e-5)
        if model.config.features == "tokens":
            for depth in (1, 2):
                assert torch.allclose(layers[:, depth - 1], model.embed(wave, lengths, depth=depth), atol=1e-5)
        if pool == "mean":
            assert torch.allclose(torch.stack([t.mean(0) for t in tokens]), clips[:, 0], atol=1e-4)


def test_a_second_pass_reads_no_audio_and_a_changed_file_or_weight_does(tiny, tmp_path, monkeypatch):
    split = load_task("individual", root=tiny).splits["valid"]
    model, mel, reads = encoder(), MelStatistics(16000), []
    monkeypatch.setattr(type(split), "take", lambda self, i, *about, take=type(split).take: (
        reads.append(i), take(self, i, *about))[1])

    def run(**kwargs):
        reads.clear()
        return embed_split({"model": model, "mel": mel}, split, tmp_path, **kwargs)
    first = run()
    assert len(reads) == len(split) and first["model"].clips.dtype == np.float16
    direct = vectors({"": model}, split)[""]
    assert np.abs(first["model"].vectors() - direct).max() < 4e-3
    again = run()
    assert not reads and np.array_equal(again["model"].clips, first["model"].clips)
    assert isinstance(again["model"].clips, np.memmap)
    tokens = run(tokens=True)["model"]
    assert len(reads) == len(split) and tokens.offsets[-1] == len(tokens.tokens)
    assert run()["model"].tokens is not None and not reads, "what has more serves for less"
    os.utime(split.rows.locate(0))
    run()
    assert len(reads) == len(split), "a file was written anew"
    with torch.no_grad():
        model.norm.bias[0] += 1e-3
    run()
    assert len(reads) == len(split), "other weights"
    assert not list(tmp_path.glob(".*tmp")), "nothing temporary is left"


def test_a_pass_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch):
    split = load_task("individual", root=tiny).splits["valid"]
    model = encoder()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        embed_split({"model": model}, split, tmp_path / "cache")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    monkeypatch.setattr(type(split.rows), "locate", lambda self, i: str(broken))
    with pytest.raises(UserError, match="broken.wav.*every clip of a task is needed") as error:
        embed_split({"model": encoder()}, split, tmp_path / "cache", workers=1)
    assert "\n" not in str(error.value) and not list((tmp_path / "cache").iterdir())


def test_the_last_layers_stand_side_by_side():
    x = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    assert np.array_equal(Embeddings(x).vectors(2)[1], x[1, 1:].ravel()) and Embeddings(x).vectors().shape == (2, 12)


def test_neighbours_in_a_large_file_take_little_memory(tmp_path):
    """150,000 × 384 vectors are 115 MB on disk and 230 MB as float32: anonymous memory stays below both."""
    code = """
import sys; sys.path.insert(0, sys.argv[2])
import numpy as np, threading, time
from wren.probing import probes
def anonymous():
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon')) // 1024
x = np.lib.format.open_memmap(sys.argv[1], 'w+', np.float16, (150_000, 384))
rng = np.random.default_rng(0)
for i in range(0, len(x), 10_000): x[i:i + 10_000] = rng.standard_normal((10_000, 384), np.float32)
x = np.load(sys.argv[1], mmap_mode='r')
before, peak, stop = anonymous(), [0], threading.Event()
def watch():
    while not stop.is_set(): peak[0] = max(peak[0], anonymous()); time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
_, row = probes.nearest(x, x[5::50_000], 3, chunk=4096)
stop.set(); thread.join()
assert row[:, 0].tolist() == [5, 50_005, 100_005]
print(peak[0] - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.npy"), str(ROOT)], capture_output=True,
                          text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 110
