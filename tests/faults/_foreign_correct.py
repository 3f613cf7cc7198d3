"""Correct steps in foreign styles: an examination of any of them must convict nobody."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults._case import Case
from tests.faults._foreign import Style, case_of
from tests.faults._foreign_zo import ZO_STYLES, zo_case

STYLES: tuple[Style, ...] = (
    Style(name="autograd loop"),
    Style(name="vmap of grad", grads="vmap"),
    Style(name="micro-batches of two", grads="micro"),
    Style(name="a bound per layer", grads="layers"),
    Style(name="weights on a second pass", grads="scaled losses"),
    Style(name="torch SGD", update="sgd", rate=0.1),
    Style(name="momentum", update="momentum", rate=0.1),
    Style(name="Nesterov", update="nesterov", rate=0.05, grads="vmap"),
    Style(name="Adam", update="adam", rate=1e-3),
    Style(name="AdamW with decay", update="adamw", rate=1e-3, model="norm"),
    Style(name="SGD with weight decay", update="decay", rate=0.5),
    Style(name="decay by hand", update="manual decay"),
    Style(name="StepLR every second step", update="scheduled", rate=0.4),
    Style(name="a rate function", update="rate function", rate=0.5),
    Style(name="rate 1e-5", rate=1e-5),
    Style(name="bfloat16 weights", dtype="bfloat16", rate=0.2),
    Style(name="dropout", dropout=0.3),
    Style(name="fixed sizes", sampling="fixed"),
    Style(name="shuffled as stated", sampling="shuffle", grads="vmap"),
    Style(name="numpy noise", noise="numpy", model="wide"),
    Style(name="noise in shares of workers", noise="ranks"),
    Style(name="noise drawn whole and sliced", noise="sliced", model="conv"),
)
"""Written with the detectors."""

LATER: tuple[Style, ...] = (
    Style(name="RMSprop, embedding", model="embedding", update="rmsprop", rate=1e-3),
    Style(name="Adagrad, recurrent", model="gru", update="adagrad", rate=0.01),
    Style(name="tied embedding", model="tied", update="sgd", rate=0.5),
    Style(name="the mean before the noise", average=True, noise="float64"),
    Style(name="noise in two halves", noise="halves", update="nesterov", rate=0.1, model="conv"),
    Style(name="whole data set at every step", sampling="none", model="linear", grads="vmap"),
    Style(name="Adam with dropout", dropout=0.5, update="adam", rate=1e-3, model="wide"),
    Style(name="fixed sizes with momentum", sampling="fixed", update="momentum", rate=0.1, grads="micro"),
    Style(name="shuffled, bfloat16", sampling="shuffle", dtype="bfloat16", rate=0.5),
    Style(name="float64 weights, small rate", dtype="float64", rate=1e-7, noise="numpy"),
    Style(name="large clip, little noise", clip=20.0, sigma=0.5, model="linear"),
    Style(name="small clip, much noise", clip=0.01, sigma=4.0, update="sgd", rate=2.0),
    Style(name="a bound per layer with decay", grads="layers", update="manual decay", rate=0.3),
)
"""Written after the detectors were frozen."""


def correct() -> dict[str, Callable[[int], Case]]:
    """All by name."""
    loops = {s.name: (lambda seed, s=s: case_of(s, seed)) for s in (*STYLES, *LATER)}
    return loops | {s.name: (lambda seed, s=s: zo_case(s, seed)) for s in ZO_STYLES}
