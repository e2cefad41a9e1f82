"""What can be read off frozen embeddings: probes as functions on arrays, from neighbours to a learned query.

Each probe is fitted on the training split, makes its choices (penalty, learning rate, epoch, k) on the validation
split, and only then looks at the test split, once. Targets are int (n,), one label a clip, or bool (n, C), any number
of them.
`metric(scores (n, C), targets)` is what a choice maximises. Arrays may be memory-mapped: what grows with their number
of rows is read in chunks.
"""
import copy
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from torch import nn

from wren.cli import Pulse

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of ridge, times the number of clips
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of logistic regression, beside the mean loss, strongest first
LOWEST = np.finfo(np.float32).min  # score of a class that can't be chosen
LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class Scored(NamedTuple):
    """What every probe returns."""
    valid: np.ndarray  # scores (n, C), higher: likelier
    test: np.ndarray
    choice: dict  # made on validation


# -------------------------------------------------------------------------------------------------- features, targets

def standardiser(x, chunk=1 << 14):
    """Mean and deviation of each feature of x (n, D) -> two float32 (D,); a constant one has deviation 1."""
    scaler = StandardScaler()
    for start in range(0, len(x), chunk):
        scaler.partial_fit(np.array(x[start:start + chunk], np.float32))
    deviation = np.sqrt(scaler.var_)
    return tuple(torch.tensor(part, dtype=torch.float32)
                 for part in (scaler.mean_, np.where(deviation > 1e-6, deviation, 1.0)))


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


def loss(logits, y, multilabel):
    """Mean over clips: logits (B, C), y (B, C) one-hot or, if multilabel, any of them 1."""
    if multilabel:
        return F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)
    return F.cross_entropy(logits, y)


# ---------------------------------------------------------------------------------------------- nearest neighbours

def nearest(train, queries, k=10, chunk=8192):
    """Cosine similarity (m, k) and row (m, k) of each query's nearest rows of train (n, D), nearest first.

    Features get mean 0 and deviation 1 over the training rows before the L2 norm, else every vector lies near the mean
    and cosines say little. Both sides pass in chunks: memory is O(chunk²), not O(n).
    """
    (mean, deviation), k, out = standardiser(train), min(k, len(train)), []

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


def knn_probe(train, targets, valid, truth, test, classes, metric, neighbours=(10,)):
    """The number of neighbours among `neighbours` that is best on validation."""
    similarity, row = nearest(train, valid, max(neighbours))
    held = {k: votes(similarity[:, :k], row[:, :k], targets, classes).numpy() for k in neighbours}
    k = max(neighbours, key=lambda k: metric(held[k], truth))
    scores = votes(*nearest(train, test, k), targets, classes)
    return Scored(held[k], scores.numpy(), {"k": k})


# --------------------------------------------------------------------------------------------------------- linear

def scaled(train, *others):
    """Arrays (n, D) with the training split's mean and deviation brought to 0 and 1, float32."""
    shape = standardiser(train)
    return [Vectors(x, *shape).batch(slice(None))[0].numpy() for x in (train, *others)]


def ridge(train, targets, valid, truth, test, classes, metric, penalties=PENALTIES):
    """scikit-learn's ridge regression onto one-hot targets of standardised features; alpha is n times a penalty, the
    best on validation."""
    from scipy.linalg import LinAlgWarning
    from sklearn.linear_model import Ridge
    train, valid, test = scaled(train, valid, test)
    y, fits = one_hot(targets, classes).numpy(), []
    for penalty in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinAlgWarning)  # of small penalties and wide features: validation decides
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

class LinearHead(nn.Linear):
    """x (B, D) -> logits (B, C)."""

    def __init__(self, width, classes):
        super().__init__(width, classes)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x, keep=None):
        return super().forward(x)


