"""What can be read off frozen embeddings: probes as functions on arrays, from neighbours to a learned query.

Each probe is fitted on the training split, makes its choices (penalty, learning rate, epoch, k) on the validation
split, and only then looks at the test split, once. Targets are int (n,), one label a clip, or bool (n, C), any number
of them.
`metric(scores (n, C), targets)` is what a choice maximises. Arrays may be memory-mapped: what grows with their number
of rows is read in chunks.
"""
import hashlib
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wren.cli import Pulse
from wren.probing.embeddings import vectors
from wren.probing.scoring import metric_of

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of ridge, times the number of clips
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of logistic regression, beside the mean loss, strongest first
LOWEST = np.finfo(np.float32).min  # score of a class that can't be chosen
LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class Scored(NamedTuple):
    """What every probe returns."""
    valid: np.ndarray  # scores (n, C), higher: likelier
    test: np.ndarray
    choice: dict  # made on validation
    seconds: float = 0.0  # that the fit took, where `cached` measured it


def cached(folder, key, fit):
    """What fit() gives, a `Scored`, or what it once gave under this key, which holds all that it depends on."""
    path = Path(folder) / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.npz"
    if path.exists():
        with np.load(path) as found:
            return Scored(found["valid"], found["test"], *json.loads(str(found["more"])))
    began, scored = time.perf_counter(), fit()
    scored = scored._replace(seconds=round(time.perf_counter() - began, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.npz")
    np.savez(temporary, valid=scored.valid, test=scored.test, more=json.dumps([scored.choice, scored.seconds]))
    os.replace(temporary, path)
    return scored


# -------------------------------------------------------------------------------------------------- features, targets

def standardiser(x, chunk=1 << 14):
    """Mean and deviation of each feature of x (n, D) -> two float32 (D,); a constant one has deviation 1."""
    count, mean, square = 0, 0.0, 0.0  # square: of distances from the mean, joined as by Chan et al. 1979
    for start in range(0, len(x), chunk):
        part = torch.as_tensor(np.array(x[start:start + chunk], np.float32))
        n, middle = len(part), part.mean(0)
        square = square + (part - middle).square_().sum(0).double() + (middle - mean) ** 2 * (count * n / (count + n))
        mean, count = mean + (middle.double() - mean) * (n / (count + n)), count + n
    deviation = (square / count).sqrt()
    return mean.float(), deviation.where(deviation > 1e-6, 1.0).float()


@dataclass
class Vectors:
    """Rows of x (n, D), standardised as they are read."""
    x: np.ndarray
    mean: torch.Tensor
    deviation: torch.Tensor

    def __len__(self):
        return len(self.x)

    def batch(self, rows):
        """rows: a slice, or indices (B,) -> (float32 (B, D) on the device of `mean`, None)."""
        x = torch.as_tensor(np.array(self.x[rows], np.float32)).to(self.mean.device)
        return x.sub_(self.mean).div_(self.deviation), None


@dataclass
class Tokens:
    """Tokens x (N, D) of n clips, offsets (n + 1), standardised as they are read."""
    x: np.ndarray
    offsets: np.ndarray
    mean: torch.Tensor
    deviation: torch.Tensor

    def __len__(self):
        return len(self.offsets) - 1

    def batch(self, rows):
        """rows: a slice, or indices (B,) -> (float32 (B, N, D) filled up with zeros, keep (B, N) bool)."""
        clips = [torch.as_tensor(np.array(self.x[self.offsets[row]:self.offsets[row + 1]], np.float32))
                 for row in np.arange(len(self))[rows]]
        sizes = torch.tensor([len(clip) for clip in clips], device=self.mean.device)
        x = nn.utils.rnn.pad_sequence(clips, batch_first=True).to(self.mean.device)
        keep = torch.arange(x.shape[1], device=x.device) < sizes[:, None]
        return (x - self.mean) / self.deviation * keep[..., None], keep


def one_hot(targets, classes):
    """int (n,) or bool (n, C) -> float32 (n, C)."""
    targets = torch.as_tensor(np.array(targets))
    return targets.float() if targets.ndim == 2 else F.one_hot(targets.long(), classes).float()


def is_multilabel(targets):
    """Whether a clip may have any number of labels: targets (n, C), not (n,)."""
    return np.ndim(targets) == 2


def outputs(logits, targets):
    """Logits as scores: where a clip may have several labels probabilities (float64), which thresholds can cut."""
    return (logits.double().sigmoid() if is_multilabel(targets) else logits).cpu().numpy()


def loss(logits, y, multilabel):
    """Mean loss of each head: logits (B, G, C), y (B, C) one-hot or, if multilabel, any of them 1 -> (G,)."""
    y = y[:, None].expand_as(logits)
    if multilabel:
        return F.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(2).mean(0)
    return -(logits.log_softmax(2) * y).sum(2).mean(0)


# ---------------------------------------------------------------------------------------------- nearest neighbours

def nearest(train, queries, k=10, standardise=True, chunk=8192):
    """Cosine similarity (m, k) and row (m, k) of each query's nearest rows of train (n, D), nearest first.

    `standardise`: features get mean 0 and deviation 1 over the training rows before the L2 norm, else every vector
    lies near the mean and cosines say little. Both sides pass in chunks: memory is O(chunk²), not O(n).
    """
    mean, deviation = standardiser(train) if standardise else (torch.zeros(1), torch.ones(1))
    k, out = min(k, len(train)), []

    def unit(x):
        x = torch.as_tensor(np.array(x, np.float32)).sub_(mean).div_(deviation)
        return x.div_(x.norm(dim=1, keepdim=True).clamp_(min=1e-12))

    for at in range(0, len(queries), chunk):
        query, best = unit(queries[at:at + chunk]), None
        for start in range(0, len(train), chunk):
            similarity = query @ unit(train[start:start + chunk]).T
            value, row = similarity.topk(min(k, similarity.shape[1]), dim=1)
            found = value, row + start
            if best is not None:
                value, row = (torch.cat(pair, 1) for pair in zip(best, found))
                value, pick = value.topk(min(k, value.shape[1]), dim=1)
                found = value, row.gather(1, pick)
            best = found
        out.append(best)
    return tuple(torch.cat(part) for part in zip(*out))


def votes(similarity, row, targets, classes, temperature=0.07):
    """Share of the neighbours' weight exp(similarity / temperature) that each class holds -> float32 (m, C).

    One label: DINO's vote. Several: the weighted share of neighbours that have the class (published nowhere; ours).
    """
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    weight = weight / weight.sum(1, keepdim=True)
    targets = torch.as_tensor(np.array(targets))
    if targets.ndim == 1:
        return weight.new_zeros(len(weight), classes).scatter_add_(1, targets.long()[row], weight)
    out = weight.new_zeros(len(weight), classes)
    for j in range(row.shape[1]):  # one neighbour at a time: (m, k, C) would not fit
        out.addcmul_(weight[:, j:j + 1], targets[row[:, j]].float())
    return out


def knn_probe(train, targets, valid, truth, test, classes, metric, neighbours=(10,), temperature=0.07,
              standardise=True):
    """The number of neighbours among `neighbours` that is best on validation."""
    similarity, row = nearest(train, valid, max(neighbours), standardise)
    held = {k: votes(similarity[:, :k], row[:, :k], targets, classes, temperature).numpy() for k in neighbours}
    k = max(neighbours, key=lambda k: metric(held[k], truth))
    scores = votes(*nearest(train, test, k, standardise), targets, classes, temperature)
    return Scored(held[k], scores.numpy(), {"k": k})


def online_knn(encoder, task, device="cpu", k=10, temperature=0.07, batch_size=32, workers=0):
    """The kNN score of an encoder as it is, in the middle of training: training split against validation split."""
    was_training = encoder.training
    encoder.eval()
    try:
        train, valid = (vectors([encoder], task.splits[name], device, batch_size, workers)[0]
                        for name in ("train", "valid"))
    finally:
        encoder.train(was_training)
    fit, truth = (task.splits[name].targets for name in ("train", "valid"))
    scores = votes(*nearest(train, valid, k), fit, len(task.labels), temperature).numpy()
    return metric_of(task.metric, scores, truth)


# --------------------------------------------------------------------------------------------------------- linear

def scaled(train, *others):
    """Arrays (n, D) with the training split's mean and deviation brought to 0 and 1, float32."""
    shape = standardiser(train)
    return [Vectors(x, *shape).batch(slice(None))[0].numpy() for x in (train, *others)]


def ridge(train, targets, valid, truth, test, classes, metric, penalties=PENALTIES):
    """scikit-learn's ridge regression onto one-hot targets of standardised features; alpha is n times a penalty, the
    best on validation."""
    from sklearn.linear_model import Ridge
    train, valid, test = scaled(train, valid, test)
    y, fits = one_hot(targets, classes).numpy(), []
    for penalty in penalties:
        model = Ridge(alpha=len(train) * penalty, solver="cholesky").fit(train, y)
        fits.append(Scored(model.predict(valid), model.predict(test), {"penalty": penalty}))
    return max(fits, key=lambda fit: metric(fit.valid, truth))


def logistic(train, targets, valid, truth, test, classes, metric, decays=DECAYS, steps=100, tolerance=1e-4):
    """scikit-learn's logistic regression of standardised features, C = 1 / (n decay), each decay from the last one's
    solution, the best on validation. One label: softmax, as log-probabilities; several: a sigmoid each."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    train, valid, test = scaled(train, valid, test)
    multilabel = is_multilabel(targets)
    columns, fits = targets.T if multilabel else [targets], []
    models = [LogisticRegression(max_iter=steps, tol=tolerance, warm_start=True) for _ in columns]

    def scores(x):
        if multilabel:
            return np.stack([model.predict_proba(x)[:, 1] if 0 < column.mean() < 1 else np.full(len(x), column.mean())
                             for model, column in zip(models, columns)], 1).astype(np.float32)
        out = np.full((len(x), classes), LOWEST)
        out[:, models[0].classes_] = np.maximum(models[0].predict_log_proba(x), LOWEST)
        return out
    for decay in decays:
        with warnings.catch_warnings(), np.errstate(divide="ignore"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # the next decay goes on from there
            for model, column in zip(models, columns):
                if not multilabel or 0 < column.mean() < 1:
                    model.set_params(C=1 / (len(train) * decay)).fit(train, column)
            fits.append(Scored(scores(valid), scores(test), {"decay": decay}))
    return max(fits, key=lambda fit: metric(fit.valid, truth))


# ------------------------------------------------------------------------------- probes trained by gradient descent

class LinearHeads(nn.Module):
    """G linear heads: x (B, D) -> logits (B, G, C). Every parameter of these modules has G as its first axis."""

    def __init__(self, heads, width, classes, generator):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(heads, width, classes, generator=generator))
        self.bias = nn.Parameter(torch.zeros(heads, classes))

    def forward(self, x, keep=None):
        return torch.einsum("bd,gdc->bgc", x, self.weight) + self.bias


class AttentiveHeads(nn.Module):
    """One learned query attends to the tokens, then norm and linear: x (B, N, D), keep (B, N) -> logits (B, G, C).

    The query's inner product with a token's key is that of one vector of width D with the token: keys of tokens are
    never computed, and values only of the weighted mean of tokens. The function is that of multi-head attention.
    """

    def __init__(self, heads, width, classes, generator, parts=12):
        super().__init__()
        parts = max(p for p in range(1, parts + 1) if width % p == 0)
        size = width // parts

        def normal(*shape, scale=width ** -0.5):
            return nn.Parameter(scale * torch.randn(heads, *shape, generator=generator))
        self.query, self.key = normal(parts, size, scale=1.0), normal(width, parts, size)
        self.value, self.weight = normal(width, parts, size), normal(width, classes, scale=0.01)
        self.gain, self.shift = nn.Parameter(torch.ones(heads, width)), nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, classes))

    def forward(self, x, keep):
        looked_for = torch.einsum("ghs,gdhs->ghd", self.query, self.key) * self.query.shape[-1] ** -0.5
        attention = torch.einsum("bnd,ghd->bghn", x, looked_for)
        attention = attention.masked_fill(~keep[:, None, None], float("-inf")).softmax(3)
        pooled = torch.einsum("bghn,bnd->bghd", attention, x)
        pooled = torch.einsum("bghd,gdhs->bghs", pooled, self.value).flatten(2)  # (B, G, D)
        pooled = F.layer_norm(pooled, pooled.shape[-1:]) * self.gain + self.shift
        return torch.einsum("bgd,gdc->bgc", pooled, self.weight) + self.bias


class PrototypeHeads(nn.Module):
    """J learned prototypes a class: the cosine (not below 0) with the best matching token, times a weight that is not
    negative, summed over the class's prototypes (AudioProtoPNet, Bird-MAE: J = 20)."""

    def __init__(self, heads, width, classes, generator, prototypes=20):
        super().__init__()
        self.prototype = nn.Parameter(torch.randn(heads, classes, prototypes, width, generator=generator))
        self.weight = nn.Parameter(torch.ones(heads, classes, prototypes))
        # what random prototypes reach is about 0.25 each: sigmoids of rare classes start low
        self.bias = nn.Parameter(torch.full((heads, classes), -0.25 * prototypes))

    def forward(self, x, keep):
        x, p = F.normalize(x, dim=2), F.normalize(self.prototype, dim=3).flatten(0, 2)  # (B, N, D), (P, D)
        with torch.no_grad():
            best, where = (x @ p.T).masked_fill_(~keep[..., None], -2).max(1)  # (B, P)
        if torch.is_grad_enabled():  # only where the maximum lies there is a gradient
            best = torch.einsum("bpd,pd->bp", x[torch.arange(len(x), device=x.device)[:, None], where], p)
        return (best.clamp(min=0).unflatten(1, self.weight.shape) * self.weight.clamp(min=0)).sum(3) + self.bias


def train_heads(kind, train, targets, valid, truth, test, classes, metric, *, rates=LEARNING_RATES, decay=0.0,
                epochs=50, batch_size=32, patience=5, seed=0):
    """Train a head for each learning rate, all in one pass over the data, by AdamW.

    kind: LinearHeads on `Vectors`, or AttentiveHeads or PrototypeHeads on `Tokens`. The rate and the epoch are those
    that are best on validation; training ends when no head has improved for `patience` epochs.
    """
    device, generator = train.mean.device, torch.Generator().manual_seed(seed)
    module = kind(len(rates), train.x.shape[1], classes, generator).to(device)
    parameters = list(module.parameters())
    optimizer = _Adam(parameters, torch.tensor(rates, device=device), decay)
    y = one_hot(targets, classes).to(device)
    best, values, when, waited = [p.detach().clone() for p in parameters], [-np.inf] * len(rates), [0] * len(rates), 0
    pulse = Pulse(f"training of {kind.__name__}", epochs, "epochs")
    for epoch in range(1, epochs + 1):
        pulse.beat(epoch - 1)
        order = torch.randperm(len(train), generator=generator)
        for rows in order.split(batch_size):
            total = loss(module(*train.batch(rows.numpy())), y[rows.to(device)], is_multilabel(targets)).sum()
            optimizer.step(torch.autograd.grad(total, parameters))
        scores, waited = outputs(_logits(module, valid, batch_size), targets), waited + 1
        for g in range(len(rates)):
            if (value := metric(scores[:, g], truth)) > values[g]:
                values[g], when[g], waited = value, epoch, 0
                for chosen_weights, p in zip(best, parameters):
                    chosen_weights[g] = p.detach()[g]
        if waited >= patience:
            break
    pick = int(np.argmax(values))
    for chosen_weights, p in zip(best, parameters):
        p.data = chosen_weights[pick:pick + 1]
    held, scores = (outputs(_logits(module, data, batch_size), targets)[:, 0] for data in (valid, test))
    return Scored(held, scores, {"lr": rates[pick], "epoch": when[pick]})


@torch.inference_mode()
def _logits(module, data, batch_size):
    """Logits (n, G, C) of all rows."""
    return torch.cat([module(*data.batch(slice(i, i + batch_size))) for i in range(0, len(data), batch_size)])


class _Adam:
    """AdamW with a learning rate of its own for each slice of the parameters' first axis."""

    def __init__(self, parameters, rates, decay, betas=(0.9, 0.999), eps=1e-8):
        self.parameters, self.decay, self.betas, self.eps, self.t = parameters, decay, betas, eps, 0
        self.rates = [rates.view(-1, *[1] * (p.ndim - 1)) for p in parameters]
        self.first, self.second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients):
        self.t += 1
        one, two = (1 - beta ** self.t for beta in self.betas)
        for p, g, m, v, rate in zip(self.parameters, gradients, self.first, self.second, self.rates):
            m.lerp_(g, 1 - self.betas[0])
            v.lerp_(g.square(), 1 - self.betas[1])
            p -= rate * (m / one / ((v / two).sqrt() + self.eps) + self.decay * p)


# ------------------------------------------------------------------------------------------- few clips, and none

def few_shot(train, targets, test, classes, shots, draws=20, seed=0):
    """Nearest class mean of `shots` random training clips a class, `draws` times -> predicted labels (draws, m).

    Cosine between standardised features (statistics of all training clips, which need no labels) and the mean of the
    normalised clips of each class; classes with fewer clips give all they have.
    """
    mean, deviation = standardiser(train)
    train, test = (F.normalize(Vectors(x, mean, deviation).batch(slice(None))[0], dim=1) for x in (train, test))
    rng, out = np.random.default_rng([seed, shots]), np.empty((draws, len(test)), np.int64)
    members = [np.flatnonzero(targets == c) for c in range(classes)]
    for draw in range(draws):
        centres = torch.full((classes, train.shape[1]), float("nan"))
        for c, rows in enumerate(members):
            if len(rows):
                centres[c] = train[rng.permutation(rows)[:shots]].mean(0)
        similarity = test @ F.normalize(centres, dim=1).T
        out[draw] = similarity.nan_to_num(-2).argmax(1).numpy()  # a class without clips is never chosen
    return out


def geometry(x, labels=None, classes=None, seed=0):
    """How vectors x (n, D) lie, without a probe -> dict.

    spread: mean distance of L2-normalised vectors from their mean (0: all alike, 1: all around); effective_rank: exp
    of the entropy of the normalised singular values of centred features (Roy and Vetterli 2007). With labels (n,):
    purity, the share of clips whose nearest other clip has the same label; nmi, ari: agreement of k-means (as many
    clusters as classes, standardised features) with the labels.
    """
    from scipy.stats import entropy
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    x = np.asarray(x, dtype=np.float32)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    energy = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T, dtype=np.float64))).clip(min=0)
    out = {"spread": float(np.linalg.norm(unit - unit.mean(0), axis=1).mean()),
           "effective_rank": float(np.exp(entropy(np.sqrt(energy)))) if energy.any() else 0.0}
    if labels is not None and len(x) > 1:
        row = nearest(x, x, 2)[1].numpy()
        other = np.where(row[:, 0] == np.arange(len(x)), row[:, 1], row[:, 0])  # of twins either may come first
        mean, deviation = (part.numpy() for part in standardiser(x))
        clusters = KMeans(min(classes, len(x)), n_init=4, random_state=seed).fit_predict((x - mean) / deviation)
        out |= {"purity": float((labels[other] == labels).mean()),
                "nmi": float(normalized_mutual_info_score(labels, clusters)),
                "ari": float(adjusted_rand_score(labels, clusters))}
    return out


def duplicates(x):
    """Rows of x (n, D) that equal an earlier row in every digit -> [(row, earlier row)]: two clips, one embedding."""
    _, first, which = np.unique(x, axis=0, return_index=True, return_inverse=True)
    return [(i, int(earlier)) for i, earlier in enumerate(first[which.ravel()]) if i != earlier]
