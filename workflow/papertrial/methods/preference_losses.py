"""Losses on a labelled pair of responses, chosen w and rejected l.

All read the log-ratios of the policy to a reference policy, log pi(y) - log ref(y), of both responses, tensors
of one shape; all return the loss elementwise, and each has one temperature:

    dpo    -log sigmoid(beta (w - l))                          Rafailov et al. 2023, arXiv:2305.18290
    ipo    (w - l - 1/(2 tau))^2                               Azar et al. 2023, arXiv:2310.12036
    sppo   (w - eta (p_w - 1/2))^2 + (l - eta (p_l - 1/2))^2   Wu et al. 2024, arXiv:2405.00675

DPO and IPO see the difference w - l alone; SPPO gives each of the two a target of its own, by its win rate p.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def dpo(w: "Tensor", l: "Tensor", *, beta: float) -> "Tensor":
    from torch.nn.functional import logsigmoid  # here, so that who imports this module needn't wait for torch

    return -logsigmoid(beta * (w - l))


def ipo(w: "Tensor", l: "Tensor", *, tau: float) -> "Tensor":
    return (w - l - 1 / (2 * tau)) ** 2


def sppo(w: "Tensor", l: "Tensor", p_w: "Tensor", p_l: "Tensor", *, eta: float) -> "Tensor":
    return (w - eta * (p_w - 0.5)) ** 2 + (l - eta * (p_l - 0.5)) ** 2