class AttentiveHead(nn.Module):
    """One learned query attends to the tokens, then norm and linear: x (B, N, D), keep (B, N) -> logits (B, C).

    The query's inner product with a token's key is that of one vector of width D with the token: keys of tokens are
    never computed, and values only of the weighted mean of tokens. The function is that of multi-head attention.
    """

    def __init__(self, width, classes, parts=12):
        super().__init__()
        parts = max(p for p in range(1, parts + 1) if width % p == 0)
        self.query = nn.Parameter(torch.randn(parts, width // parts))
        self.key, self.value = (nn.Parameter(width ** -0.5 * torch.randn(width, parts, width // parts))
                                for _ in range(2))
        self.norm, self.linear = nn.LayerNorm(width), LinearHead(width, classes)

    def forward(self, x, keep):
        looked_for = torch.einsum("hs,dhs->hd", self.query, self.key) * self.query.shape[-1] ** -0.5
        attention = torch.einsum("bnd,hd->bhn", x, looked_for).masked_fill(~keep[:, None], float("-inf")).softmax(2)
        pooled = torch.einsum("bhn,bnd->bhd", attention, x)
        return self.linear(self.norm(torch.einsum("bhd,dhs->bhs", pooled, self.value).flatten(1)))


class PrototypeHead(nn.Module):
    """J learned prototypes a class: the cosine (not below 0) with the best matching token, times a weight that is not
    negative, summed over the class's prototypes (AudioProtoPNet, Bird-MAE: J = 20)."""

    def __init__(self, width, classes, prototypes=20):
        super().__init__()
        self.prototype = nn.Parameter(torch.randn(classes, prototypes, width))
        self.weight = nn.Parameter(torch.ones(classes, prototypes))
        # what random prototypes reach is about 0.25 each: sigmoids of rare classes start low
        self.bias = nn.Parameter(torch.full((classes,), -0.25 * prototypes))

    def forward(self, x, keep):
        x, p = F.normalize(x, dim=2), F.normalize(self.prototype, dim=2).flatten(0, 1)  # (B, N, D), (P, D)
        with torch.no_grad():
            best, where = (x @ p.T).masked_fill_(~keep[..., None], -2).max(1)  # (B, P)
        if torch.is_grad_enabled():  # only where the maximum lies there is a gradient
            best = torch.einsum("bpd,pd->bp", x[torch.arange(len(x), device=x.device)[:, None], where], p)
        return (best.clamp(min=0).unflatten(1, self.weight.shape) * self.weight.clamp(min=0)).sum(2) + self.bias


def train_heads(kind, train, targets, valid, truth, test, classes, metric, *, rates=LEARNING_RATES, decay=0.0,
                epochs=50, batch_size=32, patience=5, seed=0):
    """Train a head for each learning rate, all in one pass over the data, by AdamW.

    kind: LinearHead on `Vectors`, or AttentiveHead or PrototypeHead on `Tokens`. The rate and the epoch are those
    that are best on validation; training ends when no head has improved for `patience` epochs.
    """
    device, generator = train.mean.device, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = [kind(train.x.shape[1], classes).to(device) for _ in rates]
    optimizer = torch.optim.AdamW([{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, rates)],
                                  weight_decay=decay, fused=True)
    y, best = one_hot(targets, classes).to(device), [(-np.inf, 0, None)] * len(rates)  # value, epoch, weights
    waited, pulse = 0, Pulse(f"training of {kind.__name__}", epochs, "epochs")
    for epoch in range(1, epochs + 1):
        pulse.beat(epoch - 1)
        for rows in torch.randperm(len(train), generator=generator).split(batch_size):
            x, keep = train.batch(rows.numpy())
            optimizer.zero_grad()
            sum(loss(head(x, keep), y[rows.to(device)], is_multilabel(targets)) for head in heads).backward()
            optimizer.step()
        waited += 1
        for g, scores in enumerate(_scores(heads, valid, batch_size, targets)):
            if (value := metric(scores, truth)) > best[g][0]:
                best[g], waited = (value, epoch, copy.deepcopy(heads[g].state_dict())), 0
        if waited >= patience:
            break
    pick = max(range(len(rates)), key=lambda g: best[g][0])
    _, epoch, weights = best[pick]
    heads[pick].load_state_dict(weights)
    held, scores = (_scores([heads[pick]], data, batch_size, targets)[0] for data in (valid, test))
    return Scored(held, scores, {"lr": rates[pick], "epoch": epoch})


@torch.inference_mode()
def _scores(heads, data, batch_size, targets):
    """Scores (n, C) of all rows by each head: where a clip may have several labels probabilities (float64), which
    thresholds can cut."""
    out = [[] for _ in heads]
    for i in range(0, len(data), batch_size):
        batch = data.batch(slice(i, i + batch_size))
        for head, logits in zip(heads, out):
            logits.append(head(*batch))
    out = [torch.cat(logits) for logits in out]
    return [(x.double().sigmoid() if is_multilabel(targets) else x).cpu().numpy() for x in out]
