"""What 8-bit logits change, beside the largest logits at equal bytes: `python 2026-11-29-encodings.py CACHE STUDENT`.

CACHE has float16 logits. Those of its teacher STUDENT are taken as a student's; the others are its teachers. For both
encodings and temperatures 1 and 4, of all samples of view 0:

KL           divergence of the softmax of a teacher's logits from that of the encoded ones, nats
same top-1   how often the largest logit keeps its class
kd, dkd ...  the angle by which the gradient of the loss on 64 samples turns, mean of the batches; targets are fused
             with softmax(-H) of the original logits
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import demkd
from demkd.cache.format import decode_logits, encode_logits
from demkd.config import METHODS, MethodConfig
from demkd.losses import LOSSES, TeacherWeights, entropy, entropy_weights, fuse, logit_terms


def eight_bits(z: Tensor, _temperature: float) -> Tensor:
    return torch.from_numpy(decode_logits(*encode_logits(z.numpy()).values()))


def largest(z: Tensor, temperature: float) -> Tensor:
    """As many as fit into the bytes of 8-bit logits; the others share one number, exact at this temperature."""
    count = (z.shape[1] + 8 - 6) // 4  # a logit and its class are 4 bytes; the label's logit and the tail are 6
    kept = torch.zeros_like(z, dtype=torch.bool).scatter_(1, z.topk(count).indices, True)
    tail = torch.logsumexp(z.masked_fill(kept, -torch.inf) / temperature, 1, keepdim=True)
    return torch.where(kept, z, temperature * (tail - torch.tensor(float(z.shape[1] - count)).log()))


def gradient(student: Tensor, teachers: list[Tensor], labels: Tensor, weights: Tensor, method: MethodConfig) -> Tensor:
    z = student.clone().requires_grad_()
    both = TeacherWeights(logits=weights, hint=weights)
    targets = fuse(dict.fromkeys((1.0, method.temperature), teachers), labels, method, both)
    factors = LOSSES[method.loss].factors(method)
    loss = sum(factors[name] * term.mean() for name, term in logit_terms(z, labels, targets, method).items())
    return torch.autograd.grad(loss, z)[0].flatten()


def main(folder: str, student: str) -> None:
    cache = demkd.open_cache(folder)
    read = cache.logits(0, slice(0, cache.samples), temperature=1.0)
    logits = {name: torch.tensor(z, dtype=torch.float32) for name, z in zip(cache.names, read, strict=True)}
    own, teachers, labels = logits.pop(student), list(logits.values()), torch.tensor(cache.labels[:])
    print(f"{len(labels)} samples, {cache.classes} classes, teachers {', '.join(logits)}, student {student}")
    encodings: dict[str, Callable[[Tensor, float], Tensor]] = {"uint8": eight_bits, "largest": largest}
    for name, encode in encodings.items():
        for temperature in (1.0, 4.0):
            coded = [encode(z, temperature) for z in teachers]
            p, log_q = torch.cat(teachers) / temperature, torch.cat(coded) / temperature
            kl = F.kl_div(log_q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean")
            same = (p.argmax(1) == log_q.argmax(1)).float().mean()
            line = f"{name:8} T={temperature:g}  KL {kl:.1e}  same top-1 {same:.2%}"
            for loss in ("kd", "dkd", "dist"):
                method, angles = replace(METHODS[loss], temperature=temperature), []
                for rows in torch.arange(len(labels)).split(64):
                    weights = entropy_weights(torch.stack([entropy(z[rows]) for z in teachers]))
                    one, other = (
                        gradient(own[rows], [z[rows] for z in zs], labels[rows], weights, method)
                        for zs in (teachers, coded)
                    )
                    angles.append(
                        torch.rad2deg(torch.acos(F.cosine_similarity(one.double(), other.double(), dim=0).clamp(-1, 1)))
                    )
                line += f"  {loss} {torch.stack(angles).mean():.2f}°"
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
