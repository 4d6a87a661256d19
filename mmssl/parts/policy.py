"""Which tokens are worth seeing, learned by trial: a guide that is trained, and the term that rewards it (AdaMAE)."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.parts.regions import asked, counted, foreseen
from mmssl.parts.targets import full
from mmssl.registry import register, suggest
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens, TokenSpec


@register("guide/policy")
class Policy(nn.Module):
    """A small transformer gives each token the logarithm of its chance to be drawn (AdaMAE, Bandara et al. 2022).

    It reads the embeddings of all tokens, as the encoder does but with positions of its own, and trains with the rest
    by `term/policy`. masker/sampled with `log: true` draws by it.

    Args:
        spec: sizes of the tokens, equally many of every sample.
        width: the encoder's width.
        depth: number of blocks, 1 in the released code.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: behind attention and within MLPs.

    Raises:
        ValueError: for samples of unequal length, or heads that do not divide the width.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        *,
        depth: int = 1,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if spec.length is None:
            raise ValueError("guide/policy has a position for each token, so that all samples need equally many")
        if width % heads:
            raise ValueError(f"guide.heads={heads} does not divide encoder.dim={width}; choose a divisor of {width}")
        self.position = nn.Parameter(torch.zeros(spec.length, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, proj_drop=dropout, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        self.head = nn.Linear(width, 1)
        xavier_(self.blocks)
        xavier_(self.head)

    def forward(self, look: Look) -> Tensor:
        """Logarithms of probabilities, (b, n), whose sum over tokens is 1."""
        tokens = look.network.embed(look.tokens)
        x = tokens.x + self.position[tokens.index]
        for block in self.blocks:
            x = block(x)
        return torch.log_softmax(full(self.head(x)[..., 0]), -1)


@register("term/policy")
class Reward(nn.Module):
    """Makes tokens likelier to be seen where another term went wrong on them (AdaMAE's sampling loss, by REINFORCE).

    The mean of -log p times the loss, which carries no gradient, over the tokens that were asked for of each row; p is
    the guide's. Rows are averaged. It is no distance and has no bound.

    Args:
        plan: sizes.
        of: the term whose losses are read, in front of this one and of `term/predict`'s kind.
        look: the look whose guide gives logarithms of probabilities, such as `guide/policy`.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for a term that does not come before, or a look without a guide.
    """

    def __init__(self, plan: Plan, *, of: str, look: str = "x", weight: float = 1e-4) -> None:
        super().__init__()
        if of not in plan.before:
            known = ", ".join(plan.before) or "none"
            raise ValueError(
                f"objective.{plan.term}.of={of!r}: a term in front of it in the objective is meant, and there is "
                f"{known}{suggest(of, plan.before)}"
            )
        self.of, self.look, self.weight = of, plan.named([look])[0], weight
        if plan.looks[self.look].guide is None:
            raise ValueError(f"objective.{plan.term}: look {look!r} has no guide to train; give guide/policy")
        self.signals: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """What `forward` divides by: the rows of the mask."""
        look, at = step[self.look], step.terms[self.of].at[0]
        query = asked(look, at, *foreseen(look, at), bare=True)
        return query.index.new_tensor(len(query.index))

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum over rows, and their number."""
        if (self.of, self.look) not in step.losses:
            raise ValueError(f"term/policy: objective.{self.of} tells no losses of tokens of look {self.look!r}")
        look = step[self.look]
        query, losses = step.losses[self.of, self.look][0]
        score = look.score
        assert score is not None
        costs = -rows_of(look, score, query).gather(1, query.index) * losses[:, -query.index.shape[1] :]
        kept = counted(query)
        ones = torch.ones_like(costs) if kept is None else kept.to(costs.dtype)
        each = torch.where(ones > 0, costs, 0.0).sum(1) / ones.sum(1).clamp(min=1)
        chance = score.detach()
        self.signals["breadth"] = -(chance.exp() * chance).sum(-1).mean() / torch.tensor(float(chance.shape[1])).log()
        return each.sum(), each.new_tensor(float(len(each)))


def rows_of(look: Look, score: Tensor, query: Tokens) -> Tensor:
    """The score of the sample of each row of a query, (r k, n)."""
    score = score if look.row is None else score[look.row]
    return score.repeat_interleave(len(query.index) // len(score), 0)
